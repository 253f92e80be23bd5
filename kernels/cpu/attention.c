/* attention.c - cuts prompt attention into items and spreads them over the threads. */
#include "kernels/cpu/attention.h"

#include "kernels/cpu/cpu.h"

#include <omp.h>

static size_t scratch_floats(int head_dim)
{
    size_t d = (size_t)(head_dim + 63) / 64 * 64; /* whole panels of every variant */
    size_t rows = 2 * d + ATTENTION_MAX_LANES + 4;
    size_t tiles = 2 * d + (size_t)2 * ATTENTION_BLOCK_ROWS;

    return ATTENTION_ITEM_ROWS * rows + ATTENTION_TILE_KEYS * tiles;
}

static float *take(float **next, size_t floats)
{
    float *start = *next;

    *next += floats;
    return start;
}

/* Every part is a multiple of 64 bytes long. */
static struct attention_scratch scratch_carve(float *memory, int head_dim)
{
    size_t d = (size_t)(head_dim + 63) / 64 * 64;
    const size_t rows = ATTENTION_ITEM_ROWS, block = ATTENTION_BLOCK_ROWS;
    float *next = memory;

    return (struct attention_scratch){
        .q = take(&next, rows * d),
        .o = take(&next, rows * d),
        .k = take(&next, ATTENTION_TILE_KEYS * d),
        .v = take(&next, ATTENTION_TILE_KEYS * d),
        .s = take(&next, block * ATTENTION_TILE_KEYS),
        .p = take(&next, block * ATTENTION_TILE_KEYS),
        .lanes = take(&next, rows * ATTENTION_MAX_LANES),
        .peak = take(&next, rows),
        .from = (int32_t *)take(&next, rows),
        .to = (int32_t *)take(&next, rows),
    };
}

size_t cpu_attention_workspace(const struct device *dev, int head_dim)
{
    return (size_t)cpu_device_const(dev)->threads * scratch_floats(head_dim) * sizeof(float);
}

status cpu_attention(struct device *dev, const struct attention *args)
{
    const struct cpu_isa *isa = cpu_device(dev)->isa;
    const struct attention_kernels *kernels =
        dev->dtype == DTYPE_BF16 ? isa->attention_bf16 : isa->attention_f32;
    size_t each = scratch_floats(args->head_dim);
    int group = args->q_heads / args->kv_heads;
    int flat = args->rows * group;
    int blocks = (flat + ATTENTION_ITEM_ROWS - 1) / ATTENTION_ITEM_ROWS;
    int items = blocks * args->kv_heads;
    int threads = cpu_device(dev)->threads < items ? cpu_device(dev)->threads : items;
    void *memory;
    status st;

    if (items == 0) {
        return STATUS_OK;
    }
    st = cpu_workspace(dev, &memory, (size_t)threads * each * sizeof(float));
    if (st) {
        return st;
    }
    /* The last rows see the most keys: they go first, so that all threads finish together. */
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int i = 0; i < items; i++) {
        int block = blocks - 1 - i / args->kv_heads;
        int begin = block * ATTENTION_ITEM_ROWS;
        struct attention_item item = {
            .args = args,
            .dtype = dev->dtype,
            .kv_head = i % args->kv_heads,
            .begin = begin,
            .end = flat - begin < ATTENTION_ITEM_ROWS ? flat : begin + ATTENTION_ITEM_ROWS,
        };
        struct attention_scratch scratch =
            scratch_carve((float *)memory + (size_t)omp_get_thread_num() * each, args->head_dim);

        kernels->item(&item, &scratch);
    }
    return STATUS_OK;
}
