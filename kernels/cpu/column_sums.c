/* column_sums.c - how much attention each key gets: the items of columns.h over the threads. */
#include "kernels/cpu/columns.h"
#include "kernels/cpu/cpu.h"

#include <omp.h>

struct sums {
    const struct column_sums *args;
    enum dtype dtype;
    const struct columns_kernels *kernels;
    int group, items, threads;
    size_t head_stride, scratch_size;
    float *q;       /* (q_heads, head_stride) */
    float *lse;     /* (q_heads, rows) times log2(e) */
    int32_t *from;  /* (rows) */
    int32_t *to;    /* (rows) */
    float *scratch; /* (threads, scratch_size) */
};

static size_t whole_lines(size_t floats)
{
    return (floats + 15) / 16 * 16;
}

static void see_keys(const struct sums *s)
{
    const struct column_sums *args = s->args;

    for (int t = 0; t < args->rows; t++) {
        int i = args->first_row + t;

        if (i < args->open_rows) {
            s->from[t] = 0;
            s->to[t] = args->n_keys;
        } else {
            s->from[t] = attention_first_key(args->positions, i, args->sliding_window);
            s->to[t] = i + 1;
        }
    }
}

/* Floats of everything. */
static size_t sums_size(struct sums *s, const struct device *dev, const struct column_sums *args)
{
    const struct cpu_isa *isa = cpu_device_const(dev)->isa;
    size_t d = (size_t)(args->head_dim + 63) / 64 * 64; /* whole units of every variant */
    size_t rows = (size_t)args->rows, heads = (size_t)args->q_heads;
    size_t tile = ATTENTION_TILE_KEYS * (d + ATTENTION_BLOCK_ROWS);
    size_t lanes = (size_t)COLUMNS_LSE_ROWS * (ATTENTION_MAX_LANES + 1);
    int blocks = (args->n_keys + COLUMNS_BLOCK_KEYS - 1) / COLUMNS_BLOCK_KEYS;

    *s = (struct sums){
        .args = args,
        .dtype = dev->dtype,
        .kernels = dev->dtype == DTYPE_BF16 ? isa->columns_bf16 : isa->columns_f32,
        .group = args->q_heads / args->kv_heads,
        .items = blocks * args->kv_heads,
        .head_stride = (rows + COLUMNS_LSE_ROWS) * d,
        .scratch_size = whole_lines(tile + lanes),
    };
    s->threads = cpu_threads(dev, (size_t)s->items, 1);
    return heads * s->head_stride + whole_lines(heads * rows) + 2 * whole_lines(rows) +
           (size_t)s->threads * s->scratch_size;
}

size_t cpu_column_sums_workspace(const struct device *dev, const struct column_sums *args)
{
    struct sums s;

    return sums_size(&s, dev, args) * sizeof(float);
}

static status sums_open(struct sums *s, struct device *dev, const struct column_sums *args)
{
    size_t rows = (size_t)args->rows, heads = (size_t)args->q_heads;
    size_t list = whole_lines(rows), lse = whole_lines(heads * rows);
    void *memory;
    status st = cpu_workspace(dev, &memory, sums_size(s, dev, args) * sizeof(float));

    if (st) {
        return st;
    }
    s->q = memory;
    s->lse = s->q + heads * s->head_stride;
    s->from = (int32_t *)(s->lse + lse);
    s->to = s->from + list;
    s->scratch = s->lse + lse + 2 * list;
    see_keys(s);
    return STATUS_OK;
}

static struct columns_scratch scratch_of(const struct sums *s, int thread)
{
    float *k = s->scratch + (size_t)thread * s->scratch_size;
    float *scores = k + ATTENTION_TILE_KEYS * ((size_t)(s->args->head_dim + 63) / 64 * 64);
    float *lanes = scores + (size_t)ATTENTION_BLOCK_ROWS * ATTENTION_TILE_KEYS;

    return (struct columns_scratch){
        .k = k,
        .s = scores,
        .lanes = lanes,
        .peak = lanes + (size_t)COLUMNS_LSE_ROWS * ATTENTION_MAX_LANES,
    };
}

static struct columns_item item_of(const struct sums *s, int kv_head, int begin, int block, int end)
{
    size_t first = (size_t)kv_head * (size_t)s->group;

    return (struct columns_item){
        .args = s->args,
        .dtype = s->dtype,
        .kv_head = kv_head,
        .begin = begin,
        .end = end - begin < block ? end : begin + block,
        .head_stride = s->head_stride,
        .q = s->q + first * s->head_stride,
        .from = s->from,
        .to = s->to,
        .lse = s->lse + first * (size_t)s->args->rows,
    };
}

/* Row blocks of every query head. */
static void find_lse(const struct sums *s)
{
    const struct column_sums *args = s->args;
    int blocks = (args->rows + COLUMNS_LSE_ROWS - 1) / COLUMNS_LSE_ROWS;

#pragma omp parallel for num_threads(s->threads) schedule(dynamic, 1)
    for (int i = 0; i < blocks * args->q_heads; i++) {
        int head = i % args->q_heads;
        struct columns_item item = item_of(s, head / s->group, i / args->q_heads * COLUMNS_LSE_ROWS,
                                           COLUMNS_LSE_ROWS, args->rows);
        struct columns_scratch scratch = scratch_of(s, omp_get_thread_num());

        item.head = head % s->group;
        s->kernels->lse(&item, &scratch);
    }
}

static void scale_lse(const struct sums *s)
{
    size_t rows = (size_t)s->args->rows, heads = (size_t)s->args->q_heads;

    for (size_t i = 0; i < rows * heads; i++) {
        double lse = (double)s->args->lse[i];

        s->lse[i % heads * rows + i / heads] = (float)(lse * 1.4426950408889634);
    }
}

status cpu_column_sums(struct device *dev, const struct column_sums *args)
{
    struct sums s;
    status st = sums_open(&s, dev, args);

    if (st) {
        return st;
    }
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (int h = 0; h < args->kv_heads; h++) {
        struct columns_item item = item_of(&s, h, 0, 1, 1);

        s.kernels->load_rows(&item);
    }
    if (args->lse) {
        scale_lse(&s);
    } else {
        find_lse(&s);
    }
#pragma omp parallel for num_threads(s.threads) schedule(dynamic, 1)
    for (int i = 0; i < s.items; i++) {
        struct columns_item item =
            item_of(&s, i % args->kv_heads, i / args->kv_heads * COLUMNS_BLOCK_KEYS,
                    COLUMNS_BLOCK_KEYS, args->n_keys);
        struct columns_scratch scratch = scratch_of(&s, omp_get_thread_num());

        s.kernels->sums(&item, &scratch);
    }
    return STATUS_OK;
}
