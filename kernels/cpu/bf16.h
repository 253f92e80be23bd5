/* bf16.h - bfloat16 as 16 bits of storage, and its conversions. */
#ifndef KERNELS_CPU_BF16_H
#define KERNELS_CPU_BF16_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16; /* storage only; sums are float32 or better */

static inline float bf16_to_float(bf16 v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* Round to nearest, ties to even, as the GPU does; NaN stays NaN. */
static inline bf16 bf16_from_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    if (f != f) {
        return (bf16)((bits >> 16) | 0x40u);
    }
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#endif
