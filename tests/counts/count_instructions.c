/*
 * count_instructions.c - work whose instructions are counted by callgrind (check_counts.py).
 *
 * Each counted_*() function runs an operation, or a part of the engine, once; what was made
 * ready before does not count.  One thread and AVX2, so that the counts are the same on every
 * machine: valgrind shows programs one fixed processor, which knows no AVX-512.  The sentences
 * that go to must() differ, or the compiler would make one function of two.
 *
 *   winnow-count-instructions       ends with 77 where the processor has no AVX2
 */
#include "kernels/op.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL WINNOW_SOURCE_DIR "/tests/models/needle-tiny"
#define COUNTED __attribute__((noinline)) static void

enum {
    HIDDEN = 256,
    MLP = 768,
    ROWS = 32, /* of a prompt */
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 64,
    KEYS = 256,
    PAGE_ROWS = 32,
    WINDOW = 8,
    PROMPT = 64, /* valgrind's FMA is a call for each lane */
    SHORT = 16,  /* prompts before those that count */
    BATCH = 8,
    SKIPPED = 77,
};

struct tensors {
    struct device *dev;
    void *x, *w, *k, *v, *out; /* act; large enough for every operation */
    float *norm, *scores, *residual;
    int32_t *positions, *top;
};

static void must(status st, const char *what)
{
    if (st) {
        fprintf(stderr, "count: %s: %s\n", what, status_text());
        exit(1);
    }
}

static void *values(struct device *dev, size_t n, bool act)
{
    size_t bytes = n * (act ? dtype_bytes(device_dtype(dev)) : sizeof(float));
    uint32_t state = 1;
    void *memory;

    must(device_alloc(dev, &memory, bytes, "values"), "memory");
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        float value = ((float)(state >> 8) - 8388608.0f) * 0x1p-24f;
        uint32_t bits;

        memcpy(&bits, &value, sizeof(bits));
        if (act && device_dtype(dev) == DTYPE_BF16) {
            ((uint16_t *)memory)[i] = (uint16_t)(bits >> 16);
        } else {
            ((float *)memory)[i] = value;
        }
    }
    return memory;
}

static void tensors_open(struct tensors *t, enum dtype dtype)
{
    const struct device_config config = {.dtype = dtype, .threads = 1, .max_isa = "avx2"};

    must(device_open(&t->dev, "cpu", &config), "device");
    t->x = values(t->dev, (size_t)ROWS * MLP, true);
    t->w = values(t->dev, (size_t)HIDDEN * MLP, true);
    t->k = values(t->dev, (size_t)KV_HEADS * KEYS * HEAD_DIM, true);
    t->v = values(t->dev, (size_t)KV_HEADS * KEYS * HEAD_DIM, true);
    t->out = values(t->dev, (size_t)ROWS * MLP, false);
    t->norm = values(t->dev, HIDDEN, false);
    t->scores = values(t->dev, (size_t)HEADS * KEYS, false);
    t->residual = values(t->dev, (size_t)ROWS * HIDDEN, false);
    t->positions = (int32_t *)values(t->dev, KEYS, false);
    t->top = (int32_t *)values(t->dev, KEYS, false);
    for (int i = 0; i < KEYS; i++) {
        t->positions[i] = i;
    }
}

static void tensors_close(struct tensors *t)
{
    void *all[] = {t->x,    t->w,      t->k,        t->v,         t->out,
                   t->norm, t->scores, t->residual, t->positions, t->top};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        device_free(t->dev, all[i]);
    }
    device_close(t->dev);
}

/* ---- operations ---- */

static void linear_rows(struct tensors *t, int rows, const char *what)
{
    const struct matrix w = {.data = t->w, .rows = MLP, .cols = HIDDEN, .stride = HIDDEN};

    must(op_linear_rows(t->dev, t->out, DTYPE_F32, t->x, &w, rows), what);
}
COUNTED counted_linear_rows_1(struct tensors *t)
{
    linear_rows(t, 1, "one row");
}
COUNTED counted_linear_rows_8(struct tensors *t)
{
    linear_rows(t, BATCH, "rows");
}
COUNTED counted_linear_rows_1_f32(struct tensors *t)
{
    linear_rows(t, 1, "one row, float32");
}

COUNTED counted_attention(struct tensors *t)
{
    const struct attention args = {.out = t->out,
                                   .q = t->x,
                                   .k = t->k,
                                   .v = t->v,
                                   .kv_stride = (size_t)KEYS * HEAD_DIM,
                                   .positions = t->positions,
                                   .first_row = KEYS - ROWS,
                                   .rows = ROWS,
                                   .n_keys = KEYS,
                                   .q_heads = HEADS,
                                   .kv_heads = KV_HEADS,
                                   .head_dim = HEAD_DIM};

    must(op_attention(t->dev, &args), "op_attention");
}

COUNTED counted_decode_attention(struct tensors *t)
{
    enum { PAGES = KEYS / PAGE_ROWS };
    const struct kv_pool pool = {
        .k = t->k, .v = t->v, .page_rows = PAGE_ROWS, .head_dim = HEAD_DIM};
    int32_t numbers[KV_HEADS][PAGES];
    const int32_t *pages[KV_HEADS];
    const int32_t first[KV_HEADS] = {0}, length[KV_HEADS] = {KEYS, KEYS};

    for (int i = 0; i < KV_HEADS * PAGES; i++) {
        numbers[i / PAGES][i % PAGES] = i;
        pages[i / PAGES] = numbers[i / PAGES];
    }
    const struct decode_attention args = {.out = t->out,
                                          .q = t->x,
                                          .pool = &pool,
                                          .pages = pages,
                                          .first = first,
                                          .length = length,
                                          .rows = 1,
                                          .q_heads = HEADS,
                                          .cache_heads = KV_HEADS,
                                          .head_dim = HEAD_DIM};

    must(op_decode_attention(t->dev, &args), "op_decode_attention");
}

COUNTED counted_window_scores(struct tensors *t)
{
    const struct window_scores args = {.out = t->scores,
                                       .q = t->x,
                                       .k = t->k,
                                       .kv_stride = (size_t)KEYS * HEAD_DIM,
                                       .positions = t->positions,
                                       .window = WINDOW,
                                       .n_keys = KEYS,
                                       .q_heads = HEADS,
                                       .kv_heads = KV_HEADS,
                                       .head_dim = HEAD_DIM};

    must(op_window_scores(t->dev, &args), "op_window_scores");
}

COUNTED counted_top_k(struct tensors *t)
{
    must(op_top_k(t->dev, t->top, t->scores, KEYS, KEYS / 10), "op_top_k");
}

COUNTED counted_elementwise(struct tensors *t)
{
    must(op_rmsnorm(t->dev, t->x, t->residual, t->norm, ROWS, HIDDEN, 1e-5f), "op_rmsnorm");
    must(op_silu_mul(t->dev, t->out, t->x, t->x, (size_t)ROWS * HIDDEN), "op_silu_mul");
}

/* ---- the engine ---- */

struct engine_work {
    struct bench *bench;
    struct plan_begin begin;
    uint32_t slots[BATCH];
    uint32_t n_slots;
    uint32_t next_slot;
};

static void prompt(struct engine_work *work, const char *what)
{
    struct outcome out = {0};

    must(bench_prompt(work->bench, &work->begin, &out), what);
    outcome_free(&out);
}
COUNTED counted_prompt_full(struct engine_work *work)
{
    prompt(work, "prompt, FULL");
}
COUNTED counted_prompt_fastkv(struct engine_work *work)
{
    prompt(work, "prompt, FASTKV");
}

static void decode(struct engine_work *work, const char *what)
{
    struct step_result result;

    must(bench_decode(work->bench, work->slots, work->n_slots, &result), what);
}
COUNTED counted_decode_1(struct engine_work *work)
{
    decode(work, "decode, 1");
}
COUNTED counted_decode_8(struct engine_work *work)
{
    decode(work, "decode, 8");
}

static void begin_prompt(struct engine_work *work, const uint32_t *ids, uint32_t n,
                         enum method method)
{
    uint32_t slot = work->next_slot++;

    work->begin = (struct plan_begin){.slot = slot,
                                      .n_prompt = n,
                                      .prompt = ids,
                                      .max_rows = 8,
                                      .sampling = {.top_p = 1.0F, .repetition_penalty = 1.0F}};
    method_defaults(&work->begin.params, method, &work->bench->model->config);
}

static status run_engine(struct comm *comm, void *context)
{
    const struct bench_config config = {
        .model = MODEL, .dtype = DTYPE_BF16, .max_context = 1024, .kv_bytes = (uint64_t)64 << 20};
    struct bench bench;
    struct engine_work work = {.bench = &bench};
    uint32_t ids[PROMPT];

    (void)context;
    must(bench_open(&bench, comm, &config), "engine");
    for (uint32_t i = 0; i < PROMPT; i++) {
        ids[i] = 3 + i * 37 % 400;
    }
    /* The library makes a primitive for each number of rows. */
    begin_prompt(&work, ids, PROMPT, METHOD_FASTKV);
    prompt(&work, "first prompt");
    for (uint32_t i = 0; i < BATCH; i++) {
        begin_prompt(&work, ids, SHORT, METHOD_FULL);
        prompt(&work, "short prompt");
        work.slots[work.n_slots++] = work.begin.slot;
    }
    decode(&work, "first decode");
    counted_decode_8(&work);
    work.n_slots = 1;
    counted_decode_1(&work);
    begin_prompt(&work, ids, PROMPT, METHOD_FULL);
    counted_prompt_full(&work);
    begin_prompt(&work, ids, PROMPT, METHOD_FASTKV);
    counted_prompt_fastkv(&work);
    bench_close(&bench);
    return STATUS_OK;
}

int main(void)
{
    struct tensors t;

    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        fprintf(stderr, "count: this processor has no AVX2\n");
        return SKIPPED;
    }
    tensors_open(&t, DTYPE_BF16);
    counted_linear_rows_1(&t);
    counted_linear_rows_8(&t);
    counted_attention(&t);
    counted_decode_attention(&t);
    counted_window_scores(&t);
    counted_top_k(&t);
    counted_elementwise(&t);
    tensors_close(&t);
    tensors_open(&t, DTYPE_F32);
    counted_linear_rows_1_f32(&t);
    tensors_close(&t);
    group_run(1, run_engine, NULL);
    return 0;
}
