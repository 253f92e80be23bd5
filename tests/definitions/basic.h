/*
 * basic.h - the operations around the matrix products as plain double-precision loops.
 *
 * Inputs are float32 on the host, whatever the device's dtype; results are doubles.
 */
#ifndef TESTS_DEFINITIONS_BASIC_H
#define TESTS_DEFINITIONS_BASIC_H

#include <stddef.h>
#include <stdint.h>

/* out (n, cols): rows ids[r] - first_id of table (rows, cols), rows stride apart, or zeros. */
void define_embed(double *out, const int32_t *ids, int n, const float *table, int rows, int cols,
                  size_t stride, int first_id);

void define_rmsnorm(double *out, const float *x, const float *weight, int rows, int cols,
                    double eps);

/* out (rows, n) = x (rows, k) w^T; w (n, k), rows stride apart. */
void define_linear(double *out, const float *x, const float *w, size_t stride, int rows, int n,
                   int k);

/* x (rows, heads, head_dim) turned by positions[r] * inv_freq[i], the angle rounded to float32. */
void define_rope(double *out, const float *x, const int32_t *positions, const float *inv_freq,
                 int rows, int heads, int head_dim);

void define_silu_mul(double *out, const float *gate, const float *up, size_t n);

#endif
