#include "common/plan.h"
#include "tests/check.h"

#include <stdlib.h>
#include <string.h>

static const struct model_config model = {
    .name = "test", .layers = 4, .hidden = 64, .query_heads = 4, .kv_heads = 2, .vocab = 100};

static struct plan_begin example_begin(const uint32_t *prompt, uint32_t n)
{
    struct plan_begin begin = {
        .slot = 7,
        .n_prompt = n,
        .prompt = prompt,
        .sampling = {.max_tokens = 5,
                     .min_tokens = 2,
                     .temperature = 0.5F,
                     .top_p = 0.9F,
                     .top_k = 40,
                     .min_p = 0.01F,
                     .repetition_penalty = 1.1F,
                     .frequency_penalty = -0.5F,
                     .presence_penalty = 0.25F,
                     .seed = 11,
                     .sample = 2,
                     .logprobs = 21},
        .trace = TRACE_SELECTED | TRACE_STEP_LOGITS,
        .max_rows = 4,
    };

    method_defaults(&begin.params, METHOD_FASTKV, &model);
    begin.params.tsp_rate = 0.3;
    begin.params.window = 3;
    return begin;
}

static void test_a_plan_survives_the_wire(void **state)
{
    const uint32_t prompt[] = {1, 99, 5};
    const uint32_t release[] = {3, 1000};
    const uint32_t decode[] = {8, 9};
    struct plan_begin begin = example_begin(prompt, 3);
    struct plan_advance advance = {.slot = 7, .slices = 12};
    struct plan plan = {.epoch = 4,
                        .number = 1ULL << 40,
                        .n_release = 2,
                        .release = release,
                        .n_begin = 1,
                        .begin = &begin,
                        .n_advance = 1,
                        .advance = &advance,
                        .n_decode = 2,
                        .decode = decode};
    struct plan back;
    uint8_t *data;
    size_t bytes;

    (void)state;
    CHECK_OK(plan_encode(&plan, &data, &bytes));
    CHECK_OK(plan_decode(&back, data, bytes, &model));
    CHECK(back.epoch == 4 && back.number == 1ULL << 40);
    CHECK(back.n_release == 2 && back.release[1] == 1000);
    CHECK(back.n_decode == 2 && back.decode[0] == 8);
    CHECK(back.n_advance == 1 && back.advance[0].slices == 12);
    CHECK(back.n_begin == 1 && back.begin[0].n_prompt == 3 && back.begin[0].prompt[1] == 99);
    CHECK(back.begin[0].params.tsp_rate == 0.3 && back.begin[0].params.window == 3);
    CHECK(back.begin[0].params.group_reduce == GROUP_SUM);
    CHECK(memcmp(&back.begin[0].sampling, &begin.sampling, sizeof(begin.sampling)) == 0);
    CHECK(back.begin[0].trace == begin.trace && back.begin[0].max_rows == 4);
    plan_free(&back);
    free(data);
}

static void test_a_token_outside_the_vocabulary_is_refused(void **state)
{
    const uint32_t prompt[] = {1, 100};
    struct plan_begin begin = example_begin(prompt, 2);
    struct plan plan = {.n_begin = 1, .begin = &begin};
    struct plan back;
    uint8_t *data;
    size_t bytes;

    (void)state;
    CHECK_OK(plan_encode(&plan, &data, &bytes));
    CHECK_FAILS(plan_decode(&back, data, bytes, &model), STATUS_INVALID, "token 100");
    free(data);
}

static void test_a_slot_beyond_the_limit_is_refused(void **state)
{
    const uint32_t slots[] = {PLAN_MAX_SLOTS};
    const struct plan plans[] = {
        {.n_release = 1, .release = slots},
        {.n_decode = 1, .decode = slots},
        {.n_advance = 1, .advance = &(struct plan_advance){.slot = PLAN_MAX_SLOTS, .slices = 1}},
        {.n_advance = 1, .advance = &(struct plan_advance){.slot = 0, .slices = 0}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
        struct plan back;
        uint8_t *data;
        size_t bytes;
        CHECK_OK(plan_encode(&plans[i], &data, &bytes));
        CHECK_FAILS(plan_decode(&back, data, bytes, &model), STATUS_INVALID, "slot");
        free(data);
    }
}

static void test_bytes_that_are_no_plan_are_refused(void **state)
{
    struct plan plan;
    struct step_result result;
    const uint8_t noise[] = {0xff, 0xff, 0xff, 0xff};

    (void)state;
    CHECK_FAILS(plan_decode(&plan, noise, sizeof(noise), &model), STATUS_INVALID, "not a plan");
    CHECK_FAILS(step_result_decode(&result, noise, sizeof(noise)), STATUS_INVALID, "not a step");
}

static void test_a_fork_survives_the_wire(void **state)
{
    struct plan_begin begin = {.slot = 9, .sampling.sample = 3, .forks = true, .source = 7};
    const struct plan plan = {.n_begin = 1, .begin = &begin};
    struct plan back;
    uint8_t *data;
    size_t bytes;

    (void)state;
    CHECK_OK(plan_encode(&plan, &data, &bytes));
    CHECK_OK(plan_decode(&back, data, bytes, &model));
    CHECK(back.n_begin == 1 && back.begin[0].forks && back.begin[0].source == 7);
    CHECK(back.begin[0].slot == 9 && back.begin[0].sampling.sample == 3);
    plan_free(&back);
    free(data);
    begin.source = PLAN_MAX_SLOTS;
    CHECK_OK(plan_encode(&plan, &data, &bytes));
    CHECK_FAILS(plan_decode(&back, data, bytes, &model), STATUS_INVALID, "forks slot 1024");
    free(data);
}

static void test_too_many_logprobs_are_refused(void **state)
{
    const uint32_t prompt[] = {1};
    struct plan_begin begin = example_begin(prompt, 1);
    const struct plan plan = {.n_begin = 1, .begin = &begin};
    struct plan back;
    uint32_t ids[PLAN_MAX_LOGPROBS + 1] = {0};
    float values[PLAN_MAX_LOGPROBS + 1] = {0};
    const struct result_logprob logprob = {0.0F, PLAN_MAX_LOGPROBS + 1, ids, values};
    const struct result_token token = {.logprob = &logprob};
    const struct step_result result = {.n_tokens = 1, .tokens = &token};
    struct step_result result_back;
    uint8_t *data;
    size_t bytes;

    (void)state;
    begin.sampling.logprobs = PLAN_MAX_LOGPROBS + 2;
    CHECK_OK(plan_encode(&plan, &data, &bytes));
    CHECK_FAILS(plan_decode(&back, data, bytes, &model), STATUS_INVALID, "21 logprobs");
    free(data);
    CHECK_OK(step_result_encode(&result, &data, &bytes));
    CHECK_FAILS(step_result_decode(&result_back, data, bytes), STATUS_INVALID, "21 ids");
    free(data);
}

static void test_a_result_survives_the_wire(void **state)
{
    const uint32_t kept[] = {0, 4, 5};
    const uint32_t in[] = {6, 6, 3, 3};
    const float values[] = {0.5F, -1.0F};
    const struct result_logprob logprob = {-0.75F, 2, kept, values};
    struct result_token token = {.slot = 7, .id = 42, .logprob = &logprob};
    struct result_head heads[] = {{.layer = 1, .head = 0, .n_kept = 3, .kept = kept},
                                  {.layer = 2, .head = 1, .n_kept = 1, .kept = kept}};
    struct result_prompt prompt = {.slot = 7,
                                   .kv_rows = 11,
                                   .kv_bytes = 12,
                                   .kv_bytes_full = 13,
                                   .kv_heads = 2,
                                   .shared_pages = 5,
                                   .pages = 21,
                                   .n_tokens_in = 4,
                                   .tokens_in = in,
                                   .n_heads = 2,
                                   .heads = heads,
                                   .n_propagated = 3,
                                   .propagated = kept};
    struct result_logits logits = {.slot = 7, .prompt = true, .n_values = 2, .values = values};
    struct step_result result = {.epoch = 1,
                                 .number = 2,
                                 .n_tokens = 1,
                                 .tokens = &token,
                                 .n_prompts = 1,
                                 .prompts = &prompt,
                                 .n_logits = 1,
                                 .logits = &logits,
                                 .compute_ms = 1.5,
                                 .collective_ms = 0.5,
                                 .scoring_ms = 0.25,
                                 .n_failed = 2,
                                 .failed = (const uint32_t[]){4, 1023},
                                 .decode_ms = 0.75,
                                 .kv_bytes_used = 99,
                                 .index_hash = 0xfeedfacecafebeefULL};
    struct step_result back;
    uint8_t *data;
    size_t bytes;

    (void)state;
    CHECK_OK(step_result_encode(&result, &data, &bytes));
    CHECK_OK(step_result_decode(&back, data, bytes));
    CHECK(back.n_tokens == 1 && back.tokens[0].id == 42);
    CHECK(back.tokens[0].logprob->logprob == -0.75F && back.tokens[0].logprob->n_top == 2);
    CHECK(back.tokens[0].logprob->top_ids[1] == 4);
    CHECK(back.tokens[0].logprob->top_logprobs[1] == -1.0F);
    CHECK(back.n_prompts == 1 && back.prompts[0].kv_bytes_full == 13);
    CHECK(back.prompts[0].pages == 21 && back.compute_ms == 1.5 && back.decode_ms == 0.75);
    CHECK(back.prompts[0].n_heads == 2 && back.prompts[0].heads[0].kept[2] == 5);
    CHECK(back.prompts[0].heads[1].layer == 2 && back.prompts[0].n_propagated == 3);
    CHECK(back.prompts[0].tokens_in[2] == 3 && back.prompts[0].kv_rows == 11);
    CHECK(back.prompts[0].shared_pages == 5);
    CHECK(back.n_logits == 1 && back.logits[0].prompt && back.logits[0].values[1] == -1.0F);
    CHECK(back.n_failed == 2 && back.failed[0] == 4 && back.failed[1] == 1023);
    CHECK(back.index_hash == 0xfeedfacecafebeefULL && back.kv_bytes_used == 99);
    step_result_free(&back);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_plan_survives_the_wire),
        cmocka_unit_test(test_a_token_outside_the_vocabulary_is_refused),
        cmocka_unit_test(test_a_slot_beyond_the_limit_is_refused),
        cmocka_unit_test(test_bytes_that_are_no_plan_are_refused),
        cmocka_unit_test(test_a_fork_survives_the_wire),
        cmocka_unit_test(test_too_many_logprobs_are_refused),
        cmocka_unit_test(test_a_result_survives_the_wire),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
