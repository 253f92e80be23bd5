#include "tests/definitions/attention.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

static double dot(const float *a, const float *b, int n)
{
    double sum = 0.0;

    for (int i = 0; i < n; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    return sum;
}

/* Logits become probabilities; hidden ones are -inf.  Returns the log of the sum. */
static double softmax(double *p, int n)
{
    double peak = -INFINITY, sum = 0.0;

    for (int j = 0; j < n; j++) {
        peak = p[j] > peak ? p[j] : peak;
    }
    for (int j = 0; j < n; j++) {
        p[j] = exp(p[j] - peak);
        sum += p[j];
    }
    for (int j = 0; j < n; j++) {
        p[j] /= sum;
    }
    return peak + log(sum);
}

static double *many(int n)
{
    double *p = calloc((size_t)n, sizeof(*p));

    assert(p);
    return p;
}

static bool visible(const int32_t *positions, int i, int j, int sliding_window)
{
    return j <= i && (sliding_window == 0 || positions[i] - positions[j] < sliding_window);
}

static void attend(double *out, const double *p, const float *v, int n, int d)
{
    for (int c = 0; c < d; c++) {
        out[c] = 0.0;
        for (int j = 0; j < n; j++) {
            out[c] += p[j] * (double)v[(size_t)j * (size_t)d + (size_t)c];
        }
    }
}

void define_attention(double *out, double *lse, const struct attention *args)
{
    int d = args->head_dim, group = args->q_heads / args->kv_heads;
    double *p = many(args->n_keys);

    for (int r = 0; r < args->rows; r++) {
        int i = args->q_index ? args->q_index[r] : args->first_row + r;

        for (int h = 0; h < args->q_heads; h++) {
            size_t pair = (size_t)r * (size_t)args->q_heads + (size_t)h, at = pair * (size_t)d;
            size_t head = (size_t)(h / group) * args->kv_stride;
            const float *q = (const float *)args->q + at;
            const float *k = (const float *)args->k + head;

            for (int j = 0; j <= i; j++) {
                p[j] = visible(args->positions, i, j, args->sliding_window)
                           ? dot(q, k + (size_t)j * (size_t)d, d) / sqrt(d)
                           : -INFINITY;
            }
            lse[pair] = softmax(p, i + 1);
            attend(out + at, p, (const float *)args->v + head, i + 1, d);
        }
    }
    free(p);
}

void define_window_scores(double *out, const struct window_scores *args)
{
    int d = args->head_dim, group = args->q_heads / args->kv_heads;
    int earlier = args->n_keys - args->window;
    double *p = many(args->n_keys);

    for (int h = 0; h < args->q_heads; h++) {
        const float *k = (const float *)args->k + (size_t)(h / group) * args->kv_stride;
        double *row = out + (size_t)h * (size_t)earlier;

        for (int t = 0; t < args->window; t++) {
            int i = earlier + t;
            const float *q = (const float *)args->q +
                             ((size_t)t * (size_t)args->q_heads + (size_t)h) * (size_t)d;

            for (int j = 0; j <= i; j++) {
                p[j] = visible(args->positions, i, j, args->sliding_window)
                           ? dot(q, k + (size_t)j * (size_t)d, d) / sqrt(d)
                           : -INFINITY;
            }
            softmax(p, i + 1);
            double weight = args->weights ? (double)args->weights[t] : 1.0;
            for (int j = 0; j < earlier; j++) {
                row[j] = (t == 0 ? 0.0 : row[j]) + weight * p[j];
            }
        }
    }
    free(p);
}

/* p (n_keys) = the attention of row t of head h. */
static void attention_row(double *p, const struct column_sums *args, int h, int t)
{
    int d = args->head_dim, group = args->q_heads / args->kv_heads;
    int i = args->first_row + t;
    const float *k = (const float *)args->k + (size_t)(h / group) * args->kv_stride;
    const float *q =
        (const float *)args->q + ((size_t)t * (size_t)args->q_heads + (size_t)h) * (size_t)d;

    for (int j = 0; j < args->n_keys; j++) {
        bool seen = i < args->open_rows || visible(args->positions, i, j, args->sliding_window);
        p[j] = seen ? dot(q, k + (size_t)j * (size_t)d, d) / sqrt(d) : -INFINITY;
    }
    softmax(p, args->n_keys);
}

void define_column_sums(double *out, double *local, const struct column_sums *args)
{
    double *p = many(args->n_keys);

    for (int h = 0; h < args->q_heads; h++) {
        size_t row = (size_t)h * args->stride;

        for (int t = 0; t < args->rows; t++) {
            attention_row(p, args, h, t);
            for (int j = 0; j < args->n_keys; j++) {
                out[row + (size_t)j] += p[j];
            }
            for (int j = 0; args->local && j < args->n_keys; j++) {
                local[row + (size_t)j] += args->first_row + t - j < args->n_local ? p[j] : 0.0;
            }
        }
    }
    free(p);
}

void define_dot_scores(double *out, const struct dot_scores *args)
{
    int d = args->head_dim, group = args->q_heads / args->kv_heads;

    for (int j = 0; j < args->n_keys; j++) {
        out[j] = 0.0;
        for (int h = 0; h < args->q_heads; h++) {
            const float *k = (const float *)args->k + (size_t)(h / group) * args->kv_stride;

            out[j] +=
                dot((const float *)args->q + (size_t)h * (size_t)d, k + (size_t)j * (size_t)d, d);
        }
    }
}

/* The row of the pool that holds cache row i. */
static size_t pool_row(const struct kv_pool *pool, const int32_t *pages, int i)
{
    return (size_t)pages[i / pool->page_rows] * (size_t)pool->page_rows +
           (size_t)(i % pool->page_rows);
}

static void decode_head(double *out, const struct decode_attention *args, int r, int h)
{
    int d = args->head_dim, group = args->q_heads / args->cache_heads;
    size_t head = (size_t)r * (size_t)args->cache_heads + (size_t)(h / group);
    size_t at = ((size_t)r * (size_t)args->q_heads + (size_t)h) * (size_t)d;
    const int32_t *pages = args->pages[head];
    int first = args->first[head], n = args->length[head] - first;
    int sinks = args->sinks ? args->sinks[r] : 0;
    double *p = many(n);

    for (int j = 0; j < n; j++) {
        size_t row = pool_row(args->pool, pages, first + j);

        const float *q = (const float *)(j < sinks ? args->q_sinks : args->q) + at;

        p[j] = dot(q, (const float *)args->pool->k + row * (size_t)d, d) / sqrt(d);
    }
    softmax(p, n);
    for (int c = 0; c < d; c++) {
        out[at + (size_t)c] = 0.0;
    }
    for (int j = 0; j < n; j++) {
        size_t row = pool_row(args->pool, pages, first + j);

        for (int c = 0; c < d; c++) {
            const float *v = (const float *)args->pool->v + row * (size_t)d;

            out[at + (size_t)c] += p[j] * (double)v[c];
        }
    }
    free(p);
}

void define_decode_attention(double *out, const struct decode_attention *args)
{
    for (int r = 0; r < args->rows; r++) {
        for (int h = 0; h < args->q_heads; h++) {
            decode_head(out, args, r, h);
        }
    }
}
