/*
 * isa.h - the inner kernels, one table for each instruction set.
 *
 * A kernel that needs vectors lives in <name>_generic.c, <name>_avx2.c, <name>_avx512.c and,
 * where it helps, <name>_avx512_bf16.c: each file is compiled for its instruction set and only
 * reached through the table that device_open() chose.  A table without an own variant names the
 * next lower one.
 */
#ifndef KERNELS_CPU_ISA_H
#define KERNELS_CPU_ISA_H

#include "common/status.h"

#include <stdbool.h>

struct attention_kernels;
struct window_kernels;
struct columns_kernels;
struct decode_kernels;
struct elementwise_kernels;
struct int8_kernels;
struct int8_dot;
struct linear_rows_kernels;
struct linear_packed_kernels;

struct cpu_isa {
    const char *name;
    bool bf16_gemm; /* the GEMM library multiplies bf16 faster than float32 */
    const struct elementwise_kernels *elementwise;
    const struct int8_kernels *int8;
    void (*int8_dot)(const struct int8_dot *args);
    const struct linear_rows_kernels *linear_rows_f32;
    const struct linear_rows_kernels *linear_rows_bf16;
    const struct linear_packed_kernels *linear_packed; /* bf16; NULL: weights lie by rows */
    const struct attention_kernels *attention_f32;
    const struct attention_kernels *attention_bf16;
    const struct window_kernels *window;
    const struct columns_kernels *columns_f32;
    const struct columns_kernels *columns_bf16;
    const struct decode_kernels *decode;
};

/* The best table that this machine runs and `max_isa` (NULL: any) allows. */
status cpu_isa_choose(const struct cpu_isa **out, const char *max_isa);

#endif
