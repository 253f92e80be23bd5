/* decode_mass.c - the probabilities behind decode attention, for methods that add them up: one
 * item is one cache head, all its rows. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode.h"

#include <omp.h>

struct masses {
    const struct decode_attention *args;
    enum dtype dtype;
    const struct decode_kernels *kernels;
    int group;
    size_t q_stride;
    size_t p_stride; /* of a query head's probabilities: the longest head in whole lines */
    size_t each;     /* floats of a thread */
    float *memory;
};

static size_t whole_lines(size_t floats)
{
    return (floats + 15) / 16 * 16;
}

/* Floats of a thread. */
static size_t size_of_each(struct masses *m, int group, int head_dim, size_t longest)
{
    m->group = group;
    m->q_stride = whole_lines((size_t)head_dim);
    m->p_stride = whole_lines(longest);
    return (size_t)group * (m->q_stride + m->p_stride + DECODE_TILE_ROWS) +
           DECODE_MAX_LANES * m->q_stride;
}

size_t cpu_decode_mass_workspace(const struct device *dev, int group, int head_dim, int keys)
{
    struct masses m;

    return (size_t)cpu_device_const(dev)->threads *
           size_of_each(&m, group, head_dim, (size_t)keys) * sizeof(float);
}

static void load_queries(const struct masses *m, float *q, int head)
{
    size_t d = (size_t)m->args->head_dim, group = (size_t)m->group;

    for (size_t h = 0; h < group; h++) {
        for (size_t c = 0; c < m->q_stride; c++) {
            size_t at = ((size_t)head * group + h) * d + c;

            q[h * m->q_stride + c] = c < d ? act_load(m->dtype, m->args->q, at) : 0.0f;
        }
    }
}

static float reduce(const float *p, size_t stride, int group, enum group_reduce how)
{
    float total = p[0];

    for (int h = 1; h < group; h++) {
        float x = p[(size_t)h * stride];

        if (how == GROUP_MAX) {
            total = x > total ? x : total;
        } else {
            total += x;
        }
    }
    return how == GROUP_MEAN ? total / (float)group : total;
}

static void run_head(const struct masses *m, float *out, int head, int thread,
                     enum group_reduce how)
{
    const struct decode_attention *args = m->args;
    size_t group = (size_t)m->group;
    float *q = m->memory + (size_t)thread * m->each;
    float *p = q + group * m->q_stride;
    float *weights = p + group * m->p_stride;
    struct decode_split split = {
        .pool = args->pool,
        .pages = args->pages[head],
        .dtype = m->dtype,
        .begin = args->first[head],
        .end = args->length[head],
        .group = m->group,
        .stride = m->p_stride,
        .q = q,
        .values = p,
        .weights = weights,
        .rows = weights + group * DECODE_TILE_ROWS,
    };

    load_queries(m, q, head);
    m->kernels->mass(&split, m->q_stride);
    for (int i = 0; i < split.begin; i++) {
        out[i] = 0.0f;
    }
    for (int i = split.begin; i < split.end; i++) {
        out[i] = reduce(p + (i - split.begin), m->p_stride, m->group, how);
    }
}

status cpu_decode_mass(struct device *dev, float *out, size_t stride,
                       const struct decode_attention *args, enum group_reduce how)
{
    size_t rows = 0, longest = 0;
    void *memory;

    for (int i = 0; i < args->cache_heads; i++) {
        size_t n = (size_t)(args->length[i] - args->first[i]);

        rows += n;
        longest = n > longest ? n : longest;
    }
    int threads = cpu_threads(dev, rows, 256);
    struct masses m = {
        .args = args,
        .dtype = dev->dtype,
        .kernels = cpu_device(dev)->isa->decode,
    };
    m.each = size_of_each(&m, args->q_heads / args->cache_heads, args->head_dim, longest);
    status st = cpu_workspace(dev, &memory, (size_t)threads * m.each * sizeof(float));
    if (st) {
        return st;
    }
    m.memory = memory;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int i = 0; i < args->cache_heads; i++) {
        run_head(&m, out + (size_t)i * stride, i, omp_get_thread_num(), how);
    }
    return STATUS_OK;
}
