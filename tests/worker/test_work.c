/* test_work.c - the work of a prompt and of a token, against sums that can be done by hand. */
#include "tests/check.h"
#include "worker/work.h"

#include <math.h>

static const struct model_config model = {
    .layers = 4,
    .hidden = 64,
    .intermediate = 96,
    .query_heads = 8,
    .kv_heads = 4,
    .head_dim = 8,
    .vocab = 100,
};

enum {
    KEYS = 2 * 64 * 32,
    QUERIES = 2 * 64 * 64 + 3 * 64 * 96,
    LOGITS = 64 * 100,
};

static struct work_config config_of(struct method_params *params, enum method method, int ranks)
{
    method_defaults(params, method, &model);
    return (struct work_config){
        .model = &model, .params = params, .n_prompt = 100, .ranks = ranks, .act_bytes = 2};
}

static void check_near(double got, double expected)
{
    if (!(fabs(got - expected) <= 1e-9 * expected)) {
        fail_msg("%.17g, not %.17g", got, expected);
    }
}

static void test_a_full_prompt_costs_what_its_matrices_do(void **state)
{
    struct method_params params;
    const struct work_config config = config_of(&params, METHOD_FULL, 1);
    struct work work = work_prefill(&config);

    (void)state;
    /* of the last layer only one row goes past its keys */
    check_near(work.linear, 2.0 * (4.0 * 100 * KEYS + (3.0 * 100 + 1) * QUERIES + LOGITS));
    check_near(work.attention, 4.0 * 64 * (3 * 100 * 101 / 2.0 + 100));
    check_near(work.weight_bytes, 2.0 * (4.0 * (KEYS + QUERIES) + LOGITS));
    check_near(work.kv_bytes, 2.0 * 64 * (4 * 100 + 4 * 100)); /* written, and read once */
    assert_true(work.collectives == 0 && work.collective_bytes == 0);
}

static void test_ranks_share_the_work_and_exchange(void **state)
{
    struct method_params params;
    const struct work_config one = config_of(&params, METHOD_FULL, 1);
    const struct work_config four = config_of(&params, METHOD_FULL, 4);
    struct work whole = work_prefill(&one), part = work_prefill(&four);

    (void)state;
    check_near(4 * part.linear, whole.linear);
    check_near(4 * part.weight_bytes, whole.weight_bytes);
    check_near(4 * part.kv_bytes, whole.kv_bytes);
    check_near(part.residual_bytes, whole.residual_bytes);
    /* two a layer and the embedding, 3/4 out and in; the one row of the last layer whole to three
     */
    check_near(part.collective_bytes, 4 * 64 * (1.5 * (2 * 3 * 100 + 100) + 3 * 2));
    check_near(part.collectives, 2 * 4 + 1);
}

static void test_rows_that_were_dropped_cost_nothing(void **state)
{
    struct method_params params;
    const struct work_config config = config_of(&params, METHOD_FASTKV, 1);
    struct work work = work_prefill(&config);
    int tsp = params.tsp_layer;
    struct layer_rows rows = method_layer_rows(&params, &model, 100, tsp, 100);

    (void)state;
    assert_true(rows.propagated < 100 && tsp == 1);
    /* layer 0 whole; layer 1 keys of all, queries of the chosen; layer 2 chosen; layer 3 one */
    check_near(work.linear, 2.0 * ((2.0 * 100 + 2 * rows.propagated) * KEYS +
                                   (100.0 + 2 * rows.propagated + 1) * QUERIES + LOGITS));
}

static void test_a_token_reads_all_weights_and_what_was_kept(void **state)
{
    struct method_params params;
    const struct work_config config = config_of(&params, METHOD_FASTKV, 2);
    struct work one = work_decode(&config, 1), eight = work_decode(&config, 8);
    double kept = 0;
    int rows = 100;

    (void)state;
    for (int layer = 0; layer < 4; layer++) {
        struct layer_rows counts = method_layer_rows(&params, &model, 100, layer, rows);
        kept += counts.kept + 1;
        rows = counts.propagated;
    }
    check_near(one.weight_bytes, 4.0 * (KEYS + QUERIES) + LOGITS);
    check_near(one.kv_bytes, kept * 2 * 32 * 2 / 2);
    check_near(eight.weight_bytes, one.weight_bytes);
    check_near(eight.kv_bytes, 8 * one.kv_bytes);
    check_near(eight.linear, 8 * one.linear);
    check_near(one.collectives, 9);
    check_near(one.collective_bytes, 9 * 64 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_full_prompt_costs_what_its_matrices_do),
        cmocka_unit_test(test_ranks_share_the_work_and_exchange),
        cmocka_unit_test(test_rows_that_were_dropped_cost_nothing),
        cmocka_unit_test(test_a_token_reads_all_weights_and_what_was_kept),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
