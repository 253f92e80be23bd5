/* pack_keys.h - a tile of keys, transposed into the panels that mm_scores() reads. */
#ifndef KERNELS_CPU_PACK_KEYS_H
#define KERNELS_CPU_PACK_KEYS_H

/* VEC_LANES units from unit u of VEC_LANES rows, `n` of them real; row i is x[i]. */
static inline void pack_load(vec x[VEC_LANES], enum dtype dtype, const void *k, size_t at, int n,
                             int d, int u)
{
    int left = d / UNIT_ELEMENTS - u;

    for (int i = 0; i < VEC_LANES; i++) {
        size_t from = at + (size_t)i * (size_t)d + (size_t)u * UNIT_ELEMENTS;

        if (i >= n || left <= 0) {
            x[i] = vec_zero();
        } else if (left >= VEC_LANES) {
            x[i] = units_vec(dtype, k, from);
        } else {
            x[i] = units_vec_part(dtype, k, from, left);
        }
    }
}

/* Rows at, at + d, ... of k become columns 0..n; zeros up to a whole tile. */
static inline void pack_keys(float *out, enum dtype dtype, const void *k, size_t at, int n, int d,
                             int units)
{
    for (int j = 0; j < ATTENTION_TILE_KEYS; j += VEC_LANES) {
        float *to = out + (size_t)(j / PANEL) * (size_t)units * PANEL + j % PANEL;
        size_t rows = at + (size_t)j * (size_t)d;

        for (int u = 0; u < units; u += VEC_LANES) {
            vec x[VEC_LANES];

            pack_load(x, dtype, k, rows, n - j, d, u);
            vec_transpose(x);
            for (int i = 0; i < VEC_LANES && u + i < units; i++) {
                vec_store(to + (size_t)(u + i) * PANEL, x[i]);
            }
        }
    }
}

#endif
