/* isa.c - the tables of inner kernels, and which of them this machine runs. */
#include "kernels/cpu/isa.h"

#include "kernels/cpu/attention.h"
#include "kernels/cpu/columns.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/int8.h"
#include "kernels/cpu/linear_packed.h"
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/window.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct cpu_isa isa_generic = {
    .name = "generic",
    .elementwise = &elementwise_generic,
    .int8 = &int8_generic,
    .int8_dot = int8_dot_generic,
    .linear_rows_f32 = &linear_rows_f32_generic,
    .linear_rows_bf16 = &linear_rows_bf16_generic,
    .attention_f32 = &attention_generic,
    .attention_bf16 = &attention_generic,
    .window = &window_generic,
    .columns_f32 = &columns_generic,
    .columns_bf16 = &columns_generic,
    .decode = &decode_generic,
};

static const struct cpu_isa isa_avx2 = {
    .name = "avx2",
    .elementwise = &elementwise_avx2,
    .int8 = &int8_avx2,
    .int8_dot = int8_dot_avx2,
    .linear_rows_f32 = &linear_rows_f32_avx2,
    .linear_rows_bf16 = &linear_rows_bf16_avx2,
    .attention_f32 = &attention_avx2,
    .attention_bf16 = &attention_avx2,
    .window = &window_avx2,
    .columns_f32 = &columns_avx2,
    .columns_bf16 = &columns_avx2,
    .decode = &decode_avx2,
};

static const struct cpu_isa isa_avx512 = {
    .name = "avx512",
    .elementwise = &elementwise_avx512,
    .int8 = &int8_avx512,
    .int8_dot = int8_dot_avx512,
    .linear_rows_f32 = &linear_rows_f32_avx512,
    .linear_rows_bf16 = &linear_rows_bf16_avx512,
    .attention_f32 = &attention_avx512,
    .attention_bf16 = &attention_avx512,
    .window = &window_avx512,
    .columns_f32 = &columns_avx512,
    .columns_bf16 = &columns_avx512,
    .decode = &decode_avx512,
};

static const struct cpu_isa isa_avx512_bf16 = {
    .name = "avx512_bf16",
    .bf16_gemm = true,
    .elementwise = &elementwise_avx512,
    .int8 = &int8_avx512,
    .int8_dot = int8_dot_avx512_bf16,
    .linear_rows_f32 = &linear_rows_f32_avx512,
    .linear_rows_bf16 = &linear_rows_bf16_avx512,
    .linear_packed = &linear_packed_avx512_bf16,
    .attention_f32 = &attention_avx512,
    .attention_bf16 = &attention_avx512_bf16,
    .window = &window_avx512,
    .columns_f32 = &columns_avx512,
    .columns_bf16 = &columns_avx512_bf16,
    .decode = &decode_avx512_bf16,
};

static const struct cpu_isa isa_amx = {
    .name = "amx",
    .bf16_gemm = true,
    .elementwise = &elementwise_avx512,
    .int8 = &int8_avx512,
    .int8_dot = int8_dot_avx512_bf16,
    .linear_rows_f32 = &linear_rows_f32_avx512,
    .linear_rows_bf16 = &linear_rows_bf16_amx,
    .attention_f32 = &attention_avx512,
    .attention_bf16 = &attention_amx,
    .window = &window_avx512,
    .columns_f32 = &columns_avx512,
    .columns_bf16 = &columns_amx,
    .decode = &decode_avx512_bf16,
};

/* Worst first. */
static const struct cpu_isa *const tables[] = {
    &isa_generic, &isa_avx2, &isa_avx512, &isa_avx512_bf16, &isa_amx,
};
enum { TABLES = sizeof(tables) / sizeof(tables[0]) };

/* Tiles are large, so the kernel gives them only to processes that ask. */
static bool amx_usable(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    const unsigned wanted = 1u << 22 | 1u << 24; /* AMX-BF16 and AMX-TILE */
    unsigned a = 0, b = 0, c = 0, d = 0;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & wanted) == wanted &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

/* How many of the tables, from the first, this machine runs. */
static int tables_supported(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        return 1;
    }
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        return 2;
    }
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) {
        return 3;
    }
    return amx_usable() ? TABLES : 4;
}

status cpu_isa_choose(const struct cpu_isa **out, const char *max_isa)
{
    int best = tables_supported() - 1;

    if (max_isa) {
        int wanted = 0;

        while (wanted < TABLES && strcmp(tables[wanted]->name, max_isa) != 0) {
            wanted++;
        }
        if (wanted == TABLES) {
            return status_fail(STATUS_INVALID, "cpu: no instruction set '%s'", max_isa);
        }
        best = wanted < best ? wanted : best;
    }
    *out = tables[best];
    return STATUS_OK;
}
