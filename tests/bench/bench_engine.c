/*
 * bench_engine.c - how near a rank's engine comes to what the machine can do: seconds of a prompt
 * against the library's best matrix product, milliseconds of a token against reading memory.
 *
 *   winnow-bench-engine --model DIR [--tokens N] [--method NAME] [--batch N] [--steps N] ...
 *
 * No coordinator and no network: plans go straight into worker/engine.h, as worker/rank.c does it.
 * Several ranks are threads of this process, on GPUs of their own with --device cuda.  One JSON
 * line; operations and bytes are counted by worker/work.h.
 */
#include "common/clock.h"
#include "common/options.h"
#include "common/slices.h"
#include "tests/bench/limits.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"
#include "worker/work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SLICES_A_PLAN = 16, READ_BYTES = 128 << 20, MOST_RANKS = 16 };

struct settings {
    const char *model, *method, *device;
    int64_t tokens, batch, steps, threads, ranks, rounds, kv_gb;
    bool no_limits;
    void *memory;               /* limits_bytes; NULL: no reads between steps */
    struct model_config config; /* of the model */
    struct method_params params;
};

struct figures {
    double open_ms, prefill_ms, decode_ms; /* the best */
    double collective_ms, scoring_ms;      /* of the last round */
    double read_ratio; /* median of: a step's time, in those of reading READ_BYTES before it */
};

/* The same prompt on every rank. */
static uint32_t *make_prompt(const struct settings *s, uint32_t seed)
{
    uint32_t *ids = malloc((size_t)s->tokens * sizeof(*ids));

    for (int64_t i = 0; ids && i < s->tokens; i++) {
        seed = seed * 1664525u + 1013904223u;
        ids[i] = (seed >> 8) % (uint32_t)s->config.vocab;
    }
    return ids;
}

static uint32_t count_slices(const struct settings *s)
{
    struct slices walk;
    struct slice slice;
    uint32_t n = 0;

    slices_begin(&walk, &s->params, &s->config, (int)s->tokens);
    while (slices_next(&walk, &slice)) {
        n++;
    }
    return n;
}

static status read_prompt(struct bench *bench, const struct settings *s, uint32_t slot,
                          struct figures *figures)
{
    struct plan_advance advance = {.slot = slot};
    uint32_t *ids = make_prompt(s, slot);
    const struct plan_begin begin = {
        .slot = slot,
        .n_prompt = (uint32_t)s->tokens,
        .prompt = ids,
        .params = s->params,
        .sampling = {.max_tokens = (uint32_t)s->steps + 1, .top_p = 1, .repetition_penalty = 1},
        .max_rows = (uint32_t)s->steps,
    };
    struct plan plan = {.n_begin = 1, .begin = &begin, .n_advance = 1, .advance = &advance};
    struct step_result result = {0};
    double start = clock_ms();
    status st = ids ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "no memory");

    for (uint32_t left = count_slices(s); !st && left > 0; left -= advance.slices) {
        advance.slices = left < SLICES_A_PLAN ? left : SLICES_A_PLAN;
        plan.number = bench->number++;
        st = engine_step(bench->engine, &plan, &result);
        plan.n_begin = 0;
        figures->collective_ms += result.collective_ms;
        figures->scoring_ms += result.scoring_ms;
    }
    double ms = clock_ms() - start;
    figures->prefill_ms = slot == 0 || ms < figures->prefill_ms ? ms : figures->prefill_ms;
    free(ids);
    return st;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* How fast memory is changes within seconds on machines that others use too: each step is compared
 * with a read of its own. */
static status decode(struct bench *bench, const struct settings *s, struct figures *figures)
{
    double *ratios = calloc((size_t)s->steps, sizeof(*ratios));
    uint32_t slots[PLAN_MAX_DECODE];
    struct step_result result;
    status st = STATUS_OK;

    if (!ratios) {
        return status_fail(STATUS_EXHAUSTED, "no memory");
    }
    for (int64_t i = 0; i < s->batch; i++) {
        slots[i] = (uint32_t)i;
    }
    figures->decode_ms = 1e30;
    for (int64_t i = 0; !st && i < s->steps; i++) {
        double read_ms =
            s->memory ? limits_read(s->memory, READ_BYTES, (int)s->threads) * 1e3 : 1.0;
        double start = clock_ms();

        st = bench_decode(bench, slots, (uint32_t)s->batch, &result);
        double ms = clock_ms() - start;
        figures->decode_ms = ms < figures->decode_ms ? ms : figures->decode_ms;
        ratios[i] = ms / read_ms;
    }
    qsort(ratios, (size_t)s->steps, sizeof(*ratios), ascending);
    figures->read_ratio = ratios[s->steps / 2];
    free(ratios);
    return st;
}

/* Several prompts when the batch is larger than one: each sequence has rows of its own. */
static status run_round(struct bench *bench, const struct settings *s, struct figures *figures)
{
    uint64_t used;
    status st = STATUS_OK;

    *figures = (struct figures){.open_ms = figures->open_ms};
    for (uint32_t slot = 0; !st && slot < (uint32_t)s->batch; slot++) {
        st = read_prompt(bench, s, slot, figures);
    }
    if (!st && s->steps > 0) {
        st = decode(bench, s, figures);
    }
    for (uint32_t slot = 0; !st && slot < (uint32_t)s->batch; slot++) {
        st = bench_release(bench, slot, &used);
    }
    return st;
}

static void print(const struct settings *s, const struct figures *f, const struct limits *limits)
{
    const struct work_config work = {.model = &s->config,
                                     .params = &s->params,
                                     .n_prompt = (int)s->tokens,
                                     .ranks = 1,
                                     .act_bytes = 2};
    struct work prefill = work_prefill(&work), step = work_decode(&work, (int)s->batch);
    double flops = prefill.linear + prefill.attention, bytes = step.weight_bytes + step.kv_bytes;

    printf("{\"method\": \"%s\", \"tokens\": %d, \"batch\": %d, \"threads\": %d, \"ranks\": %d, "
           "\"gemm_gflops\": %.0f, \"read_gbs\": %.1f, \"open_ms\": %.0f, "
           "\"prefill_ms\": %.1f, \"prefill_gflop\": %.0f, \"of_gemm\": %.3f, ",
           s->method, (int)s->tokens, (int)s->batch, (int)s->threads, (int)s->ranks,
           limits->gemm * 1e-9, limits->read * 1e-9, f->open_ms, f->prefill_ms, flops * 1e-9,
           flops / f->prefill_ms * 1e3 / limits->gemm);
    printf("\"scoring_ms\": %.1f, \"collective_ms\": %.1f, \"step_ms\": %.3f, \"step_mb\": %.1f, "
           "\"of_read\": %.3f}\n",
           f->scoring_ms, f->collective_ms, s->steps > 0 ? f->decode_ms : 0.0, bytes * 1e-6,
           s->steps == 0                    ? 0.0
           : strcmp(s->device, "cuda") == 0 ? bytes / f->read_ratio * 1e3 / limits->read
           : s->memory                      ? bytes / READ_BYTES / f->read_ratio
                                            : 0.0);
    fflush(stdout);
}

struct run {
    const struct settings *settings;
    struct limits limits;
};

static uint64_t kv_bytes(const struct settings *s)
{
    const struct model_config *c = &s->config;
    uint64_t rows = (uint64_t)s->batch * (uint64_t)(s->tokens + s->steps + 64);

    return s->kv_gb
               ? (uint64_t)s->kv_gb << 30
               : rows * (uint64_t)c->layers * (uint64_t)c->kv_heads * (uint64_t)c->head_dim * 8;
}

static status run_rank(struct comm *comm, void *context)
{
    const struct run *run = context;
    const struct settings *s = run->settings;
    const struct bench_config config = {
        .model = s->model,
        .dtype = DTYPE_BF16,
        .max_context = (int)(s->tokens + s->steps + 1),
        .kv_bytes = kv_bytes(s),
        .threads = (int)s->threads,
    };
    struct figures figures = {0};
    struct bench bench;
    double start = clock_ms();
    status st = bench_open(&bench, comm, &config);

    figures.open_ms = clock_ms() - start;
    for (int64_t i = 0; !st && i < s->rounds; i++) {
        st = run_round(&bench, s, &figures);
        if (!st && comm_rank(comm) == 0) {
            print(s, &figures, &run->limits);
        }
    }
    bench_close(&bench);
    return st;
}

/* One for each rank; the first tells what it can do. */
static status open_gpus(struct limits *out, const struct settings *s, struct device **gpus)
{
    status st = STATUS_OK;

    for (int i = 0; !st && i < (int)s->ranks; i++) {
        const struct device_config config = {.dtype = DTYPE_BF16, .index = i, .threads = 1};

        st = device_open(&gpus[i], "cuda", &config);
    }
    if (!st && !s->no_limits) {
        st = limits_measure_gpu(out, gpus[0]);
    }
    group_devices = gpus;
    return st;
}

static status measure_limits(struct limits *out, struct settings *s)
{
    size_t bytes = s->no_limits ? READ_BYTES : limits_bytes;
    status st = STATUS_OK;

    s->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->memory == MAP_FAILED) {
        return status_fail(STATUS_EXHAUSTED, "no memory");
    }
    (void)madvise(s->memory, bytes, MADV_HUGEPAGE);
    limits_fill(s->memory, bytes, DTYPE_BF16);
    if (!s->no_limits) {
        st = limits_measure(out, s->memory, DTYPE_BF16, (int)(s->threads * s->ranks));
    }
    if (s->ranks > 1) {
        munmap(s->memory, bytes);
        s->memory = NULL;
    }
    return st;
}

static status parse(struct settings *s, int argc, char **argv, enum options_outcome *outcome)
{
    const struct option table[] = {
        {"model", OPTION_STRING, &s->model, "DIR", "model directory", 0, 0},
        {"method", OPTION_STRING, &s->method, "NAME", "FULL, FASTKV, ...", 0, 0},
        {"device", OPTION_STRING, &s->device, "NAME", "cpu or cuda", 0, 0},
        {"tokens", OPTION_INT, &s->tokens, "N", "of each prompt", 1, 1e6},
        {"batch", OPTION_INT, &s->batch, "N", "sequences", 1, PLAN_MAX_DECODE},
        {"steps", OPTION_INT, &s->steps, "N", "tokens after the first", 0, 1e6},
        {"threads", OPTION_INT, &s->threads, "N", "of each rank", 1, 1024},
        {"ranks", OPTION_INT, &s->ranks, "N", "threads of this process", 1, MOST_RANKS},
        {"rounds", OPTION_INT, &s->rounds, "N", "one line each", 1, 1e6},
        {"kv-gb", OPTION_INT, &s->kv_gb, "N", "memory of the caches; 0: enough for FULL", 0, 1024},
        {"no-limits", OPTION_FLAG, &s->no_limits, NULL,
         "skip the machine, but for the reads beside steps", 0, 0},
    };
    struct options options = {.program = "winnow-bench-engine",
                              .synopsis = "measures a rank's engine",
                              .table = table,
                              .n = sizeof(table) / sizeof(table[0])};

    *s = (struct settings){.method = "FULL",
                           .device = "cpu",
                           .tokens = 2048,
                           .batch = 1,
                           .steps = 16,
                           .threads = 2,
                           .ranks = 1,
                           .rounds = 1};
    status st = options_parse(&options, argc, argv, outcome);
    if (st || *outcome != OPTIONS_RUN) {
        return st;
    }
    if (!s->model || method_by_name(s->method) == METHOD_UNSPECIFIED) {
        return status_fail(STATUS_INVALID, "--model DIR and --method NAME are needed");
    }
    st = model_config_load(&s->config, s->model);
    if (!st) {
        method_defaults(&s->params, method_by_name(s->method), &s->config);
    }
    return st;
}

int main(int argc, char **argv)
{
    enum options_outcome outcome;
    struct settings settings;
    struct run run = {.settings = &settings, .limits = {.read = 1, .gemm = 1}};
    struct device *gpus[MOST_RANKS] = {NULL};
    status st = parse(&settings, argc, argv, &outcome);

    if (!st && outcome != OPTIONS_RUN) {
        return 0;
    }
    if (!st) {
        st = strcmp(settings.device, "cuda") == 0 ? open_gpus(&run.limits, &settings, gpus)
                                                  : measure_limits(&run.limits, &settings);
    }
    if (st) {
        fprintf(stderr, "winnow-bench-engine: %s\n", status_text());
        return 1;
    }
    group_run((int)settings.ranks, run_rank, &run);
    for (int i = 0; i < MOST_RANKS; i++) {
        device_close(gpus[i]);
    }
    return 0;
}
