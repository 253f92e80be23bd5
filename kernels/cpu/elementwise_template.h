/* elementwise_template.h - conversions, sums and products of long rows, for one instruction set;
 * written in the words of simd_*.h and simd_math.h. */
#include "kernels/cpu/elementwise.h"

#include <math.h>

static void elementwise_widen(float *out, const bf16 *in, size_t n)
{
    size_t i = 0;

    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec_store(out + i, vec_load_bf16(in + i));
    }
    for (; i < n; i++) {
        out[i] = bf16_to_float(in[i]);
    }
}

static void elementwise_narrow(bf16 *out, const float *in, size_t n)
{
    size_t i = 0;

    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec_store_bf16(out + i, vec_load(in + i));
    }
    for (; i < n; i++) {
        out[i] = bf16_from_float(in[i]);
    }
}

static void elementwise_add(float *x, const float *y, size_t n)
{
    size_t i = 0;

    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec_store(x + i, vec_add(vec_load(x + i), vec_load(y + i)));
    }
    for (; i < n; i++) {
        x[i] += y[i];
    }
}

static inline vec silu_mul_step(vec gate, vec up)
{
    vec one = vec_set1(1.0f);

    return vec_mul(vec_div(gate, vec_add(one, vec_exp(vec_sub(vec_zero(), gate)))), up);
}

static inline __attribute__((always_inline)) void silu_mul_all(const bool wide, void *out,
                                                               const void *gate, const void *up,
                                                               size_t n)
{
    size_t i = 0;

    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec_store_act(wide, out, i,
                      silu_mul_step(vec_load_act(wide, gate, i), vec_load_act(wide, up, i)));
    }
    if (i < n) {
        int rest = (int)(n - i);

        vec_store_act_part(wide, out, i,
                           silu_mul_step(vec_load_act_part(wide, gate, i, rest),
                                         vec_load_act_part(wide, up, i, rest)),
                           rest);
    }
}

static void elementwise_silu_mul(bool wide, void *out, const void *gate, const void *up, size_t n)
{
    if (wide) {
        silu_mul_all(true, out, gate, up, n);
    } else {
        silu_mul_all(false, out, gate, up, n);
    }
}

enum { FOUR_VECS = 4 * VEC_LANES };

/* Four accumulators: short chains, so small rounding. */
static float sum_of_squares(const float *x, size_t n)
{
    vec sum[4] = {vec_zero(), vec_zero(), vec_zero(), vec_zero()};
    size_t i = 0;

    for (; i + FOUR_VECS <= n; i += FOUR_VECS) {
        for (size_t t = 0; t < 4; t++) {
            vec v = vec_load(x + i + t * VEC_LANES);
            sum[t] = vec_fma(v, v, sum[t]);
        }
    }
    for (; i < n; i += VEC_LANES) {
        vec v = i + VEC_LANES <= n ? vec_load(x + i) : vec_load_part(x + i, (int)(n - i));
        sum[0] = vec_fma(v, v, sum[0]);
    }
    return vec_hsum(vec_add(vec_add(sum[0], sum[1]), vec_add(sum[2], sum[3])));
}

static inline __attribute__((always_inline)) void rmsnorm_scale(const bool wide, void *out,
                                                                const float *x, const float *weight,
                                                                size_t n, float scale)
{
    vec by = vec_set1(scale);
    size_t i = 0;

    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vec_store_act(wide, out, i, vec_mul(vec_load(weight + i), vec_mul(vec_load(x + i), by)));
    }
    if (i < n) {
        int rest = (int)(n - i);
        vec v = vec_mul(vec_load_part(weight + i, rest), vec_mul(vec_load_part(x + i, rest), by));

        vec_store_act_part(wide, out, i, v, rest);
    }
}

static void elementwise_rmsnorm(bool wide, void *out, const float *x, const float *weight, size_t n,
                                float eps)
{
    double mean = (double)sum_of_squares(x, n) / (double)n;
    float scale = (float)(1.0 / sqrt(mean + (double)eps));

    if (wide) {
        rmsnorm_scale(true, out, x, weight, n, scale);
    } else {
        rmsnorm_scale(false, out, x, weight, n, scale);
    }
}

static inline __attribute__((always_inline)) void rotate_all(const bool wide, void *out,
                                                             const void *x, const float *cosine,
                                                             const float *sine, size_t half)
{
    for (size_t i = 0; i < half; i += VEC_LANES) {
        int n = half - i < VEC_LANES ? (int)(half - i) : VEC_LANES;
        vec a = vec_load_act_part(wide, x, i, n), b = vec_load_act_part(wide, x, half + i, n);
        vec c = vec_load_part(cosine + i, n), s = vec_load_part(sine + i, n);

        vec_store_act_part(wide, out, i, vec_sub(vec_mul(a, c), vec_mul(b, s)), n);
        vec_store_act_part(wide, out, half + i, vec_add(vec_mul(b, c), vec_mul(a, s)), n);
    }
}

static void elementwise_rotate(bool wide, void *out, const void *x, const float *cosine,
                               const float *sine, size_t half)
{
    if (wide) {
        rotate_all(true, out, x, cosine, sine, half);
    } else {
        rotate_all(false, out, x, cosine, sine, half);
    }
}

#define ELEMENTWISE_KERNELS                                                               \
    {                                                                                     \
        .widen = elementwise_widen, .narrow = elementwise_narrow, .add = elementwise_add, \
        .silu_mul = elementwise_silu_mul, .rmsnorm = elementwise_rmsnorm,                 \
        .rotate = elementwise_rotate,                                                     \
    }
