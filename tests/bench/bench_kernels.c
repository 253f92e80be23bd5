/*
 * bench_kernels.c - how near the CPU kernels come to what the machine can do.
 *
 * First the machine: how fast its threads read memory, and the library's GEMM on a large square
 * product.  Then the operations in the shapes of an 8B model against those two numbers.  The
 * best of several rounds counts.
 *
 *   winnow-bench-kernels [--machine | --read] [threads ...]      default: 1 2
 *
 * --machine: the machine only, as a line of JSON for each number of threads and dtype.
 * --read: only how fast memory is read, likewise.
 */
#include "kernels/op.h"
#include "tests/bench/limits.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HIDDEN = 4096,
    MLP = 14336,
    CHUNK = 1024,
    ROUNDS = 7,
    MAX_THREADS = 256,
};

struct bench {
    struct device *dev;
    enum dtype dtype;
    int threads;
    void *memory; /* limits_bytes of weights */
    void *x;      /* (CHUNK, MLP) */
    void *out;    /* (CHUNK, MLP) float32 */
    size_t at;    /* where in memory the next weights lie */
    struct limits limits;
};

static void die(const char *what)
{
    fprintf(stderr, "bench: %s: %s\n", what, status_text());
    exit(1);
}

/* The next weights of this shape: each call reads memory that no cache still holds. */
static struct matrix next_weights(struct bench *b, int n, int k)
{
    size_t bytes = (size_t)n * (size_t)k * dtype_bytes(b->dtype);

    if (b->at + bytes > limits_bytes) {
        b->at = 0;
    }
    struct matrix w = {.data = (char *)b->memory + b->at,
                       .rows = n,
                       .cols = k,
                       .stride = (size_t)k,
                       .layout = op_packed_bytes(b->dev, n, k) ? MATRIX_PACKED : MATRIX_ROWS};
    b->at += bytes;
    return w;
}

typedef status (*product)(struct device *dev, void *out, enum dtype out_dtype, const void *x,
                          const struct matrix *w, int rows);

/* The best seconds of one product. */
static double time_product(struct bench *b, product op, int rows, int n, int k)
{
    double best = 1e30;

    for (int i = 0; i < ROUNDS + 1; i++) {
        struct matrix w = next_weights(b, n, k);
        double start = limits_now(b->threads);

        if (op(b->dev, b->out, b->dtype, b->x, &w, rows)) {
            die("product");
        }
        double seconds = limits_now(b->threads) - start;

        if (i > 0 && seconds < best) { /* the first makes the primitive */
            best = seconds;
        }
    }
    return best;
}

static double gflops(int rows, int n, int k, double seconds)
{
    return 2e-9 * rows * (double)n * k / seconds;
}

static void print_machine(const struct bench *b)
{
    printf("\n%s, %s\n  read memory                        %8.1f GB/s\n",
           device_description(b->dev), dtype_name(b->dtype), b->limits.read * 1e-9);
    printf("  GEMM of %d rows                  %8.1f GFLOP/s\n", CHUNK, b->limits.gemm * 1e-9);
}

static void print_machine_json(const struct bench *b)
{
    printf("{\"device\": \"%s\", \"threads\": %d, \"dtype\": \"%s\", \"read_gbs\": %.2f, "
           "\"gemm_gflops\": %.2f}\n",
           device_description(b->dev), b->threads, dtype_name(b->dtype), b->limits.read * 1e-9,
           b->limits.gemm * 1e-9);
}

static const struct {
    const char *name;
    int n, k;
} shapes[] = {
    {"q, o", HIDDEN, HIDDEN},
    {"k, v", HIDDEN / 4, HIDDEN},
    {"gate, up", MLP, HIDDEN},
    {"down", HIDDEN, MLP},
};
enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

static void bench_linear(struct bench *b)
{
    const int counts[] = {CHUNK, CHUNK / 2, 64};

    printf("  op_linear           rows  GFLOP/s   of peak\n");
    for (int s = 0; s < SHAPES; s++) {
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
            int rows = counts[c];
            double rate = gflops(rows, shapes[s].n, shapes[s].k,
                                 time_product(b, op_linear, rows, shapes[s].n, shapes[s].k));

            printf("    %-14s  %6d %8.1f   %5.0f %%\n", shapes[s].name, rows, rate,
                   100.0 * rate / (b->limits.gemm * 1e-9));
        }
    }
}

static void bench_linear_rows(struct bench *b)
{
    const int counts[] = {1, 2, 4, 8, 16, 32, 64};

    printf("  op_linear_rows      rows     GB/s   of read  GFLOP/s\n");
    for (int s = 0; s < SHAPES; s++) {
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
            int rows = counts[c], n = shapes[s].n, k = shapes[s].k;
            double seconds = time_product(b, op_linear_rows, rows, n, k);
            double read = (double)n * k * (double)dtype_bytes(b->dtype) / seconds * 1e-9;

            printf("    %-14s  %6d %8.1f   %5.0f %% %8.1f\n", shapes[s].name, rows, read,
                   100.0 * read / (b->limits.read * 1e-9), gflops(rows, n, k, seconds));
        }
    }
}

static void bench_elementwise(struct bench *b)
{
    size_t n = (size_t)CHUNK * MLP;
    double best[2] = {1e30, 1e30};

    for (int i = 0; i < ROUNDS; i++) {
        double start = limits_now(b->threads);

        if (op_silu_mul(b->dev, b->out, b->x, b->x, n)) {
            die("op_silu_mul");
        }
        double middle = limits_now(b->threads);
        if (op_rmsnorm(b->dev, b->x, b->out, b->memory, CHUNK, HIDDEN, 1e-5f)) {
            die("op_rmsnorm");
        }
        double end = limits_now(b->threads);

        best[0] = middle - start < best[0] ? middle - start : best[0];
        best[1] = end - middle < best[1] ? end - middle : best[1];
    }
    printf("  op_silu_mul                        %8.2f ns an element\n", best[0] * 1e9 / (double)n);
    printf("  op_rmsnorm                         %8.2f ns an element\n",
           best[1] * 1e9 / CHUNK / HIDDEN);
}

static void bench_open(struct bench *b, enum dtype dtype, int threads)
{
    struct device_config config = {.dtype = dtype, .threads = threads};

    *b = (struct bench){.dtype = dtype, .threads = threads};
    if (device_open(&b->dev, "cpu", &config) ||
        device_alloc(b->dev, &b->memory, limits_bytes, "weights") ||
        device_alloc(b->dev, &b->x, (size_t)CHUNK * MLP * sizeof(float), "rows") ||
        device_alloc(b->dev, &b->out, (size_t)CHUNK * MLP * sizeof(float), "results")) {
        die("device");
    }
    limits_fill(b->memory, limits_bytes, dtype);
    limits_fill(b->x, (size_t)CHUNK * MLP * dtype_bytes(dtype), dtype);
}

static void bench_close(struct bench *b)
{
    device_free(b->dev, b->out);
    device_free(b->dev, b->x);
    device_free(b->dev, b->memory);
    device_close(b->dev);
}

enum what { ALL, MACHINE, READ };

static void bench_read(int threads)
{
    struct bench b;

    bench_open(&b, DTYPE_BF16, threads);
    printf("{\"threads\": %d, \"read_gbs\": %.2f}\n", threads,
           limits_read_rate(b.memory, threads) * 1e-9);
    bench_close(&b);
}

static void bench_all(int threads, enum what what)
{
    const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F32};

    if (what == READ) {
        bench_read(threads);
        return;
    }
    for (int d = 0; d < 2; d++) {
        struct bench b;

        bench_open(&b, dtypes[d], threads);
        if (limits_measure(&b.limits, b.memory, b.dtype, threads)) {
            die("limits");
        }
        if (what == MACHINE) {
            print_machine_json(&b);
        } else {
            print_machine(&b);
            bench_linear_rows(&b);
            bench_linear(&b);
            bench_elementwise(&b);
        }
        bench_close(&b);
    }
}

static enum what what_of(const char *argument)
{
    if (argument && strcmp(argument, "--machine") == 0) {
        return MACHINE;
    }
    return argument && strcmp(argument, "--read") == 0 ? READ : ALL;
}

int main(int argc, char **argv)
{
    enum what what = what_of(argc > 1 ? argv[1] : NULL);
    int first = what == ALL ? 1 : 2;

    if (argc <= first) {
        bench_all(1, what);
        bench_all(2, what);
    }
    for (int i = first; i < argc; i++) {
        long threads = strtol(argv[i], NULL, 10);

        if (threads < 1 || threads > MAX_THREADS) {
            fprintf(stderr, "usage: %s [--machine | --read] [threads ...]\n", argv[0]);
            return 1;
        }
        bench_all((int)threads, what);
    }
    return 0;
}
