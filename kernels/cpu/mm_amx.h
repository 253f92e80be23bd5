/*
 * mm_amx.h - the two matrix products of attention on AMX tiles: 16 rows of 16 pairs of bf16
 * times 16 pairs of 16 columns.  The packed operands are those of mm_vector.h.
 *
 * Tiles 0-3 hold sums of 32 rows by 32 columns, 4 and 5 the rows, 6 and 7 the columns.
 */
#ifndef KERNELS_CPU_MM_H
#define KERNELS_CPU_MM_H

enum {
    PANEL = MM_VECS * VEC_LANES,
    BLOCK_ROWS = 32,
    UNIT_ALIGN = 16,
    TILE_SIZE = 16,
};

/* The layout that LDTILECFG reads. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static inline void mm_begin(void)
{
    struct tile_config config = {.palette = 1};

    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = TILE_SIZE * sizeof(float);
        config.rows[i] = TILE_SIZE;
    }
    _tile_loadconfig(&config);
}

static inline void mm_end(void)
{
    _tile_release();
}

/* The intrinsics do not tell the compiler that they read memory. */
static inline void mm_stores_are_done(void)
{
    __asm__ volatile("" ::: "memory");
}

/* c (32, 32) = or += a (32, k) b (k, 32); strides in bytes, b in rows of PANEL. */
static inline __attribute__((always_inline)) void mm_square(float *c, size_t ldc, const float *a,
                                                            size_t lda, const float *b, int k,
                                                            bool add)
{
    const size_t stride_a = lda * sizeof(float), stride_b = PANEL * sizeof(float);
    const size_t stride_c = ldc * sizeof(float);

    if (add) {
        _tile_loadd(0, c, stride_c);
        _tile_loadd(1, c + TILE_SIZE, stride_c);
        _tile_loadd(2, c + TILE_SIZE * ldc, stride_c);
        _tile_loadd(3, c + TILE_SIZE * ldc + TILE_SIZE, stride_c);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int i = 0; i < k; i += TILE_SIZE) {
        _tile_loadd(4, a + i, stride_a);
        _tile_loadd(6, b, stride_b);
        _tile_loadd(7, b + TILE_SIZE, stride_b);
        _tile_loadd(5, a + TILE_SIZE * lda + (size_t)i, stride_a);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        b += (size_t)TILE_SIZE * PANEL;
    }
    _tile_stored(0, c, stride_c);
    _tile_stored(1, c + TILE_SIZE, stride_c);
    _tile_stored(2, c + TILE_SIZE * ldc, stride_c);
    _tile_stored(3, c + TILE_SIZE * ldc + TILE_SIZE, stride_c);
}

/* The same, adding, for 16 columns. */
static inline void mm_column(float *c, size_t ldc, const float *a, size_t lda, const float *b,
                             int k)
{
    const size_t stride_a = lda * sizeof(float), stride_b = PANEL * sizeof(float);
    const size_t stride_c = ldc * sizeof(float);

    _tile_loadd(0, c, stride_c);
    _tile_loadd(2, c + TILE_SIZE * ldc, stride_c);
    for (int i = 0; i < k; i += TILE_SIZE) {
        _tile_loadd(4, a + i, stride_a);
        _tile_loadd(6, b, stride_b);
        _tile_loadd(5, a + TILE_SIZE * lda + (size_t)i, stride_a);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        b += (size_t)TILE_SIZE * PANEL;
    }
    _tile_stored(0, c, stride_c);
    _tile_stored(2, c + TILE_SIZE * ldc, stride_c);
}

/* s (BLOCK_ROWS, TILE_KEYS) = q (BLOCK_ROWS, units) times the packed keys. */
static inline void mm_scores(float *s, const float *q, size_t ldq, const float *k, int units)
{
    mm_stores_are_done();
    for (int j = 0; j < ATTENTION_TILE_KEYS; j += 2 * TILE_SIZE) {
        mm_square(s + j, ATTENTION_TILE_KEYS, q, ldq, k + j, units, false);
    }
}

/* o (BLOCK_ROWS, ldo) += p (BLOCK_ROWS, TILE_KEYS) times the packed values. */
static inline void mm_values(float *o, size_t ldo, const float *p, const float *v)
{
    const size_t ldp = ATTENTION_TILE_KEYS / UNIT_ELEMENTS;
    const int k = ATTENTION_TILE_KEYS / UNIT_ELEMENTS;

    mm_stores_are_done();
    for (size_t j = 0; j < ldo; j += (size_t)2 * TILE_SIZE) {
        const float *from = v + j / PANEL * PANEL * (size_t)k + j % PANEL;

        if (j + TILE_SIZE < ldo) {
            mm_square(o + j, ldo, p, ldp, from, k, true);
        } else {
            mm_column(o + j, ldo, p, ldp, from, k);
        }
    }
}

_Static_assert((int)PANEL == (int)ATTENTION_TILE_KEYS, "one panel of keys");

#endif
