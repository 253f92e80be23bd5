/* backend.c - the CPU device: its memory, its threads, and the table of its operations. */
#include "common/machine.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { CPU_MAX_THREADS = 1024 };

static status cpu_open(struct device **out, const struct device_config *config)
{
    const struct cpu_isa *isa;
    status st;

    if (config->dtype == DTYPE_F16) {
        return status_fail(STATUS_UNIMPLEMENTED, "cpu: computes in float32 or bfloat16 only");
    }
    if (config->index != 0) {
        return status_fail(STATUS_INVALID, "cpu: there is one host, not index %d", config->index);
    }
    if (config->threads < 1 || config->threads > CPU_MAX_THREADS) {
        return status_fail(STATUS_INVALID, "cpu: %d threads, of 1 to %d", config->threads,
                           CPU_MAX_THREADS);
    }
    st = cpu_isa_choose(&isa, config->max_isa);
    if (st) {
        return st;
    }
    struct cpu_device *cpu = calloc(1, sizeof(*cpu));
    if (!cpu) {
        return status_fail(STATUS_EXHAUSTED, "cpu: no memory for the device");
    }
    cpu->base.backend = &backend_cpu;
    cpu->base.dtype = config->dtype;
    cpu->base.int8_weights = config->int8_weights;
    cpu->threads = config->threads;
    cpu->isa = isa;
    st = gemms_create(&cpu->gemms);
    if (st) {
        free(cpu);
        return st;
    }
    snprintf(cpu->base.description, sizeof(cpu->base.description), "cpu %s, %d thread%s%s",
             isa->name, cpu->threads, cpu->threads == 1 ? "" : "s",
             config->int8_weights ? ", int8 weights" : "");
    *out = &cpu->base;
    return STATUS_OK;
}

static void cpu_close(struct device *dev)
{
    gemms_destroy(cpu_device(dev)->gemms);
    cpu_drop_workspace(dev);
    free(cpu_device(dev));
}

/*
 * A mapping of its own for every buffer: untouched pages cost nothing, and freeing gives them
 * back.  Its size is kept in front of it, in a cache line, so that the rest stays aligned.
 */
enum { ALLOC_HEADER = 64, HUGE_BYTES = 16 << 20 };

status cpu_alloc(struct device *dev, void **out, size_t bytes, const char *what)
{
    (void)dev;
    if (bytes > SIZE_MAX - ALLOC_HEADER) {
        return status_fail(STATUS_EXHAUSTED, "cpu: no memory for %s (%zu bytes)", what, bytes);
    }
    size_t total = bytes + ALLOC_HEADER;
    char *memory = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        return status_fail(STATUS_EXHAUSTED, "cpu: no memory for %s (%zu bytes): %s", what, bytes,
                           strerror(errno));
    }
    if (total >= HUGE_BYTES) {
        madvise(memory, total, MADV_HUGEPAGE); /* only advice: fewer TLB misses in long reads */
    }
    memcpy(memory, &total, sizeof(total));
    *out = memory + ALLOC_HEADER;
    return STATUS_OK;
}

void cpu_free(struct device *dev, void *memory)
{
    char *start = (char *)memory - ALLOC_HEADER;
    size_t total;

    (void)dev;
    memcpy(&total, start, sizeof(total));
    munmap(start, total);
}

static status cpu_free_memory(struct device *dev, uint64_t *bytes)
{
    (void)dev;
    *bytes = machine_look().free_bytes;
    return STATUS_OK;
}

static status cpu_copy(struct device *dev, void *to, const void *from, size_t bytes)
{
    (void)dev;
    if (bytes > 0) {
        memcpy(to, from, bytes);
    }
    return STATUS_OK;
}

static status cpu_sync(struct device *dev)
{
    (void)dev;
    return STATUS_OK;
}

static void *cpu_stream(struct device *dev)
{
    (void)dev;
    return NULL;
}

static void cpu_redirect(struct device *dev, void *stream)
{
    (void)dev;
    (void)stream;
}

static status cpu_record(struct device *dev)
{
    (void)dev;
    return status_fail(STATUS_UNIMPLEMENTED, "cpu: operations cannot be recorded");
}

static status cpu_record_end(struct device *dev, struct device_graph **out)
{
    (void)out;
    return cpu_record(dev);
}

static status cpu_launch(struct device *dev, struct device_graph *graph)
{
    (void)graph;
    return cpu_record(dev);
}

static void cpu_graph_free(struct device *dev, struct device_graph *graph)
{
    (void)dev;
    (void)graph;
}

static void cpu_drop_graphs(struct device *dev)
{
    (void)dev;
}

const struct backend backend_cpu = {
    .name = "cpu",
    .on_host = true,
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .free_memory = cpu_free_memory,
    .reserve = cpu_reserve,
    .upload = cpu_copy,
    .download = cpu_copy,
    .fetch = cpu_copy,
    .copy = cpu_copy,
    .sync = cpu_sync,
    .stream = cpu_stream,
    .redirect = cpu_redirect,
    .record = cpu_record,
    .record_end = cpu_record_end,
    .launch = cpu_launch,
    .graph_free = cpu_graph_free,
    .drop_graphs = cpu_drop_graphs,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .linear = cpu_linear,
    .linear_rows = cpu_linear_rows,
    .linear_each = cpu_linear_each,
    .linear_rows_each = cpu_linear_rows_each,
    .quantize = cpu_quantize,
    .packed_bytes = cpu_packed_bytes,
    .pack = cpu_pack,
    .linear_add = cpu_linear_add,
    .linear_rows_add = cpu_linear_rows_add,
    .add_rmsnorm = cpu_add_rmsnorm,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .window_scores = cpu_window_scores,
    .column_sums = cpu_column_sums,
    .dot_scores = cpu_dot_scores,
    .group_reduce = cpu_group_reduce,
    .pool = cpu_pool,
    .top_k = cpu_top_k,
    .key_counts = cpu_key_counts,
    .gather_rows = cpu_gather_rows,
    .add = cpu_add,
    .silu_mul = cpu_silu_mul,
    .kv_gather = cpu_kv_gather,
    .kv_note = cpu_kv_note,
    .kv_append = cpu_kv_append,
    .decode_attention = cpu_decode_attention,
    .kv_move = cpu_kv_move,
    .enter_pages = cpu_enter_pages,
    .evict = cpu_evict,
    .penalize = cpu_penalize,
    .draw = cpu_draw,
    .best_drawn = cpu_best_drawn,
    .logits_of = cpu_logits_of,
    .logit_histogram = cpu_logit_histogram,
    .narrow = cpu_narrow,
    .filter_draws = cpu_filter_draws,
};
