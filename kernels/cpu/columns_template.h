/* columns_template.h - one item of column sums; included once by each columns_<isa>.c. */
#ifndef KERNELS_CPU_COLUMNS_TEMPLATE_H
#define KERNELS_CPU_COLUMNS_TEMPLATE_H

#include <float.h>
#include <math.h>

enum { COLUMNS_VECS = ATTENTION_TILE_KEYS / VEC_LANES };

static float columns_to_log2(const struct columns_item *item)
{
    return (float)(1.4426950408889634 / sqrt(item->args->head_dim));
}

static int columns_units(const struct columns_item *item)
{
    int units = item->args->head_dim / UNIT_ELEMENTS;

    return (units + UNIT_ALIGN - 1) / UNIT_ALIGN * UNIT_ALIGN;
}

static void columns_load_rows(const struct columns_item *item)
{
    const struct column_sums *args = item->args;
    size_t units = (size_t)columns_units(item), d = (size_t)args->head_dim;
    size_t group = (size_t)(args->q_heads / args->kv_heads);

    for (size_t h = 0; h < group; h++) {
        float *q = item->q + h * item->head_stride;

        memset(q, 0, item->head_stride * sizeof(*q));
        for (size_t t = 0; t < (size_t)args->rows; t++) {
            size_t head = (size_t)item->kv_head * group + h;

            units_load(q + t * units, item->dtype, args->q, (t * (size_t)args->q_heads + head) * d,
                       args->head_dim);
        }
    }
}

static void columns_pack(const struct columns_item *item, const struct columns_scratch *my, int key)
{
    const struct column_sums *args = item->args;
    size_t at = (size_t)item->kv_head * args->kv_stride + (size_t)key * (size_t)args->head_dim;
    int n = args->n_keys - key < ATTENTION_TILE_KEYS ? args->n_keys - key : ATTENTION_TILE_KEYS;

    pack_keys(my->k, item->dtype, args->k, at, n, args->head_dim, columns_units(item));
}

/* Scores of the block of rows that starts at `row` of head `h`, with the packed tile. */
static void columns_products(const struct columns_item *item, const struct columns_scratch *my,
                             int h, int row)
{
    size_t units = (size_t)columns_units(item);

    mm_scores(my->s, item->q + (size_t)h * item->head_stride + (size_t)row * units, units, my->k,
              (int)units);
}

/* The scores of row t in the tile at `key`, hidden ones -FLT_MAX.  False: all are hidden. */
static inline bool columns_row(vec x[COLUMNS_VECS], const struct columns_item *item, const float *s,
                               int t, int key)
{
    int lo = item->from[t] - key, hi = item->to[t] - key;

    if (hi <= 0 || lo >= ATTENTION_TILE_KEYS) {
        return false;
    }
    for (int i = 0; i < COLUMNS_VECS; i++) {
        x[i] = vec_between(vec_load(s + (size_t)i * VEC_LANES), -FLT_MAX, lo - i * VEC_LANES,
                           hi - i * VEC_LANES);
    }
    return true;
}

static void columns_lse_row(const struct columns_scratch *my, const vec *x, float to_log2, int r)
{
    float *lanes = my->lanes + (size_t)r * VEC_LANES;
    vec top = x[0], sum = vec_load(lanes);

    for (int i = 1; i < COLUMNS_VECS; i++) {
        top = vec_max(top, x[i]);
    }
    float peak = vec_hmax(top);
    if (peak > my->peak[r]) {
        sum = vec_mul(sum, vec_exp2(vec_set1(my->peak[r] * to_log2 - peak * to_log2)));
        my->peak[r] = peak;
    }
    for (int i = 0; i < COLUMNS_VECS; i++) {
        sum = vec_add(
            sum, vec_exp2(vec_fma(x[i], vec_set1(to_log2), vec_set1(-(my->peak[r] * to_log2)))));
    }
    vec_store(lanes, sum);
}

static void columns_lse_tile(const struct columns_item *item, const struct columns_scratch *my,
                             int key)
{
    float to_log2 = columns_to_log2(item);

    columns_pack(item, my, key);
    for (int t = item->begin; t < item->end; t++) {
        int r = t - item->begin;
        vec x[COLUMNS_VECS];

        if (r % BLOCK_ROWS == 0) {
            columns_products(item, my, item->head, t);
        }
        if (columns_row(x, item, my->s + (size_t)(r % BLOCK_ROWS) * ATTENTION_TILE_KEYS, t, key)) {
            columns_lse_row(my, x, to_log2, r);
        }
    }
}

static void columns_lse(const struct columns_item *item, const struct columns_scratch *my)
{
    float to_log2 = columns_to_log2(item);
    int rows = item->end - item->begin;

    memset(my->lanes, 0, (size_t)rows * VEC_LANES * sizeof(*my->lanes));
    for (int r = 0; r < rows; r++) {
        my->peak[r] = -FLT_MAX;
    }
    mm_begin();
    for (int key = 0; key < item->args->n_keys; key += ATTENTION_TILE_KEYS) {
        columns_lse_tile(item, my, key);
    }
    mm_end();
    for (int r = 0; r < rows; r++) {
        double sum = (double)vec_hsum(vec_load(my->lanes + (size_t)r * VEC_LANES));

        item->lse[(size_t)item->head * (size_t)item->args->rows + (size_t)(item->begin + r)] =
            (float)((double)(my->peak[r] * to_log2) + log2(sum));
    }
}

/* The sums of one head for the tile at `key` join those of earlier calls. */
static void columns_store(const struct columns_item *item, float *out, int h, int key,
                          const vec *total)
{
    const struct column_sums *args = item->args;
    int group = args->q_heads / args->kv_heads;
    size_t head = (size_t)item->kv_head * (size_t)group + (size_t)h;
    int n = args->n_keys - key < ATTENTION_TILE_KEYS ? args->n_keys - key : ATTENTION_TILE_KEYS;
    float *to = out + head * args->stride + (size_t)key;
    float tile[ATTENTION_TILE_KEYS];

    for (size_t i = 0; i < COLUMNS_VECS; i++) {
        vec_store(tile + i * VEC_LANES, total[i]);
    }
    for (int j = 0; j < n; j++) {
        to[j] = key + j < args->fresh ? to[j] + tile[j] : tile[j];
    }
}

/* Adds what row t gives the keys of the tile: all of it, and of the nearest keys alone. */
static inline void columns_add(vec total[COLUMNS_VECS], vec near[COLUMNS_VECS],
                               const struct columns_item *item, const vec *x, int nearest,
                               float lse)
{
    const vec scale = vec_set1(columns_to_log2(item)), offset = vec_set1(-lse);

    for (int i = 0; i < COLUMNS_VECS; i++) {
        vec p = vec_exp2(vec_fma(x[i], scale, offset));

        total[i] = vec_add(total[i], p);
        if (near) {
            vec q = vec_between(p, 0.0f, nearest - i * VEC_LANES, ATTENTION_TILE_KEYS);

            near[i] = vec_add(near[i], q);
        }
    }
}

static bool columns_block_sees(const struct columns_item *item, int row, int key)
{
    int last = row + BLOCK_ROWS < item->args->rows ? row + BLOCK_ROWS : item->args->rows;

    for (int t = row; t < last; t++) {
        if (item->to[t] > key && item->from[t] < key + ATTENTION_TILE_KEYS) {
            return true;
        }
    }
    return false;
}

static void columns_head(const struct columns_item *item, const struct columns_scratch *my, int h,
                         int key)
{
    const struct column_sums *args = item->args;
    const float *lse = item->lse + (size_t)h * (size_t)args->rows;
    vec total[COLUMNS_VECS], near[COLUMNS_VECS];
    bool seen = false;

    for (int i = 0; i < COLUMNS_VECS; i++) {
        total[i] = vec_zero();
        near[i] = vec_zero();
    }
    for (int t = 0; t < args->rows; t++) {
        vec x[COLUMNS_VECS];

        if (t % BLOCK_ROWS == 0) {
            seen = columns_block_sees(item, t, key);
            if (seen) {
                columns_products(item, my, h, t);
            }
        }
        const float *s = my->s + (size_t)(t % BLOCK_ROWS) * ATTENTION_TILE_KEYS;
        if (seen && columns_row(x, item, s, t, key)) {
            columns_add(total, args->local ? near : NULL, item, x,
                        args->first_row + t - args->n_local + 1 - key, lse[t]);
        }
    }
    columns_store(item, args->out, h, key, total);
    if (args->local) {
        columns_store(item, args->local, h, key, near);
    }
}

static void columns_sums(const struct columns_item *item, const struct columns_scratch *my)
{
    int group = item->args->q_heads / item->args->kv_heads;

    mm_begin();
    for (int key = item->begin; key < item->end; key += ATTENTION_TILE_KEYS) {
        columns_pack(item, my, key);
        for (int h = 0; h < group; h++) {
            columns_head(item, my, h, key);
        }
    }
    mm_end();
}

#endif
