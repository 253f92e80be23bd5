/* window_template.h - one block of keys of window scores; included once by each window_<isa>.c. */
#ifndef KERNELS_CPU_WINDOW_TEMPLATE_H
#define KERNELS_CPU_WINDOW_TEMPLATE_H

#include <float.h>
#include <math.h>

enum { WINDOW_VECS = ATTENTION_TILE_KEYS / VEC_LANES };

static float window_to_log2(const struct window_block *b)
{
    return (float)(1.4426950408889634 / sqrt(b->args->head_dim));
}

static void window_load_rows(const struct window_block *b, float *q)
{
    const struct window_scores *args = b->args;
    size_t d = (size_t)args->head_dim;
    int group = args->q_heads / args->kv_heads;

    for (int f = 0; f < b->rows; f++) {
        size_t head = (size_t)b->kv_head * (size_t)group + (size_t)(f / args->window);
        size_t token = (size_t)(f % args->window);

        units_load(q + (size_t)f * d, b->dtype, args->q, (token * (size_t)args->q_heads + head) * d,
                   args->head_dim);
    }
}

static void window_pack(const struct window_block *b, const struct window_scratch *my, int key)
{
    const struct window_scores *args = b->args;
    size_t at = (size_t)b->kv_head * args->kv_stride + (size_t)key * (size_t)args->head_dim;
    int n = b->end - key < ATTENTION_TILE_KEYS ? b->end - key : ATTENTION_TILE_KEYS;

    pack_keys(my->k, b->dtype, args->k, at, n, args->head_dim, args->head_dim);
}

static void window_products(const struct window_block *b, const struct window_scratch *my, int f0)
{
    size_t d = (size_t)b->args->head_dim;

    mm_scores(my->s, b->q + (size_t)f0 * d, d, my->k, b->args->head_dim);
}

/* The scores of row f in the tile at `key`, hidden ones -FLT_MAX.  False: all are hidden. */
static inline bool window_row(vec x[WINDOW_VECS], const struct window_block *b, const float *s,
                              int f, int key)
{
    int t = f % b->args->window;
    int hi = b->args->n_keys - b->args->window + t + 1 - key, lo = b->from[t] - key;

    hi = hi < b->end - key ? hi : b->end - key;
    if (hi <= 0 || lo >= ATTENTION_TILE_KEYS) {
        return false;
    }
    for (int i = 0; i < WINDOW_VECS; i++) {
        x[i] = vec_between(vec_load(s + (size_t)i * VEC_LANES), -FLT_MAX, lo - i * VEC_LANES,
                           hi - i * VEC_LANES);
    }
    return true;
}

static inline vec window_weight(vec x, float to_log2, float offset)
{
    return vec_exp2(vec_fma(x, vec_set1(to_log2), vec_set1(-offset)));
}

static void window_add_row(const struct window_block *b, float *lanes, const vec *x, int f)
{
    float to_log2 = window_to_log2(b);
    vec top = x[0], sum = vec_load(lanes);

    for (int i = 1; i < WINDOW_VECS; i++) {
        top = vec_max(top, x[i]);
    }
    float peak = vec_hmax(top);
    if (peak > b->peak[f]) {
        sum = vec_mul(sum, vec_exp2(vec_set1(b->peak[f] * to_log2 - peak * to_log2)));
        b->peak[f] = peak;
    }
    for (int i = 0; i < WINDOW_VECS; i++) {
        sum = vec_add(sum, window_weight(x[i], to_log2, b->peak[f] * to_log2));
    }
    vec_store(lanes, sum);
}

static void window_sums(const struct window_block *b, const struct window_scratch *my)
{
    memset(my->lanes, 0, (size_t)b->rows * VEC_LANES * sizeof(*my->lanes));
    for (int f = 0; f < b->rows; f++) {
        b->peak[f] = -FLT_MAX;
    }
    for (int key = b->begin; key < b->end; key += ATTENTION_TILE_KEYS) {
        window_pack(b, my, key);
        for (int f = 0; f < b->rows; f++) {
            const float *s = my->s + (size_t)(f % BLOCK_ROWS) * ATTENTION_TILE_KEYS;
            vec x[WINDOW_VECS];

            if (f % BLOCK_ROWS == 0) {
                window_products(b, my, f);
            }
            if (window_row(x, b, s, f, key)) {
                window_add_row(b, my->lanes + (size_t)f * VEC_LANES, x, f);
            }
        }
    }
    for (int f = 0; f < b->rows; f++) {
        b->sum[f] = vec_hsum(vec_load(my->lanes + (size_t)f * VEC_LANES));
    }
}

/* The scores of one head for a tile: keys of the window itself are left out. */
static void window_store(const struct window_block *b, int f, int key, const vec *total)
{
    const struct window_scores *args = b->args;
    size_t group = (size_t)(args->q_heads / args->kv_heads);
    size_t head = (size_t)b->kv_head * group + (size_t)(f / args->window);
    size_t earlier = (size_t)(args->n_keys - args->window);
    float tile[ATTENTION_TILE_KEYS];

    for (size_t i = 0; i < WINDOW_VECS; i++) {
        vec_store(tile + i * VEC_LANES, total[i]);
    }
    if ((size_t)key < earlier) {
        size_t n = earlier - (size_t)key;

        n = n < ATTENTION_TILE_KEYS ? n : ATTENTION_TILE_KEYS;
        memcpy(args->out + head * earlier + (size_t)key, tile, n * sizeof(*tile));
    }
}

static void window_scores_tile(const struct window_block *b, const struct window_scratch *my,
                               int key)
{
    const float *weights = b->args->weights;
    float to_log2 = window_to_log2(b);
    vec total[WINDOW_VECS];

    for (int f = 0; f < b->rows; f++) {
        const float *s = my->s + (size_t)(f % BLOCK_ROWS) * ATTENTION_TILE_KEYS;
        int t = f % b->args->window;
        vec x[WINDOW_VECS];

        if (f % BLOCK_ROWS == 0) {
            window_products(b, my, f);
        }
        for (int i = 0; t == 0 && i < WINDOW_VECS; i++) {
            total[i] = vec_zero();
        }
        if (window_row(x, b, s, f, key)) {
            float scale = weights ? b->scale[f] * weights[t] : b->scale[f];

            for (int i = 0; i < WINDOW_VECS; i++) {
                vec p = vec_mul(window_weight(x[i], to_log2, b->offset[f]), vec_set1(scale));

                total[i] = vec_add(total[i], p);
            }
        }
        if (t == b->args->window - 1) {
            window_store(b, f, key, total);
        }
    }
}

static void window_run_scores(const struct window_block *b, const struct window_scratch *my)
{
    for (int key = b->begin; key < b->end; key += ATTENTION_TILE_KEYS) {
        window_pack(b, my, key);
        window_scores_tile(b, my, key);
    }
}

#endif
