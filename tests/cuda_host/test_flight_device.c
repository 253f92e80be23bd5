/* test_flight_device.c - a prompt of two chunks on two GPUs, whose sums are on their way while the
 * next chunk is computed and another sequence decodes from graphs: the tokens of two CPUs. */
#include "common/slices.h"
#include "tests/check.h"
#include "tests/worker/helpers_engine.h"
#include "tests/worker/helpers_gpus.h"
#include "tests/worker/helpers_group.h"

enum { PROMPTS = 2, STEPS = 6 };

/* The one that decodes, and one of two chunks. */
static const uint32_t lengths[PROMPTS] = {20, SLICE_ROWS + 8};

struct run {
    uint32_t tokens[PROMPTS][STEPS + 1]; /* of rank 0 */
    int n_tokens[PROMPTS];
};

static void take(struct run *run, const struct step_result *result)
{
    for (uint32_t i = 0; i < result->n_tokens; i++) {
        uint32_t slot = result->tokens[i].slot;
        run->tokens[slot][run->n_tokens[slot]++] = result->tokens[i].id;
    }
}

/* The long prompt slice by slice; the short sequence decodes beside some of them. */
static status read_beside(struct bench *bench, const struct plan_begin *begin, struct run *run)
{
    const struct plan_advance advance = {.slot = begin->slot, .slices = 1};
    const uint32_t other = 0;
    bool done = false;
    struct step_result result;
    status st = STATUS_OK;

    for (int step = 0; !st && !done; step++) {
        const struct plan plan = {.number = bench->number++,
                                  .n_begin = step == 0,
                                  .begin = begin,
                                  .n_advance = 1,
                                  .advance = &advance,
                                  .n_decode = step > 0 && step <= STEPS,
                                  .decode = &other};
        st = engine_step(bench->engine, &plan, &result);
        if (!st) {
            take(run, &result);
            done = result.n_prompts > 0;
        }
    }
    return st;
}

static status run_rank(struct comm *comm, void *context)
{
    const struct bench_config config = {.model = "tests/models/stories260k",
                                        .dtype = DTYPE_F32,
                                        .max_context = SLICE_ROWS + 128,
                                        .kv_bytes = 16 << 20};
    struct run ignored = {0}, *run = comm_rank(comm) == 0 ? context : &ignored;
    struct outcome out = {0};
    uint32_t prompt[SLICE_ROWS + 8];
    struct plan_begin begin = {.n_prompt = lengths[0],
                               .prompt = prompt,
                               .sampling = {.top_p = 1, .repetition_penalty = 1},
                               .max_rows = STEPS};
    struct bench bench;
    status st = bench_open(&bench, comm, &config);

    for (uint32_t i = 0; i < SLICE_ROWS + 8; i++) {
        prompt[i] = 3 + i * 7 % 400;
    }
    if (!st) {
        method_defaults(&begin.params, METHOD_FASTKV, &bench.model->config);
        st = bench_prompt(&bench, &begin, &out);
    }
    if (!st) {
        begin.slot = 1;
        begin.first_row = PLAN_ROW_STEP;
        begin.n_prompt = lengths[1];
        st = read_beside(&bench, &begin, run);
    }
    outcome_free(&out);
    bench_close(&bench);
    return st;
}

static void test_sums_on_their_way_beside_graphs_change_no_token(void **state)
{
    struct run gpu = {0}, cpu = {0};

    (void)state;
    gpus_open(2, DTYPE_F32);
    group_run(2, run_rank, &gpu);
    gpus_close();
    group_run(2, run_rank, &cpu);
    CHECK(cpu.n_tokens[0] == STEPS && cpu.n_tokens[1] == 1);
    assert_memory_equal(&gpu, &cpu, sizeof(gpu));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_on_their_way_beside_graphs_change_no_token),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
