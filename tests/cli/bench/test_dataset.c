#include "cli/bench/dataset.h"
#include "tests/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];
static char path[128];

static void write_file(const char *name, const char *text)
{
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/winnow_test_dataset_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    static const char *const names[] = {"a.txt", "b.txt", ".hidden", "empty", "p.jsonl", "t.jsonl"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

static struct dataset_config base(enum dataset_kind kind)
{
    return (struct dataset_config){.kind = kind,
                                   .path = path,
                                   .input_len = 100,
                                   .output_len = 10,
                                   .trace_speed = 1,
                                   .trace_block = 4,
                                   .seed = 1,
                                   .vocab = 50,
                                   .eos = {3},
                                   .n_eos = 1};
}

static void test_random_prompts_have_exact_lengths_and_no_end_tokens(void **state)
{
    struct dataset_config config = base(DATASET_RANDOM);
    struct dataset d;
    uint32_t ids[100];

    (void)state;
    config.n = 20;
    CHECK_OK(dataset_load(&d, &config));
    CHECK(d.n == 20);
    for (size_t i = 0; i < d.n; i++) {
        CHECK(d.items[i].n_input == 100 && d.items[i].n_output == 10 && !d.items[i].text);
        dataset_ids(&d, &d.items[i], i, ids);
        for (int k = 0; k < 100; k++) {
            CHECK(ids[k] < 50 && ids[k] != 3);
        }
    }
    dataset_free(&d);
}

static void test_a_seed_and_a_key_name_the_ids(void **state)
{
    static const uint32_t expected[] = {46, 41, 8, 30, 38, 1, 23, 44}; /* on every machine */
    struct dataset_config config = base(DATASET_RANDOM);
    struct dataset d;
    uint32_t ids[100];
    uint32_t others[100];

    (void)state;
    config.n = 1;
    CHECK_OK(dataset_load(&d, &config));
    dataset_ids(&d, &d.items[0], 0, ids);
    CHECK(memcmp(ids, expected, sizeof(expected)) == 0);
    dataset_ids(&d, &d.items[0], 1, others);
    CHECK(memcmp(ids, others, sizeof(ids)) != 0);
    dataset_free(&d);
}

static void test_lengths_stay_within_their_range(void **state)
{
    struct dataset_config config = base(DATASET_RANDOM);
    struct dataset d;
    uint32_t low = UINT32_MAX;
    uint32_t high = 0;

    (void)state;
    config.n = 2000;
    config.range_ratio = 0.25;
    CHECK_OK(dataset_load(&d, &config));
    for (size_t i = 0; i < d.n; i++) {
        low = d.items[i].n_input < low ? d.items[i].n_input : low;
        high = d.items[i].n_input > high ? d.items[i].n_input : high;
        CHECK(d.items[i].n_output >= 7 && d.items[i].n_output <= 13);
    }
    CHECK(low == 75 && high == 125);
    dataset_free(&d);
}

static void test_a_vocabulary_of_end_tokens_is_refused(void **state)
{
    struct dataset_config config = base(DATASET_RANDOM);
    struct dataset d;

    (void)state;
    config.vocab = 1;
    CHECK_FAILS(dataset_load(&d, &config), STATUS_INVALID, "leaves none to draw");
}

static void test_a_folder_is_its_documents_again_and_again(void **state)
{
    struct dataset_config config = base(DATASET_FILE);
    struct dataset d;

    (void)state;
    write_file("b.txt", "bbb");
    write_file("a.txt", "aa\n");
    write_file(".hidden", "no");
    config.path = folder;
    config.prompt = "why?";
    config.n = 3;
    CHECK_OK(dataset_load(&d, &config));
    CHECK(d.n == 3);
    CHECK(strcmp(d.items[0].text, "aa\n\nwhy?") == 0 && d.items[0].bytes == 8);
    CHECK(strcmp(d.items[1].text, "bbb\n\nwhy?") == 0 && d.items[1].n_output == 10);
    CHECK(d.items[2].text == d.items[0].text);
    dataset_free(&d);
    config.n = 0;
    CHECK_OK(dataset_load(&d, &config));
    CHECK(d.n == 2);
    dataset_free(&d);
    remove_folder(NULL);
    CHECK(mkdir(folder, 0700) == 0);
}

static void test_prompts_come_line_by_line(void **state)
{
    struct dataset_config config = base(DATASET_FILE);
    struct dataset d;

    (void)state;
    write_file("p.jsonl", "{\"prompt\": \"x\\ny\", \"output_tokens\": 5}\n\n{\"prompt\": \"z\"}");
    CHECK_OK(dataset_load(&d, &config));
    CHECK(d.n == 2 && strcmp(d.items[0].text, "x\ny") == 0 && d.items[0].n_output == 5);
    CHECK(strcmp(d.items[1].text, "z") == 0 && d.items[1].n_output == 10);
    dataset_free(&d);
    config.fixed_output = true;
    config.n = 1;
    CHECK_OK(dataset_load(&d, &config));
    CHECK(d.n == 1 && d.items[0].n_output == 10);
    dataset_free(&d);
}

static void test_a_trace_has_times_lengths_and_shared_blocks(void **state)
{
    struct dataset_config config = base(DATASET_TRACE);
    struct dataset d;
    uint32_t a[10];
    uint32_t b[6];

    (void)state;
    write_file("t.jsonl",
               "{\"timestamp\": 1000, \"input_length\": 10, \"output_length\": 7, \"hash_ids\": "
               "[0, 5, 6]}\n"
               "{\"timestamp\": 1500, \"input_length\": 6, \"hash_ids\": [0, 9], \"method\": "
               "\"full\"}\n"
               "{\"timestamp\": 3000, \"prompt\": \"text\"}\n");
    config.trace_speed = 2;
    CHECK_OK(dataset_load(&d, &config));
    CHECK(d.n == 3 && d.items[0].due_s == 0 && d.items[1].due_s == 0.25 && d.items[2].due_s == 1);
    CHECK(d.items[0].n_output == 7 && d.items[1].n_output == 10);
    CHECK(d.items[0].method == METHOD_UNSPECIFIED && d.items[1].method == METHOD_FULL);
    CHECK(strcmp(d.items[2].text, "text") == 0 && d.items[2].n_input == 0);
    dataset_ids(&d, &d.items[0], 0, a);
    dataset_ids(&d, &d.items[1], 1, b);
    CHECK(memcmp(a, b, 4 * sizeof(*a)) == 0);         /* block 0 */
    CHECK(memcmp(a + 4, b + 4, 2 * sizeof(*a)) != 0); /* 5 and 9 */
    dataset_free(&d);
}

static void test_what_is_no_data_set_is_refused_by_name_and_line(void **state)
{
    static const struct {
        const char *text, *words;
    } traces[] = {
        {"", "holds no request"},
        {"{\"timestamp\": 0, \"input_length\": 4}\n{", "t.jsonl:2: not valid JSON"},
        {"[]", "t.jsonl:1: not a JSON object"},
        {"{\"input_length\": 4}", "timestamp"},
        {"{\"timestamp\": 0}", "input_length"},
        {"{\"timestamp\": -1, \"input_length\": 4}", "timestamp"},
        {"{\"timestamp\": 0, \"input_length\": 0}", "input_length"},
        {"{\"timestamp\": 0, \"input_length\": 4, \"output_length\": 0.5}", "output_length"},
        {"{\"timestamp\": 0, \"input_length\": 4, \"method\": \"BEST\"}", "method"},
        {"{\"timestamp\": 0, \"input_length\": 4, \"hash_ids\": 5}", "hash_ids: not a list"},
        {"{\"timestamp\": 0, \"input_length\": 4, \"hash_ids\": [-5]}", "no whole number"},
        {"{\"timestamp\": 0, \"prompt\": \"\"}", "prompt"},
        {"{\"timestamp\": 5, \"input_length\": 4}\n{\"timestamp\": 4, \"input_length\": 4}",
         "t.jsonl:2: timestamp: earlier"},
    };
    struct dataset_config config = base(DATASET_TRACE);
    struct dataset d;

    (void)state;
    for (size_t i = 0; i < sizeof(traces) / sizeof(traces[0]); i++) {
        write_file("t.jsonl", traces[i].text);
        CHECK_FAILS(dataset_load(&d, &config), STATUS_INVALID, traces[i].words);
    }
    config.kind = DATASET_FILE;
    write_file("p.jsonl", "{\"prompt\": 5}");
    CHECK_FAILS(dataset_load(&d, &config), STATUS_INVALID, "prompt");
    write_file("p.jsonl", "{\"text\": \"x\"}");
    CHECK_FAILS(dataset_load(&d, &config), STATUS_INVALID, "\"prompt\" is to be a text");
    write_file("empty", "");
    CHECK_FAILS(dataset_load(&d, &config), STATUS_INVALID, "is empty");
    config.path = "/nowhere/t.jsonl";
    CHECK_FAILS(dataset_load(&d, &config), STATUS_NOT_FOUND, "/nowhere/t.jsonl");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_prompts_have_exact_lengths_and_no_end_tokens),
        cmocka_unit_test(test_a_seed_and_a_key_name_the_ids),
        cmocka_unit_test(test_lengths_stay_within_their_range),
        cmocka_unit_test(test_a_vocabulary_of_end_tokens_is_refused),
        cmocka_unit_test(test_a_folder_is_its_documents_again_and_again),
        cmocka_unit_test(test_prompts_come_line_by_line),
        cmocka_unit_test(test_a_trace_has_times_lengths_and_shared_blocks),
        cmocka_unit_test(test_what_is_no_data_set_is_refused_by_name_and_line),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
