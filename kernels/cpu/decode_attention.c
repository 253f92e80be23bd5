/* decode_attention.c - one query row a sequence over the pages of its cache: splits of every
 * (sequence, cache head) over the threads, then their sums in order. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/decode.h"

#include <math.h>
#include <omp.h>

struct splits {
    const struct decode_attention *args;
    enum dtype dtype;
    int group, heads, items; /* heads: of the cache, of all sequences */
    size_t stride, start_size, q_size, sinks_size;
    size_t part_size;    /* floats of one item: peak and sum (group), values (group, stride) */
    size_t scratch_size; /* floats of one thread */
    int32_t *start;      /* (heads + 1) first item of a cache head */
    float *q;            /* (heads, group, stride) */
    float *q_sinks;      /* likewise, where there are sinks */
    float *parts;        /* (items, part_size) */
    float *scratch;      /* (threads, scratch_size) */
};

static size_t whole_lines(size_t floats)
{
    return (floats + 15) / 16 * 16;
}

static int splits_of(int rows)
{
    return (rows + DECODE_SPLIT_ROWS - 1) / DECODE_SPLIT_ROWS;
}

/* Of a cache head of all sequences'. */
static int sinks_of(const struct decode_attention *args, int head)
{
    return args->sinks ? args->sinks[head / args->cache_heads] : 0;
}

static int split_count(const struct decode_attention *args, int head)
{
    int sinks = sinks_of(args, head);

    return splits_of(sinks) + splits_of(args->length[head] - args->first[head] - sinks);
}

/* Floats of everything; of `args` the lengths are not looked at. */
static size_t splits_size(struct splits *s, const struct device *dev,
                          const struct decode_attention *args, size_t items)
{
    int group = args->q_heads / args->cache_heads;
    int heads = args->rows * args->cache_heads;
    size_t lines = (size_t)group;

    *s = (struct splits){
        .args = args,
        .dtype = dev->dtype,
        .group = group,
        .heads = heads,
        .items = (int)items,
        .stride = whole_lines((size_t)args->head_dim),
    };
    s->part_size = whole_lines(2 * lines) + lines * s->stride;
    s->scratch_size = lines * (DECODE_TILE_ROWS + DECODE_MAX_LANES) + DECODE_MAX_LANES * s->stride;
    s->start_size = whole_lines((size_t)heads + 1);
    s->q_size = (size_t)heads * lines * s->stride;
    s->sinks_size = args->sinks ? s->q_size : 0;
    return s->start_size + s->q_size + s->sinks_size + items * s->part_size;
}

size_t cpu_decode_attention_workspace(const struct device *dev, const struct decode_attention *args,
                                      int keys)
{
    size_t splits = (size_t)keys / DECODE_SPLIT_ROWS + 2; /* of sinks too */
    struct splits s;
    size_t floats =
        splits_size(&s, dev, args, splits * (size_t)args->rows * (size_t)args->cache_heads);

    return (floats + (size_t)cpu_device_const(dev)->threads * s.scratch_size) * sizeof(float);
}

static status splits_open(struct splits *s, struct device *dev, const struct decode_attention *args,
                          int threads)
{
    size_t items = 0;
    void *memory;

    for (int i = 0; i < args->rows * args->cache_heads; i++) {
        items += (size_t)split_count(args, i);
    }
    size_t floats = splits_size(s, dev, args, items);
    status st =
        cpu_workspace(dev, &memory, (floats + (size_t)threads * s->scratch_size) * sizeof(float));
    if (st) {
        return st;
    }
    s->start = memory;
    s->q = (float *)memory + s->start_size;
    s->q_sinks = s->q + s->q_size;
    s->parts = s->q_sinks + s->sinks_size;
    s->scratch = s->parts + items * s->part_size;
    s->start[0] = 0;
    for (int i = 0; i < s->heads; i++) {
        s->start[i + 1] = s->start[i] + split_count(args, i);
    }
    return STATUS_OK;
}

/* The query heads of all cache heads, widened; zeros past head_dim. */
static void load_queries(const struct splits *s, float *to, const void *q)
{
    size_t d = (size_t)s->args->head_dim, n = (size_t)s->heads * (size_t)s->group;

    for (size_t h = 0; h < n; h++) {
        for (size_t c = 0; c < s->stride; c++) {
            to[h * s->stride + c] = c < d ? act_load(s->dtype, q, h * d + c) : 0.0f;
        }
    }
}

/* The cache head that item `item` belongs to. */
static int head_of(const struct splits *s, int item)
{
    int lo = 0, hi = s->heads - 1;

    while (lo < hi) {
        int mid = lo + (hi - lo + 1) / 2;

        if (s->start[mid] <= item) {
            lo = mid;
        } else {
            hi = mid - 1;
        }
    }
    return lo;
}

/* The rows of split number `number` of a head; whether these are sinks. */
static bool rows_of(const struct decode_attention *args, int head, int number, int *begin, int *end)
{
    int sinks = sinks_of(args, head);
    bool sink = number < splits_of(sinks);

    *begin = sink ? 0 : args->first[head] + sinks;
    *begin += (sink ? number : number - splits_of(sinks)) * DECODE_SPLIT_ROWS;
    *end = sink ? sinks : args->length[head];
    if (*end - *begin > DECODE_SPLIT_ROWS) {
        *end = *begin + DECODE_SPLIT_ROWS;
    }
    return sink;
}

static void run_item(const struct splits *s, const struct decode_kernels *kernels, int item,
                     int thread)
{
    const struct decode_attention *args = s->args;
    int head = head_of(s, item), begin, end;
    bool sink = rows_of(args, head, item - s->start[head], &begin, &end);
    float *part = s->parts + (size_t)item * s->part_size;
    float *scratch = s->scratch + (size_t)thread * s->scratch_size;
    size_t group = (size_t)s->group;
    struct decode_split split = {
        .pool = args->pool,
        .pages = args->pages[head],
        .dtype = s->dtype,
        .begin = begin,
        .end = end,
        .group = s->group,
        .stride = s->stride,
        .q = (sink ? s->q_sinks : s->q) + (size_t)head * group * s->stride,
        .queries = (const char *)(sink ? args->q_sinks : args->q) +
                   (size_t)head * group * (size_t)args->head_dim * dtype_bytes(s->dtype),
        .peak = part,
        .sum = part + s->group,
        .values = part + whole_lines(2 * group),
        .weights = scratch,
        .rows = scratch + group * (DECODE_TILE_ROWS + DECODE_MAX_LANES),
    };

    kernels->split(&split);
}

/* The splits of query head h of cache head i, in ascending order, become a row of out. */
static void combine(const struct splits *s, int i, int h)
{
    const struct decode_attention *args = s->args;
    size_t at = ((size_t)i * (size_t)s->group + (size_t)h) * (size_t)args->head_dim;
    size_t values = whole_lines(2 * (size_t)s->group) + (size_t)h * s->stride;
    const float *first = s->parts + (size_t)s->start[i] * s->part_size;
    int n = s->start[i + 1] - s->start[i];
    float out[OP_MAX_HEAD_DIM] = {0};
    float peak = first[h], sum = 0.0f;

    for (int j = 1; j < n; j++) {
        float here = first[(size_t)j * s->part_size + (size_t)h];
        peak = here > peak ? here : peak;
    }
    for (int j = 0; j < n; j++) {
        const float *part = first + (size_t)j * s->part_size;
        float scale = exp2f(part[h] - peak);

        sum += scale * part[s->group + h];
        for (int c = 0; c < args->head_dim; c++) {
            out[c] += scale * part[values + (size_t)c];
        }
    }
    for (int c = 0; c < args->head_dim; c++) {
        act_store(s->dtype, args->out, at + (size_t)c, out[c] / sum);
    }
}

status cpu_decode_attention(struct device *dev, const struct decode_attention *args)
{
    const struct decode_kernels *kernels = cpu_device(dev)->isa->decode;
    size_t rows = 0;
    struct splits s;

    for (int i = 0; i < args->rows * args->cache_heads; i++) {
        rows += (size_t)(args->length[i] - args->first[i]);
    }
    /* some 10 microseconds of work pay for waking a thread */
    int threads = cpu_threads(dev, rows, 256);
    status st = splits_open(&s, dev, args, threads);
    if (st) {
        return st;
    }
    load_queries(&s, s.q, args->q);
    if (args->sinks) {
        load_queries(&s, s.q_sinks, args->q_sinks);
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < s.items; i++) {
            run_item(&s, kernels, i, omp_get_thread_num());
        }
#pragma omp for schedule(static)
        for (int i = 0; i < s.heads; i++) {
            for (int h = 0; h < s.group; h++) {
                combine(&s, i, h);
            }
        }
    }
    return STATUS_OK;
}
