/*
 * attention_template.h - one item of prompt attention, in the words of simd_*.h, units_*.h and
 * mm_*.h; included once by each attention_<isa>.c.
 *
 * Tile by tile along the keys: scores of a block of rows, their weights 2^(c s - c peak) with a
 * running peak, and the weighted values added up; the sums are scaled down only when a peak
 * rises.  A block that sees nothing of a tile skips it.
 */
#ifndef KERNELS_CPU_ATTENTION_TEMPLATE_H
#define KERNELS_CPU_ATTENTION_TEMPLATE_H

#include <float.h>
#include <math.h>

static const float unseen = -FLT_MAX; /* the score of a hidden key, and the peak of no key */

/* The shapes that every step needs. */
struct attention_shape {
    int d, group;
    int units;     /* of a query row and of a packed key */
    size_t ldo;    /* head_dim in whole vectors */
    float to_log2; /* score * to_log2 = log2 of the weight */
};

static struct attention_shape attention_shape(const struct attention *args)
{
    int units = args->head_dim / UNIT_ELEMENTS;

    return (struct attention_shape){
        .d = args->head_dim,
        .group = args->q_heads / args->kv_heads,
        .units = (units + UNIT_ALIGN - 1) / UNIT_ALIGN * UNIT_ALIGN,
        .ldo = (size_t)((args->head_dim + VEC_LANES - 1) / VEC_LANES * VEC_LANES),
        .to_log2 = (float)(1.4426950408889634 / sqrt(args->head_dim)),
    };
}

/* Where token t, head h of the group lies in q and out. */
static size_t attention_row_at(const struct attention_item *item, const struct attention_shape *sh,
                               int f)
{
    size_t token = (size_t)(f / sh->group);
    size_t head = (size_t)item->kv_head * (size_t)sh->group + (size_t)(f % sh->group);

    return (token * (size_t)item->args->q_heads + head) * (size_t)sh->d;
}

static void attention_load_rows(const struct attention_item *item, const struct attention_shape *sh,
                                const struct attention_scratch *my, int padded)
{
    const struct attention *args = item->args;
    int rows = item->end - item->begin;

    memset(my->o, 0, (size_t)padded * sh->ldo * sizeof(*my->o));
    memset(my->q, 0, (size_t)padded * (size_t)sh->units * sizeof(*my->q));
    memset(my->lanes, 0, (size_t)padded * VEC_LANES * sizeof(*my->lanes));
    for (int r = 0; r < padded; r++) {
        my->peak[r] = unseen;
        if (r >= rows) {
            my->from[r] = args->n_keys;
            my->to[r] = 0;
            continue;
        }
        int token = (item->begin + r) / sh->group;
        int i = args->q_index ? args->q_index[token] : args->first_row + token;

        units_load(my->q + (size_t)r * (size_t)sh->units, item->dtype, args->q,
                   attention_row_at(item, sh, item->begin + r), sh->d);
        my->to[r] = i + 1;
        my->from[r] = r > 0 && (item->begin + r) % sh->group != 0
                          ? my->from[r - 1]
                          : attention_first_key(args->positions, i, args->sliding_window);
    }
}

static void attention_pack_values(float *out, enum dtype dtype, const void *v, size_t at, int n,
                                  const struct attention_shape *sh)
{
    const int last = n - 1;

    for (int col = 0; col < sh->d; col += PANEL) {
        int width = sh->d - col < PANEL ? sh->d - col : PANEL;

        for (int j = 0; j < ATTENTION_TILE_KEYS; j += UNIT_ELEMENTS) {
            size_t from[UNIT_ELEMENTS];

            if (j > last) {
                memset(out, 0, PANEL * sizeof(*out));
                out += PANEL;
                continue;
            }
            for (int e = 0; e < UNIT_ELEMENTS; e++) {
                /* a missing partner has weight zero: any finite row will do */
                int key = j + e < last ? j + e : last;

                from[e] = at + (size_t)key * (size_t)sh->d + (size_t)col;
            }
            units_pack_values(out, dtype, v, from, width);
            for (int c = width; c < PANEL; c++) {
                out[c] = 0.0f;
            }
            out += PANEL;
        }
    }
}

/* The peak of row r rose to `peak`: its sums shrink. */
static void attention_raise(const struct attention_scratch *my, const struct attention_shape *sh,
                            int r, float peak)
{
    vec shrink = vec_exp2(vec_set1(my->peak[r] * sh->to_log2 - peak * sh->to_log2));
    float *o = my->o + (size_t)r * sh->ldo;
    float *lanes = my->lanes + (size_t)r * VEC_LANES;

    for (size_t c = 0; c < sh->ldo; c += VEC_LANES) {
        vec_store(o + c, vec_mul(vec_load(o + c), shrink));
    }
    vec_store(lanes, vec_mul(vec_load(lanes), shrink));
    my->peak[r] = peak;
}

/* Scores of row r become weights; keys lo..hi of the tile are visible, lo < hi. */
static inline void attention_row_weights(float *s, float *weights,
                                         const struct attention_scratch *my,
                                         const struct attention_shape *sh, int r)
{
    enum { VECS = ATTENTION_TILE_KEYS / VEC_LANES };
    vec x[VECS];

#pragma GCC unroll 16
    for (int i = 0; i < VECS; i++) {
        x[i] = vec_load(s + (size_t)i * VEC_LANES);
    }
    vec top = vec_max(x[0], x[1]);
#pragma GCC unroll 16
    for (int i = 2; i < VECS; i++) {
        top = vec_max(top, x[i]);
    }
    if (vec_any_greater(top, vec_set1(my->peak[r]))) {
        attention_raise(my, sh, r, vec_hmax(top));
    }
    const vec scale = vec_set1(sh->to_log2);
    const vec offset = vec_set1(-(my->peak[r] * sh->to_log2));
    vec sum = vec_load(my->lanes + (size_t)r * VEC_LANES);

#pragma GCC unroll 16
    for (int i = 0; i < VECS; i += 2) {
        vec a = unit_exp2(vec_fma(x[i], scale, offset));
        vec b = unit_exp2(vec_fma(x[i + 1], scale, offset));

        sum = vec_add(sum, vec_add(a, b));
        units_store_weights(weights, i / 2, a, b);
    }
    vec_store(my->lanes + (size_t)r * VEC_LANES, sum);
}

static void attention_hide(float *s, int lo, int hi)
{
    for (int i = 0; i < ATTENTION_TILE_KEYS; i += VEC_LANES) {
        vec_store(s + i, vec_between(vec_load(s + i), unseen, lo - i, hi - i));
    }
}

/* Rows r0..r0 + BLOCK_ROWS against the packed tile that starts at `key`. */
static void attention_block(const struct attention_scratch *my, const struct attention_shape *sh,
                            int r0, int key)
{
    float *weights = units_weights(my->s, my->p);

    mm_scores(my->s, my->q + (size_t)r0 * (size_t)sh->units, (size_t)sh->units, my->k, sh->units);
    for (int r = 0; r < BLOCK_ROWS; r++) {
        float *s = my->s + (size_t)r * ATTENTION_TILE_KEYS;
        float *w = weights + (size_t)r * (ATTENTION_TILE_KEYS / UNIT_ELEMENTS);
        int lo = my->from[r0 + r] - key, hi = my->to[r0 + r] - key;

        if (hi <= 0 || lo >= ATTENTION_TILE_KEYS) {
            memset(w, 0, ATTENTION_TILE_KEYS / UNIT_ELEMENTS * sizeof(*w));
            continue;
        }
        if (lo > 0 || hi < ATTENTION_TILE_KEYS) {
            attention_hide(s, lo, hi);
        }
        attention_row_weights(s, w, my, sh, r0 + r);
    }
    mm_values(my->o + (size_t)r0 * sh->ldo, sh->ldo, weights, my->v);
}

static void attention_tile(const struct attention_item *item, const struct attention_shape *sh,
                           const struct attention_scratch *my, int key, int padded)
{
    const struct attention *args = item->args;
    size_t at = (size_t)item->kv_head * args->kv_stride + (size_t)key * (size_t)sh->d;
    int n = args->n_keys - key;

    n = n < ATTENTION_TILE_KEYS ? n : ATTENTION_TILE_KEYS;
    pack_keys(my->k, item->dtype, args->k, at, n, sh->d, sh->units);
    attention_pack_values(my->v, item->dtype, args->v, at, n, sh);
    for (int r = 0; r < padded; r += BLOCK_ROWS) {
        int rows = item->end - item->begin - r;
        int last = r + (rows < BLOCK_ROWS ? rows : BLOCK_ROWS) - 1;

        if (my->to[last] > key && my->from[r] < key + ATTENTION_TILE_KEYS) {
            attention_block(my, sh, r, key);
        }
    }
}

static void attention_store_rows(const struct attention_item *item,
                                 const struct attention_shape *sh,
                                 const struct attention_scratch *my)
{
    const struct attention *args = item->args;

    for (int f = item->begin; f < item->end; f++) {
        size_t r = (size_t)(f - item->begin), at = attention_row_at(item, sh, f);
        float sum = vec_hsum(vec_load(my->lanes + r * VEC_LANES));
        float scale = 1.0f / sum;

        for (int c = 0; c < sh->d; c++) {
            act_store(item->dtype, args->out, at + (size_t)c,
                      my->o[r * sh->ldo + (size_t)c] * scale);
        }
        if (args->lse) {
            size_t h = (size_t)item->kv_head * (size_t)sh->group + (size_t)(f % sh->group);
            double log2_peak = (double)(my->peak[r] * sh->to_log2);

            args->lse[(size_t)(f / sh->group) * (size_t)args->q_heads + h] =
                (float)(log2_peak * 0.6931471805599453 + log(sum));
        }
    }
}

static void attention_run_item(const struct attention_item *item,
                               const struct attention_scratch *my)
{
    struct attention_shape sh = attention_shape(item->args);
    int rows = item->end - item->begin;
    int padded = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS;

    attention_load_rows(item, &sh, my, padded);
    mm_begin();
    for (int key = my->from[0] / ATTENTION_TILE_KEYS * ATTENTION_TILE_KEYS; key < my->to[rows - 1];
         key += ATTENTION_TILE_KEYS) {
        attention_tile(item, &sh, my, key, padded);
    }
    mm_end();
    attention_store_rows(item, &sh, my);
}

#endif
