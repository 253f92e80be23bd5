/* basic.c - definitions: read them against the comments of kernels/op.h. */
#include "tests/definitions/basic.h"

#include <math.h>

void define_embed(double *out, const int32_t *ids, int n, const float *table, int rows, int cols,
                  size_t stride, int first_id)
{
    for (int r = 0; r < n; r++) {
        int row = ids[r] - first_id;

        for (int c = 0; c < cols; c++) {
            out[r * cols + c] = row >= 0 && row < rows ? table[(size_t)row * stride + c] : 0.0;
        }
    }
}

void define_rmsnorm(double *out, const float *x, const float *weight, int rows, int cols,
                    double eps)
{
    for (int r = 0; r < rows; r++) {
        double sum = 0.0;

        for (int c = 0; c < cols; c++) {
            sum += (double)x[r * cols + c] * x[r * cols + c];
        }
        for (int c = 0; c < cols; c++) {
            out[r * cols + c] = x[r * cols + c] / sqrt(sum / cols + eps) * weight[c];
        }
    }
}

void define_linear(double *out, const float *x, const float *w, size_t stride, int rows, int n,
                   int k)
{
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < n; j++) {
            double sum = 0.0;

            for (int i = 0; i < k; i++) {
                sum += (double)x[(size_t)r * k + i] * w[(size_t)j * stride + i];
            }
            out[(size_t)r * n + j] = sum;
        }
    }
}

void define_rope(double *out, const float *x, const int32_t *positions, const float *inv_freq,
                 int rows, int heads, int head_dim)
{
    int half = head_dim / 2;

    for (int r = 0; r < rows; r++) {
        for (int h = 0; h < heads; h++) {
            const float *from = x + (size_t)(r * heads + h) * head_dim;
            double *to = out + (size_t)(r * heads + h) * head_dim;

            for (int i = 0; i < half; i++) {
                float angle = (float)positions[r] * inv_freq[i];

                to[i] = from[i] * cos(angle) - from[half + i] * sin(angle);
                to[half + i] = from[half + i] * cos(angle) + from[i] * sin(angle);
            }
        }
    }
}

void define_silu_mul(double *out, const float *gate, const float *up, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = gate[i] / (1.0 + exp(-(double)gate[i])) * up[i];
    }
}
