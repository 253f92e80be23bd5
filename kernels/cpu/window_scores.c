/* window_scores.c - how much the last rows of a prompt look at each earlier key: the passes of
 * window.h over all KV heads and blocks of keys. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/window.h"

#include <float.h>
#include <math.h>
#include <omp.h>

/* Everything that passes share; sizes in floats. */
struct passes {
    const struct window_scores *args;
    enum dtype dtype;
    const struct window_kernels *kernels;
    int rows, blocks, threads;
    size_t q_size, stats_size, whole_size, scratch_size;
    float *q;       /* (kv_heads, rows padded, head_dim) */
    float *stats;   /* (blocks, kv_heads, 2, rows): peaks, sums */
    float *whole;   /* (kv_heads, 2, rows): offsets and scales of all keys */
    int32_t *from;  /* (window) */
    float *scratch; /* (threads) */
};

static size_t whole_lines(size_t floats)
{
    return (floats + 15) / 16 * 16;
}

static struct window_scratch scratch_of(const struct passes *p, int thread)
{
    float *k = p->scratch + (size_t)thread * p->scratch_size;
    float *s = k + ATTENTION_TILE_KEYS * (size_t)p->args->head_dim;

    return (struct window_scratch){
        .k = k, .s = s, .lanes = s + (size_t)ATTENTION_BLOCK_ROWS * ATTENTION_TILE_KEYS};
}

/* Floats of everything. */
static size_t passes_size(struct passes *p, const struct device *dev,
                          const struct window_scores *args)
{
    size_t rows = (size_t)(args->q_heads / args->kv_heads) * (size_t)args->window;
    size_t kv_heads = (size_t)args->kv_heads, d = (size_t)args->head_dim;
    size_t blocks = ((size_t)args->n_keys + WINDOW_BLOCK_KEYS - 1) / WINDOW_BLOCK_KEYS;
    size_t items = blocks * kv_heads;

    *p = (struct passes){
        .args = args,
        .dtype = dev->dtype,
        .kernels = cpu_device_const(dev)->isa->window,
        .rows = (int)rows,
        .blocks = (int)blocks,
        .threads = cpu_threads(dev, items, 1),
        .q_size = whole_lines((rows + ATTENTION_BLOCK_ROWS) * d),
        .stats_size = whole_lines(items * 2 * rows),
        .whole_size = whole_lines(kv_heads * 2 * rows),
        .scratch_size = whole_lines(ATTENTION_TILE_KEYS * (d + ATTENTION_BLOCK_ROWS) +
                                    rows * ATTENTION_MAX_LANES),
    };
    return kv_heads * p->q_size + p->stats_size + p->whole_size +
           whole_lines((size_t)args->window) + (size_t)p->threads * p->scratch_size;
}

size_t cpu_window_scores_workspace(const struct device *dev, const struct window_scores *args)
{
    struct passes p;

    return passes_size(&p, dev, args) * sizeof(float);
}

static status passes_open(struct passes *p, struct device *dev, const struct window_scores *args)
{
    size_t kv_heads = (size_t)args->kv_heads;
    void *memory;
    status st = cpu_workspace(dev, &memory, passes_size(p, dev, args) * sizeof(float));

    if (st) {
        return st;
    }
    p->q = memory;
    p->stats = p->q + kv_heads * p->q_size;
    p->whole = p->stats + p->stats_size;
    p->from = (int32_t *)(p->whole + p->whole_size);
    p->scratch = p->whole + p->whole_size + whole_lines((size_t)args->window);
    memset(p->q, 0, kv_heads * p->q_size * sizeof(float));
    for (int t = 0; t < args->window; t++) {
        p->from[t] = attention_first_key(args->positions, args->n_keys - args->window + t,
                                         args->sliding_window);
    }
    return STATUS_OK;
}

static float *stats_of(const struct passes *p, int kv_head, int block)
{
    size_t item = (size_t)block * (size_t)p->args->kv_heads + (size_t)kv_head;

    return p->stats + item * 2 * (size_t)p->rows;
}

static float *whole_of(const struct passes *p, int kv_head)
{
    return p->whole + (size_t)kv_head * 2 * (size_t)p->rows;
}

static struct window_block block_of(const struct passes *p, int kv_head, int block)
{
    float *stats = stats_of(p, kv_head, block), *whole = whole_of(p, kv_head);
    int begin = block * WINDOW_BLOCK_KEYS, n = p->args->n_keys;

    return (struct window_block){
        .args = p->args,
        .dtype = p->dtype,
        .kv_head = kv_head,
        .begin = begin,
        .end = n - begin < WINDOW_BLOCK_KEYS ? n : begin + WINDOW_BLOCK_KEYS,
        .rows = p->rows,
        .q = p->q + (size_t)kv_head * p->q_size,
        .from = p->from,
        .peak = stats,
        .sum = stats + p->rows,
        .offset = whole,
        .scale = whole + p->rows,
    };
}

/* Peak and 1 / sum of every row, over the blocks in ascending order. */
static void combine(const struct passes *p, int kv_head)
{
    /* rounded as the weights of both passes were */
    float to_log2 = (float)(1.4426950408889634 / sqrt(p->args->head_dim));
    float *whole = whole_of(p, kv_head);

    for (int f = 0; f < p->rows; f++) {
        float peak = -FLT_MAX;
        double sum = 0.0;

        for (int b = 0; b < p->blocks; b++) {
            float here = stats_of(p, kv_head, b)[f];
            peak = here > peak ? here : peak;
        }
        for (int b = 0; b < p->blocks; b++) {
            const float *stats = stats_of(p, kv_head, b);

            float here = stats[f] * to_log2, most = peak * to_log2;

            sum += (double)stats[p->rows + f] * exp2((double)here - (double)most);
        }
        whole[f] = peak * to_log2;
        whole[p->rows + f] = (float)(1.0 / sum);
    }
}

/* The same where attention has left the log of the sum. */
static void take_lse(const struct passes *p, int kv_head)
{
    size_t heads = (size_t)p->args->q_heads, group = heads / (size_t)p->args->kv_heads;
    float *whole = whole_of(p, kv_head);

    for (int f = 0; f < p->rows; f++) {
        size_t head = (size_t)kv_head * group + (size_t)(f / p->args->window);
        size_t token = (size_t)(f % p->args->window);

        whole[f] = (float)((double)p->args->lse[token * heads + head] * 1.4426950408889634);
        whole[p->rows + f] = 1.0F;
    }
}

/* A pass of one thread of the team over its blocks. */
static void pass(const struct passes *p, const struct window_scratch *scratch,
                 void (*run)(const struct window_block *, const struct window_scratch *))
{
    const int items = p->blocks * p->args->kv_heads;

#pragma omp for schedule(dynamic, 1)
    for (int i = 0; i < items; i++) {
        struct window_block block = block_of(p, i % p->args->kv_heads, i / p->args->kv_heads);

        run(&block, scratch);
    }
}

status cpu_window_scores(struct device *dev, const struct window_scores *args)
{
    struct passes p;
    status st = passes_open(&p, dev, args);

    if (st) {
        return st;
    }
    for (int h = 0; h < args->kv_heads; h++) {
        struct window_block block = block_of(&p, h, 0);

        p.kernels->load_rows(&block, p.q + (size_t)h * p.q_size);
    }
#pragma omp parallel num_threads(p.threads)
    {
        struct window_scratch scratch = scratch_of(&p, omp_get_thread_num());

        if (!args->lse) {
            pass(&p, &scratch, p.kernels->sums);
        }
#pragma omp for schedule(static)
        for (int h = 0; h < args->kv_heads; h++) {
            (args->lse ? take_lse : combine)(&p, h);
        }
        pass(&p, &scratch, p.kernels->scores);
    }
    return STATUS_OK;
}
