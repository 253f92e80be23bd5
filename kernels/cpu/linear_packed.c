#include "kernels/cpu/linear_packed.h"

#include "kernels/cpu/cpu.h"

#include <omp.h>

enum { LINE = 64 };

struct packed_job {
    const struct linear_packed_kernels *kernels;
    const bf16 *x;
    const struct matrix *w;
    void *out;
    bool wide;
    int rows, blocks, pairs;
    uint32_t *packed_x; /* blocks, each (pairs, PACKED_ROWS) at most */
    int next;           /* feature that no thread has taken */
};

/* Of one thread, in words. */
static size_t features_words(void)
{
    return (size_t)PACKED_PAIRS * PACKED_FEATURES;
}

static size_t sums_words(const struct packed_job *job)
{
    return job->pairs > PACKED_PAIRS ? (size_t)job->blocks * PACKED_ROWS * PACKED_FEATURES : 0;
}

static int rows_of_block(const struct packed_job *job, int block)
{
    int rest = job->rows - block * PACKED_ROWS;

    return rest < PACKED_ROWS ? rest : PACKED_ROWS;
}

static int packed_rows_of_block(const struct packed_job *job, int block)
{
    return (rows_of_block(job, block) + PACKED_ROWS_STEP - 1) / PACKED_ROWS_STEP * PACKED_ROWS_STEP;
}

static int pairs_from(const struct packed_job *job, int pair)
{
    return job->pairs - pair < PACKED_PAIRS ? job->pairs - pair : PACKED_PAIRS;
}

static uint32_t *packed_block(const struct packed_job *job, int block)
{
    return job->packed_x + (size_t)block * PACKED_ROWS * (size_t)job->pairs;
}

static void pack_block(const struct packed_job *job, int block)
{
    size_t cols = (size_t)job->w->cols;

    job->kernels->pack_rows(packed_block(job, block), job->x + (size_t)block * PACKED_ROWS * cols,
                            cols, rows_of_block(job, block), packed_rows_of_block(job, block),
                            job->w->cols);
}

static int features_from(const struct packed_job *job, int first)
{
    int rest = job->w->rows - first;

    return rest < PACKED_FEATURES ? rest : PACKED_FEATURES;
}

/* The features from `next` are needed soon: a part of them for each block of rows. */
static void fetch(const struct packed_job *job, int next, int pair, int pairs, int block)
{
    const struct matrix *w = job->w;
    size_t bytes = (size_t)pairs * sizeof(uint32_t);
    size_t lines = (bytes + LINE - 1) / LINE;
    size_t all = lines * (size_t)features_from(job, next);
    size_t blocks = (size_t)job->blocks, at = all * (size_t)block / blocks;
    size_t end = all * ((size_t)block + 1) / blocks, line = at % lines;
    const bf16 *row =
        (const bf16 *)w->data + ((size_t)next + at / lines) * w->stride + 2 * (size_t)pair;

    for (; at < end; at++) {
        __builtin_prefetch((const char *)row + line * LINE, 0, 2);
        if (++line == lines) {
            line = 0;
            row += w->stride;
        }
    }
}

/* One pass along the columns: all rows times the features from `first`; `memory` is the thread's
 * own.  What comes next is fetched meanwhile: features from `next`, columns from `next_pair`. */
static void pass(const struct packed_job *job, struct packed_tile *tile, int first, int pair,
                 uint32_t *memory, int next, int next_pair)
{
    const struct matrix *w = job->w;
    float *sums = (float *)(memory + features_words());
    int next_pairs = pairs_from(job, next_pair);

    tile->pairs = pairs_from(job, pair);
    tile->first = pair == 0;
    tile->last = pair + tile->pairs == job->pairs;
    job->kernels->pack_features(
        memory, (const bf16 *)w->data + (size_t)first * w->stride + 2 * (size_t)pair, w->stride,
        tile->features, tile->last ? w->cols - 2 * pair : 2 * tile->pairs);
    for (int block = 0; block < job->blocks; block++) {
        size_t at = (size_t)block * PACKED_ROWS * tile->out_stride + (size_t)first;

        tile->block_rows = packed_rows_of_block(job, block);
        tile->rows = rows_of_block(job, block);
        tile->x = packed_block(job, block) + (size_t)pair * (size_t)tile->block_rows;
        tile->sums = sums + (size_t)block * PACKED_ROWS * PACKED_FEATURES;
        tile->out = (char *)job->out + at * (job->wide ? sizeof(float) : sizeof(bf16));
        if (next < w->rows) {
            fetch(job, next, next_pair, next_pairs, block);
        }
        job->kernels->product(tile);
    }
}

/* All rows times the features from `first`. */
static void features_of_all(const struct packed_job *job, int first, int next, uint32_t *memory)
{
    struct packed_tile tile = {
        .w = memory,
        .out_stride = (size_t)job->w->rows,
        .features = features_from(job, first),
        .wide = job->wide,
    };

    for (int pair = 0; pair < job->pairs; pair += PACKED_PAIRS) {
        bool more = pair + PACKED_PAIRS < job->pairs;

        pass(job, &tile, first, pair, memory, more ? first : next, more ? pair + PACKED_PAIRS : 0);
    }
}

static int take_features(struct packed_job *job)
{
    int first;

#pragma omp atomic capture
    {
        first = job->next;
        job->next += PACKED_FEATURES;
    }
    return first;
}

/* Until none is left.  The next ones are taken early, to be fetched. */
static void work_on_features(struct packed_job *job, uint32_t *memory)
{
    int first = take_features(job);

    while (first < job->w->rows) {
        int next = take_features(job);

        features_of_all(job, first, next, memory);
        first = next;
    }
}

status linear_packed(struct device *dev, void *out, enum dtype out_dtype, const bf16 *x,
                     const struct matrix *w, int rows)
{
    struct packed_job job = {
        .kernels = cpu_device(dev)->isa->linear_packed,
        .x = x,
        .w = w,
        .out = out,
        .wide = out_dtype == DTYPE_F32,
        .rows = rows,
        .blocks = (rows + PACKED_ROWS - 1) / PACKED_ROWS,
        .pairs = (w->cols + 1) / 2,
    };
    int threads = cpu_device(dev)->threads;
    size_t own = features_words() + sums_words(&job);
    size_t x_words = ((size_t)job.blocks * PACKED_ROWS * (size_t)job.pairs + 15) / 16 * 16;
    void *memory;
    status st = cpu_workspace(dev, &memory, ((size_t)threads * own + x_words) * sizeof(uint32_t));

    if (st) {
        return st;
    }
    job.packed_x = (uint32_t *)memory + (size_t)threads * own;
#pragma omp parallel num_threads(threads)
    {
        uint32_t *mine = (uint32_t *)memory + (size_t)omp_get_thread_num() * own;

#pragma omp for schedule(static)
        for (int block = 0; block < job.blocks; block++) {
            pack_block(&job, block);
        }
        work_on_features(&job, mine);
    }
    return STATUS_OK;
}
