/*
 * mm_vector.h - the two matrix products of attention on plain vector registers.
 *
 * Packed operands come in panels of PANEL columns: panel j holds rows [k][PANEL] one after the
 * other.  Each output element is one chain of multiply-adds in ascending k.
 */
#ifndef KERNELS_CPU_MM_H
#define KERNELS_CPU_MM_H

enum {
    PANEL = MM_VECS * VEC_LANES,
    BLOCK_ROWS = 2 * MM_ROWS,
    UNIT_ALIGN = 1, /* units of a query row are padded to a multiple of this */
};

static inline void mm_begin(void) {}

static inline void mm_end(void) {}

/* c (MM_ROWS, n_vecs vectors) = or += a (MM_ROWS, k) b (k, PANEL).  n_vecs is a constant. */
static inline __attribute__((always_inline)) void mm_tile(float *c, size_t ldc, const float *a,
                                                          size_t lda, const float *b, int k,
                                                          const int n_vecs, bool add)
{
    vec sum[MM_ROWS][MM_VECS];

#pragma GCC unroll 8
    for (int r = 0; r < MM_ROWS; r++) {
#pragma GCC unroll 4
        for (int j = 0; j < n_vecs; j++) {
            sum[r][j] = add ? vec_load(c + (size_t)r * ldc + (size_t)j * VEC_LANES) : vec_zero();
        }
    }
    for (int i = 0; i < k; i++) {
        vec row[MM_VECS];

#pragma GCC unroll 4
        for (int j = 0; j < n_vecs; j++) {
            row[j] = vec_load(b + (size_t)j * VEC_LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < MM_ROWS; r++) {
            vec x = vec_set1(a[(size_t)r * lda + (size_t)i]);

#pragma GCC unroll 4
            for (int j = 0; j < n_vecs; j++) {
                sum[r][j] = unit_fma(sum[r][j], x, row[j]);
            }
        }
        b += PANEL;
    }
#pragma GCC unroll 8
    for (int r = 0; r < MM_ROWS; r++) {
#pragma GCC unroll 4
        for (int j = 0; j < n_vecs; j++) {
            vec_store(c + (size_t)r * ldc + (size_t)j * VEC_LANES, sum[r][j]);
        }
    }
}

/* s (BLOCK_ROWS, TILE_KEYS) = q (BLOCK_ROWS, units) times the packed keys. */
static inline void mm_scores(float *s, const float *q, size_t ldq, const float *k, int units)
{
    for (int j = 0; j < ATTENTION_TILE_KEYS; j += PANEL) {
        for (int r = 0; r < BLOCK_ROWS; r += MM_ROWS) {
            mm_tile(s + (size_t)r * ATTENTION_TILE_KEYS + j, ATTENTION_TILE_KEYS,
                    q + (size_t)r * ldq, ldq, k, units, MM_VECS, false);
        }
        k += (size_t)units * PANEL;
    }
}

static inline void mm_values_panel(float *o, size_t ldo, const float *p, const float *v, int vecs)
{
    const size_t ldp = ATTENTION_TILE_KEYS / UNIT_ELEMENTS;
    const int k = ATTENTION_TILE_KEYS / UNIT_ELEMENTS;

    for (int r = 0; r < BLOCK_ROWS; r += MM_ROWS) {
        const float *pr = p + (size_t)r * ldp;
        float *to = o + (size_t)r * ldo;

        switch (vecs) {
        case 1:
            mm_tile(to, ldo, pr, ldp, v, k, 1, true);
            break;
        case 2:
            mm_tile(to, ldo, pr, ldp, v, k, 2, true);
            break;
        case 3:
            mm_tile(to, ldo, pr, ldp, v, k, MM_VECS < 3 ? MM_VECS : 3, true);
            break;
        default:
            mm_tile(to, ldo, pr, ldp, v, k, MM_VECS, true);
        }
    }
}

/* o (BLOCK_ROWS, ldo) += p (BLOCK_ROWS, TILE_KEYS) times the packed values. */
static inline void mm_values(float *o, size_t ldo, const float *p, const float *v)
{
    for (size_t j = 0; j < ldo; j += PANEL) {
        int vecs = (int)(ldo - j) / VEC_LANES;

        mm_values_panel(o + j, ldo, p, v, vecs < MM_VECS ? vecs : MM_VECS);
        v += (size_t)(ATTENTION_TILE_KEYS / UNIT_ELEMENTS) * PANEL;
    }
}

#endif
