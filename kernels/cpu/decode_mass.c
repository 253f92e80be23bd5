/* decode_mass.c - the probabilities behind decode attention, for methods that add them up: one
 * item is one cache head, all its rows. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/kv.h"

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

/* The probabilities of a cache head's query heads, in the thread's memory: row first + i of query
 * head h at h * p_stride + i. */
static const float *find_masses(const struct masses *m, int head, int thread)
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
    return p;
}

static void join_head(const struct masses *m, int head, enum group_reduce how)
{
    const struct kv_pool *pool = m->args->pool;
    const int32_t *pages = m->args->pages[head];
    int first = m->args->first[head], end = m->args->length[head];
    const float *p = find_masses(m, head, omp_get_thread_num());

    for (int i = first; i < end; i++) {
        float *mass = &pool->notes[kv_row_of(pool, pages, i)].mass;
        *mass = (i < end - 1 ? *mass : 0.0f) + reduce(p + (i - first), m->p_stride, m->group, how);
    }
}

/* `rules`: whose heads count. */
static status open_masses(struct masses *m, struct device *dev, const struct decode_attention *args,
                          const struct evict_rule *rules, int *threads)
{
    size_t rows = 0, longest = 0;
    void *memory;

    for (int i = 0; i < args->rows * args->cache_heads; i++) {
        size_t n = rules[i].joins ? (size_t)(args->length[i] - args->first[i]) : 0;

        rows += n;
        longest = n > longest ? n : longest;
    }
    *m = (struct masses){
        .args = args,
        .dtype = dev->dtype,
        .kernels = cpu_device(dev)->isa->decode,
    };
    *threads = cpu_threads(dev, rows, 256);
    m->each = size_of_each(m, args->q_heads / args->cache_heads, args->head_dim, longest);
    status st = cpu_workspace(dev, &memory, (size_t)*threads * m->each * sizeof(float));
    m->memory = st ? NULL : memory;
    return st;
}

status cpu_join_mass(struct device *dev, const struct decode_attention *args,
                     const struct evict_rule *rules)
{
    struct masses m;
    int threads;
    status st = open_masses(&m, dev, args, rules, &threads);

    if (st) {
        return st;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int i = 0; i < args->rows * args->cache_heads; i++) {
        if (rules[i].joins) {
            join_head(&m, i, (enum group_reduce)rules[i].joins);
        }
    }
    return STATUS_OK;
}
