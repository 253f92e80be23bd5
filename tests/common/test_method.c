#include "common/file.h"
#include "common/json.h"
#include "common/method.h"
#include "tests/check.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct model_config with_layers(int layers)
{
    return (struct model_config){.name = "m",
                                 .layers = layers,
                                 .hidden = 64,
                                 .intermediate = 96,
                                 .query_heads = 4,
                                 .kv_heads = 2,
                                 .head_dim = 16,
                                 .vocab = 100};
}

static void test_names_and_methods_agree_in_any_case(void **state)
{
    (void)state;
    for (int m = METHOD_FULL; m < METHOD_COUNT; m++) {
        assert_int_equal(method_by_name(method_name((enum method)m)), m);
    }
    assert_int_equal(method_by_name("fastkv"), METHOD_FASTKV);
    assert_int_equal(method_by_name("FastKV"), METHOD_FASTKV);
    assert_int_equal(method_by_name("nonsense"), METHOD_UNSPECIFIED);
    assert_int_equal(method_by_name(""), METHOD_UNSPECIFIED);
    assert_null(method_name(METHOD_COUNT));
    CHECK(method_supported(METHOD_FULL) && method_supported(METHOD_FASTKV));
    CHECK(!method_supported(METHOD_UNSPECIFIED) && !method_supported(METHOD_COUNT));
}

static void test_defaults_are_those_of_the_published_code(void **state)
{
    struct model_config config = with_layers(32);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_FASTKV, &config);
    CHECK(p.method == METHOD_FASTKV && !p.absolute);
    CHECK(p.retain_rate == 0.1 && p.tsp_rate == 0.2);
    assert_int_equal(p.window, 8);
    assert_int_equal(p.kernel, 7);
    assert_int_equal(p.pooling, POOLING_MAX);
    assert_int_equal(p.granularity, GRANULARITY_KV);
    assert_int_equal(p.group_reduce, GROUP_SUM);
    assert_int_equal(p.reduce_stage, REDUCE_POST);
    assert_int_equal(p.tsp_layer, 15);
    config = with_layers(36);
    method_defaults(&p, METHOD_FASTKV, &config);
    assert_int_equal(p.tsp_layer, 17);
    config = with_layers(40);
    method_defaults(&p, METHOD_FASTKV, &config);
    assert_int_equal(p.tsp_layer, 19);
    method_defaults(&p, METHOD_SNAPKV, &config);
    assert_int_equal(p.group_reduce, GROUP_MEAN);
    assert_int_equal(p.reduce_stage, REDUCE_PRE);
}

static void test_full_keeps_and_propagates_everything(void **state)
{
    struct model_config config = with_layers(4);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_FULL, &config);
    for (int layer = 0; layer < 4; layer++) {
        struct layer_rows rows = method_layer_rows(&p, &config, 77, layer, 77);
        assert_int_equal(rows.kept, 77);
        assert_int_equal(rows.propagated, 77);
        CHECK(!rows.selects);
    }
    assert_int_equal(method_propagated(&p, &config, 77), 77);
}

/* FastKV on a model of 6 layers, TSP at layer 2; rows that enter, are kept, go on. */
struct step {
    int rows, layer, kept, propagated;
    bool selects;
};

static void check_steps(const struct method_params *p, const struct step *steps, size_t n)
{
    struct model_config config = with_layers(6);

    for (size_t i = 0; i < n; i++) {
        const struct step *s = &steps[i];
        struct layer_rows out = method_layer_rows(p, &config, s->rows, s->layer, s->rows);
        if (out.kept != s->kept || out.propagated != s->propagated || out.selects != s->selects) {
            fail_msg("step %zu: kept %d, propagated %d, selects %d", i, out.kept, out.propagated,
                     out.selects);
        }
    }
}

static void test_fastkv_rates_follow_the_published_rules(void **state)
{
    static const struct step steps[] = {
        {1000, 0, 100, 1000, true}, /* trunc(m r) */
        {1000, 2, 100, 200, true},  /* the TSP layer: trunc(m p) go on */
        {200, 3, 100, 200, true},   /* above it the rate is r / p */
        {1009, 2, 100, 201, true},  /* products are cut, not rounded */
        {37, 0, 8, 37, true},       /* a budget below the window: the window stays */
        {37, 2, 8, 8, true},        /* and goes on */
        {8, 2, 8, 8, false},        /* no more than the window: nothing happens */
        {3, 2, 3, 3, false},        {9, 2, 8, 8, true},
    };
    struct model_config config = with_layers(6);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_FASTKV, &config);
    p.tsp_layer = 2;
    check_steps(&p, steps, sizeof(steps) / sizeof(steps[0]));
    assert_int_equal(method_propagated(&p, &config, 1000), 200);
    /* 0.3 / 0.2 > 1: later layers keep all that enters. */
    static const struct step above[] = {{1000, 1, 300, 1000, true}, {200, 4, 200, 200, false}};
    p.retain_rate = 0.3;
    check_steps(&p, above, 2);
    /* The quotient is formed first, in double: 0.15 / 0.2 is a little less than 0.75. */
    static const struct step quotient[] = {{1000, 5, 749, 1000, true}, {200, 3, 149, 200, true}};
    p.retain_rate = 0.15;
    check_steps(&p, quotient, 2);
    static const struct step product[] = {{100, 0, 28, 100, true}};
    p.retain_rate = 0.29;
    check_steps(&p, product, 1);
    /* A rate of 1 selects everything, which is still a selection; nothing is dropped. */
    static const struct step whole[] = {{1000, 2, 1000, 1000, true}};
    p.retain_rate = 1;
    p.tsp_rate = 1;
    check_steps(&p, whole, 1);
}

static void test_fastkv_counts_follow_the_published_rules(void **state)
{
    static const struct step steps[] = {
        {1000, 0, 64, 1000, true}, {1000, 2, 64, 256, true}, {256, 3, 64, 256, true},
        {63, 2, 63, 63, false}, /* shorter than the capacity: no TSP either */
        {64, 2, 64, 64, true},     {256, 2, 64, 256, true},  {257, 2, 64, 256, true},
    };
    struct model_config config = with_layers(6);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_FASTKV, &config);
    p.tsp_layer = 2;
    p.absolute = true;
    p.capacity = 64;
    p.tsp_len = 256;
    check_steps(&p, steps, sizeof(steps) / sizeof(steps[0]));
    /* Both below the window: the window stays. */
    static const struct step small[] = {{100, 2, 8, 8, true}};
    p.capacity = 3;
    p.tsp_len = 5;
    check_steps(&p, small, 1);
}

static void test_a_huge_quotient_of_rates_keeps_everything(void **state)
{
    static const struct step steps[] = {{1 << 24, 5, 1 << 24, 1 << 24, false}};
    struct model_config config = with_layers(6);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_FASTKV, &config);
    p.tsp_layer = 2;
    p.retain_rate = 1;
    p.tsp_rate = 1e-9;
    check_steps(&p, steps, 1);
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

static bool truth(const cJSON *object, const char *name)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static bool says(const cJSON *object, const char *name, const char *value)
{
    return strcmp(cJSON_GetObjectItemCaseSensitive(object, name)->valuestring, value) == 0;
}

/* scores must outlive p. */
static void read_head_scores(struct method_params *p, const cJSON *params, float *scores)
{
    const cJSON *layer;
    const cJSON *score;

    p->head_scores = scores;
    cJSON_ArrayForEach(layer, cJSON_GetObjectItemCaseSensitive(params, "head_scores"))
    {
        cJSON_ArrayForEach(score, layer)
        {
            scores[p->n_head_scores++] = (float)score->valuedouble;
        }
    }
}

static void read_params(struct method_params *p, const cJSON *params,
                        const struct model_config *config)
{
    const char *name = cJSON_GetObjectItemCaseSensitive(params, "method")->valuestring;

    method_defaults(p, method_by_name(name), config);
    p->absolute =
        strcmp(cJSON_GetObjectItemCaseSensitive(params, "mode")->valuestring, "constant") == 0;
    p->capacity = (int)number(params, "capacity");
    p->retain_rate = number(params, "retain_rate");
    p->window = (int)number(params, "window");
    p->tsp_layer = (int)number(params, "tsp_layer");
    p->tsp_rate = number(params, "tsp_rate");
    p->tsp_len = (int)number(params, "tsp_len");
    p->granularity = says(params, "granularity", "q") ? GRANULARITY_Q : GRANULARITY_KV;
    p->filter_layer = (int)number(params, "filter_layer");
    p->floor_alpha = number(params, "floor_alpha");
    p->headkv_beta = number(params, "headkv_beta");
    p->headkv_temp = number(params, "headkv_temp");
    p->pyramid_beta = (int)number(params, "pyramid_beta");
    p->sinks = (int)number(params, "sinks");
    p->rolling = truth(params, "rolling");
    p->pi_recent_ratio = number(params, "pi_recent_ratio");
    p->pi_decay_ratio = number(params, "pi_decay_ratio");
    p->pi_min_context = (int)number(params, "pi_min_context");
}

/* Heads that differ stay below the worst case, and one of HEADKV reaches it; others are exact. */
static void check_layer(const cJSON *heads, const struct method_params *p, int expected,
                        const char *path, int layer)
{
    bool differ = p->method == METHOD_ADAKV || p->method == METHOD_FASTGEN;
    int most = 0;
    const cJSON *head;

    cJSON_ArrayForEach(head, heads)
    {
        int kept = cJSON_GetArraySize(head);
        most = kept > most ? kept : most;
        if (kept > expected || (kept < expected && !differ && p->method != METHOD_HEADKV)) {
            fail_msg("%s: layer %d: %d rows kept, not %d", path, layer, kept, expected);
        }
    }
    if (p->method == METHOD_HEADKV && most != expected) {
        fail_msg("%s: layer %d: at most %d rows kept, not %d", path, layer, most, expected);
    }
}

/* What was kept and propagated in a golden case is as many as counted here. */
static void check_case(const cJSON *json, const struct model_config *config, const char *path)
{
    const cJSON *layers = cJSON_GetObjectItemCaseSensitive(json, "layers");
    const cJSON *params = cJSON_GetObjectItemCaseSensitive(json, "params");
    int n_prompt = (int)number(json, "n_prompt");
    float scores[4096];
    struct method_params p;

    read_params(&p, params, config);
    read_head_scores(&p, params, scores);
    int rows = method_first_rows(&p, n_prompt);
    assert_int_equal(cJSON_GetArraySize(layers), config->layers);
    for (int l = 0; l < config->layers; l++) {
        const cJSON *layer = cJSON_GetArrayItem(layers, l);
        const cJSON *heads = cJSON_GetObjectItemCaseSensitive(layer, "kept");
        struct layer_rows out = method_layer_rows(&p, config, n_prompt, l, rows);
        if ((int)number(layer, "n_in") != rows) {
            fail_msg("%s: layer %d: %d rows enter, not %d", path, l, (int)number(layer, "n_in"),
                     rows);
        }
        CHECK(cJSON_GetArraySize(heads) == method_cache_heads(&p, config));
        check_layer(heads, &p, out.kept, path, l);
        rows = out.propagated;
    }
}

static void test_gemfilter_chooses_between_one_token_and_all(void **state)
{
    struct model_config config = with_layers(32);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_GEMFILTER, &config);
    CHECK(p.filter_layer == 13 && p.gem_kernel == 5 && p.gem_keep_last);
    assert_int_equal(method_first_rows(&p, 1005), 100);
    assert_int_equal(method_first_rows(&p, 9), 1);
    assert_int_equal(method_first_rows(&p, 1), 1);
    CHECK(method_filters(&p, 1005) && method_filters(&p, 2) && !method_filters(&p, 1));
    p.absolute = true;
    p.capacity = 64;
    CHECK(method_filters(&p, 65) && !method_filters(&p, 64));
    assert_int_equal(method_first_rows(&p, 40), 40);
    assert_int_equal(method_propagated(&p, &config, 1000), 64);
    for (int m = METHOD_FULL; m < METHOD_COUNT; m++) {
        method_defaults(&p, (enum method)m, &config);
        CHECK(m == METHOD_GEMFILTER || !method_filters(&p, 1000));
    }
}

static void test_pyramidinfer_keeps_its_sinks_whatever_the_ratio(void **state)
{
    struct model_config config = with_layers(4);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_PYRAMIDINFER, &config);
    p.pi_recent_ratio = 0;
    p.pi_decay_ratio = 0;
    p.pi_min_context = 0;
    assert_int_equal(method_score_rows(&p, 101), 1);
    assert_int_equal(method_layer_rows(&p, &config, 101, 2, 101).propagated, 51);
    p.pi_sinks = 70;
    assert_int_equal(method_layer_rows(&p, &config, 101, 2, 101).propagated, 71);
    p.pi_sinks = 200;
    assert_int_equal(method_layer_rows(&p, &config, 101, 2, 101).propagated, 101);
    p.pi_recent_ratio = 1; /* more recent rows than there are others: nothing to drop */
    assert_int_equal(method_layer_rows(&p, &config, 101, 2, 101).propagated, 101);
}

static int check_file(const char *path, const struct model_config *config)
{
    char *text;
    size_t bytes;
    cJSON *json;

    CHECK_OK(file_read(&text, &bytes, path, 64 << 20));
    CHECK_OK(json_parse(&json, path, text, bytes));
    check_case(json, config, path);
    cJSON_Delete(json);
    free(text);
    return 1;
}

static int check_model(const char *folder, const char *name)
{
    char path[1024];
    char file[1536];
    struct model_config config;
    int checked = 0;

    snprintf(path, sizeof(path), "%s/%s/model", folder, name);
    CHECK_OK(model_config_load(&config, path));
    snprintf(path, sizeof(path), "%s/%s/cases", folder, name);
    DIR *list = opendir(path);
    assert_non_null(list);
    for (struct dirent *entry = readdir(list); entry; entry = readdir(list)) {
        size_t length = strlen(entry->d_name);
        if (length > 5 && strcmp(entry->d_name + length - 5, ".json") == 0) {
            snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
            checked += check_file(file, &config);
        }
    }
    closedir(list);
    return checked;
}

static int check_folder(const char *folder)
{
    DIR *list = opendir(folder);
    int checked = 0;

    assert_non_null(list);
    for (struct dirent *entry = readdir(list); entry; entry = readdir(list)) {
        if (entry->d_name[0] != '.') {
            checked += check_model(folder, entry->d_name);
        }
    }
    closedir(list);
    return checked;
}

static void test_adakv_heads_keep_what_they_won_and_the_floor(void **state)
{
    struct model_config config = with_layers(4);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_ADAKV, &config);
    p.absolute = true;
    p.capacity = 28; /* 20 before the window; the floor is trunc(20 * 0.2) = 4 */
    CHECK(method_adakv_places(&p, &config, 100) == 20 * config.kv_heads);
    assert_int_equal(method_adakv_rows(&p, 100, 0), 8 + 4);
    assert_int_equal(method_adakv_rows(&p, 100, 20), 8 + 20);
    assert_int_equal(method_adakv_rows(&p, 100, 3), 8 + 6);  /* 2.4 + 4 */
    assert_int_equal(method_adakv_rows(&p, 30, 80), 8 + 22); /* no more than there are */
    p.floor_alpha = 0.5;
    assert_int_equal(method_adakv_rows(&p, 100, 1), 8 + 10); /* 10.5 goes to the even one */
    assert_int_equal(method_adakv_rows(&p, 100, 3), 8 + 12);
    p.capacity = 5; /* below the window: it alone stays */
    CHECK(method_adakv_places(&p, &config, 100) == 0);
    assert_int_equal(method_adakv_rows(&p, 100, 0), 8);
}

/* Heads of a layer with random shares of its places never need more pages than were counted. */
static void test_adakv_pages_hold_whatever_the_heads_win(void **state)
{
    struct model_config config = with_layers(1);
    struct layer_load load = {.page_rows = 32};
    struct method_params p;

    (void)state;
    config.query_heads = config.kv_heads = 8;
    method_defaults(&p, METHOD_ADAKV, &config);
    p.absolute = true;
    srand(1);
    for (int round = 0; round < 5000; round++) {
        const struct head_range range = {rand() % 8, 1};
        const struct head_range ranges[] = {{0, 8}, {0, range.first}, range};
        uint64_t counted[3] = {0};
        uint64_t needed[3] = {0};

        load.rows = load.n_prompt = 9 + rand() % 1000;
        load.appended = rand() % 100;
        p.capacity = 1 + rand() % load.rows;
        p.floor_alpha = (rand() % 11) / 10.0;
        method_add_pages(&p, &config, &load, ranges, 3, counted);
        int64_t left = method_adakv_places(&p, &config, load.rows);
        for (int h = 0; h < 8; h++) {
            /* No head has more places than rows, and the last ones take what is left. */
            int64_t room = load.rows - p.window;
            int64_t least = left - room * (7 - h) > 0 ? left - room * (7 - h) : 0;
            int64_t most = left < room ? left : room;
            int64_t won = rand() % 3 ? most : least + rand() % (most - least + 1);
            int rows = method_adakv_rows(&p, load.rows, (int)won) + load.appended;
            uint64_t pages = (uint64_t)(rows + 31) / 32;
            left -= won;
            needed[0] += pages;
            needed[1] += h < range.first ? pages : 0;
            needed[2] += h == range.first ? pages : 0;
        }
        CHECK(needed[0] <= counted[0] && needed[1] <= counted[1] && needed[2] <= counted[2]);
    }
}

static void test_headkv_tables_without_shares_are_known(void **state)
{
    struct model_config config = with_layers(2);
    float scores[64] = {0};
    int kept[64];
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_HEADKV, &config);
    p.head_scores = scores;
    p.n_head_scores = 2 * config.query_heads;
    CHECK(!method_headkv_normalises(&p));
    scores[1] = 1.0F;
    CHECK(method_headkv_normalises(&p));
    p.headkv_temp = 1e6; /* one head with everything stays one head with everything */
    CHECK(method_headkv_normalises(&p));
    p.absolute = true;
    p.capacity = 508;
    p.granularity = GRANULARITY_Q;
    method_headkv_rows(&p, &config, 0, 600, kept);
    assert_int_equal(kept[0], 8 + 84); /* 500 - floor(500 / 1.2) */
    assert_int_equal(kept[1], 600);
    scores[0] = 1.0F;
    CHECK(!method_headkv_normalises(&p)); /* 2^-1000000 is nothing */
}

static void test_the_peak_of_what_evicts_is_its_budget_and_never_more_than_all(void **state)
{
    struct model_config config = with_layers(4);
    struct method_params p;

    (void)state;
    method_defaults(&p, METHOD_H2O, &config);
    p.h2o_dynamic = true;
    p.absolute = true;
    p.capacity = 50;
    assert_int_equal(method_peak_rows(&p, 200, 50, 30), 51);
    assert_int_equal(method_peak_rows(&p, 20, 20, 10), 30);
    p.capacity = INT_MAX;
    assert_int_equal(method_peak_rows(&p, 200, 200, 30), 230);
    method_defaults(&p, METHOD_STREAMINGLLM, &config);
    p.rolling = true;
    p.absolute = true;
    p.capacity = 50;
    assert_int_equal(method_peak_rows(&p, 200, 50, 30), 50);
    p.capacity = INT_MAX;
    assert_int_equal(method_peak_rows(&p, 200, 200, 30), 230);
}

static void test_row_counts_are_those_of_the_goldens(void **state)
{
    const char *more = getenv("WINNOW_TEST_DATA");
    char folder[1024];

    (void)state;
    CHECK(check_folder("tests/goldens/data") > 5);
    if (more) {
        snprintf(folder, sizeof(folder), "%s/goldens/public", more);
        CHECK(check_folder(folder) > 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_and_methods_agree_in_any_case),
        cmocka_unit_test(test_defaults_are_those_of_the_published_code),
        cmocka_unit_test(test_full_keeps_and_propagates_everything),
        cmocka_unit_test(test_fastkv_rates_follow_the_published_rules),
        cmocka_unit_test(test_fastkv_counts_follow_the_published_rules),
        cmocka_unit_test(test_a_huge_quotient_of_rates_keeps_everything),
        cmocka_unit_test(test_adakv_heads_keep_what_they_won_and_the_floor),
        cmocka_unit_test(test_adakv_pages_hold_whatever_the_heads_win),
        cmocka_unit_test(test_headkv_tables_without_shares_are_known),
        cmocka_unit_test(test_gemfilter_chooses_between_one_token_and_all),
        cmocka_unit_test(test_pyramidinfer_keeps_its_sinks_whatever_the_ratio),
        cmocka_unit_test(test_the_peak_of_what_evicts_is_its_budget_and_never_more_than_all),
        cmocka_unit_test(test_row_counts_are_those_of_the_goldens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
