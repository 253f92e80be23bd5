/* dot_scores.c - raw dot products of one row's queries with every key.
 *
 * The heads of a query group share their keys, so their queries are added up first and each key
 * is read once.  A key's score has one order of summation, whatever the number of threads. */
#include "kernels/cpu/cpu.h"

enum {
    DOT_LANES = 8,        /* head_dim is a multiple of it */
    DOT_BLOCK_KEYS = 256, /* keys of one head that are scored together */
};

/* q (kv_heads, head_dim) = the sum of each group's queries. */
static void add_groups(float *q, enum dtype dtype, const struct dot_scores *args)
{
    size_t d = (size_t)args->head_dim;
    size_t group = (size_t)(args->q_heads / args->kv_heads);

    for (size_t head = 0; head < (size_t)args->kv_heads; head++) {
        for (size_t c = 0; c < d; c++) {
            float sum = 0.0f;

            for (size_t h = head * group; h < (head + 1) * group; h++) {
                sum += act_load(dtype, args->q, h * d + c);
            }
            q[head * d + c] = sum;
        }
    }
}

static float add_lanes(const float *lanes)
{
    float sum = 0.0f;

    for (int i = 0; i < DOT_LANES; i++) {
        sum += lanes[i];
    }
    return sum;
}

static float dot_f32(const float *q, const float *k, size_t d)
{
    float lanes[DOT_LANES] = {0};

    for (size_t c = 0; c < d; c += DOT_LANES) {
        for (size_t i = 0; i < DOT_LANES; i++) {
            lanes[i] += q[c + i] * k[c + i];
        }
    }
    return add_lanes(lanes);
}

static float dot_bf16(const float *q, const bf16 *k, size_t d)
{
    float lanes[DOT_LANES] = {0};

    for (size_t c = 0; c < d; c += DOT_LANES) {
        for (size_t i = 0; i < DOT_LANES; i++) {
            lanes[i] += q[c + i] * bf16_to_float(k[c + i]);
        }
    }
    return add_lanes(lanes);
}

/* Keys begin..end of all heads. */
static void score_block(const struct dot_scores *args, enum dtype dtype, const float *q, int begin,
                        int end)
{
    size_t d = (size_t)args->head_dim;

    for (int head = 0; head < args->kv_heads; head++) {
        for (int j = begin; j < end; j++) {
            size_t at = (size_t)head * args->kv_stride + (size_t)j * d;
            const float *of_head = q + (size_t)head * d;
            float x = dtype == DTYPE_BF16 ? dot_bf16(of_head, (const bf16 *)args->k + at, d)
                                          : dot_f32(of_head, (const float *)args->k + at, d);

            args->out[j] = head == 0 ? x : args->out[j] + x;
        }
    }
}

size_t cpu_dot_scores_workspace(int kv_heads, int head_dim)
{
    return (size_t)kv_heads * (size_t)head_dim * sizeof(float);
}

status cpu_dot_scores(struct device *dev, const struct dot_scores *args)
{
    size_t bytes = cpu_dot_scores_workspace(args->kv_heads, args->head_dim);
    int blocks = (args->n_keys + DOT_BLOCK_KEYS - 1) / DOT_BLOCK_KEYS;
    void *memory;
    status st = cpu_workspace(dev, &memory, bytes);

    if (st) {
        return st;
    }
    float *q = memory;
    add_groups(q, dev->dtype, args);
#pragma omp parallel for schedule(static) \
    num_threads(cpu_threads(dev, (size_t)args->n_keys *bytes, 1 << 18))
    for (int b = 0; b < blocks; b++) {
        int begin = b * DOT_BLOCK_KEYS;
        int end = args->n_keys - begin < DOT_BLOCK_KEYS ? args->n_keys : begin + DOT_BLOCK_KEYS;

        score_block(args, dev->dtype, q, begin, end);
    }
    return STATUS_OK;
}
