/* int8_template.h - int8 rows, for one instruction set: loops that the compiler makes vectors of.
 */
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/int8.h"

#include <float.h>
#include <string.h>

static void int8_widen_f32(float *restrict out, const int8_t *restrict in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = (float)in[i];
    }
}

/* Seven bits and a sign: the lower half of the float32 is zero. */
static void int8_widen_bf16(bf16 *restrict out, const int8_t *restrict in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float value = (float)in[i];
        uint32_t bits;

        memcpy(&bits, &value, sizeof(bits));
        out[i] = (bf16)(bits >> 16);
    }
}

static void int8_widen(bool wide, void *out, const int8_t *in, size_t n)
{
    if (wide) {
        int8_widen_f32(out, in, n);
    } else {
        int8_widen_bf16(out, in, n);
    }
}

static inline float int8_at(const bool wide, const void *in, size_t i)
{
    return wide ? ((const float *)in)[i] : bf16_to_float(((const bf16 *)in)[i]);
}

/* The bits of magnitudes ascend as their values do, NaN last. */
static inline __attribute__((always_inline)) float int8_largest(const bool wide, const void *in,
                                                                size_t n)
{
    uint32_t largest = 0;
    float value;

    for (size_t i = 0; i < n; i++) {
        uint32_t bits;

        value = int8_at(wide, in, i);
        memcpy(&bits, &value, sizeof(bits));
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    memcpy(&value, &largest, sizeof(value));
    return value;
}

static inline __attribute__((always_inline)) float int8_quantize_row(const bool wide,
                                                                     int8_t *restrict out,
                                                                     const void *restrict in,
                                                                     size_t n)
{
    float scale = int8_largest(wide, in, n) / 127.0f;

    if (!(scale >= FLT_MIN && scale <= FLT_MAX)) {
        memset(out, 0, n);
        return scale < FLT_MIN ? 0.0f : scale; /* zeros, or not finite */
    }
    for (size_t i = 0; i < n; i++) {
        float q = int8_at(wide, in, i) / scale;

        out[i] = (int8_t)(int)(q + (q < 0.0f ? -0.5f : 0.5f));
    }
    return scale;
}

static float int8_quantize(bool wide, int8_t *out, const void *in, size_t n)
{
    return wide ? int8_quantize_row(true, out, in, n) : int8_quantize_row(false, out, in, n);
}

static inline __attribute__((always_inline)) float int8_split_row(const bool wide,
                                                                  int8_t *restrict planes,
                                                                  size_t padded,
                                                                  int32_t *restrict sums,
                                                                  const void *restrict x, size_t n)
{
    const float most = 127.0f * 256.0f;
    float scale = int8_largest(wide, x, n) / most;
    int8_t *high = planes, *low = planes + padded;

    memset(planes, 0, INT8_PLANES * padded);
    sums[0] = sums[1] = 0;
    if (!(scale >= FLT_MIN && scale <= FLT_MAX)) {
        return scale < FLT_MIN ? 0.0f : scale;
    }
    for (size_t i = 0; i < n; i++) {
        float q = int8_at(wide, x, i) / scale;
        int whole = (int)(q + (q < 0.0f ? -0.5f : 0.5f)), upper = (whole + 128) >> 8;

        high[i] = (int8_t)upper;
        low[i] = (int8_t)(whole - 256 * upper);
        sums[0] += high[i];
        sums[1] += low[i];
    }
    return scale;
}

static float int8_split(bool wide, int8_t *planes, size_t padded, int32_t *sums, const void *x,
                        size_t n)
{
    return wide ? int8_split_row(true, planes, padded, sums, x, n)
                : int8_split_row(false, planes, padded, sums, x, n);
}

static void int8_scale(float *restrict x, const float *restrict by, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] *= by[i];
    }
}

#define INT8_KERNELS                                                                              \
    {                                                                                             \
        .widen = int8_widen, .quantize = int8_quantize, .split = int8_split, .scale = int8_scale, \
    }
