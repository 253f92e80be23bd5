/* Lines of the log: whatever text they hold, one event is one line and its keys are ours. */
#include "common/log.h"
#include "tests/check.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char line[2 * LOG_MAX_LINE];

/* stderr goes to a file while `text`, NULL or not, is logged. */
static void log_to_line(const char *text, const struct log_field *fields, int n)
{
    FILE *file = tmpfile();
    int before = dup(STDERR_FILENO);

    CHECK(file && before >= 0 && dup2(fileno(file), STDERR_FILENO) >= 0);
    if (text) {
        log_info("test: happened text=%s", text);
    } else {
        log_event(LOG_INFO, "test: happened", fields, n);
    }
    dup2(before, STDERR_FILENO);
    close(before);
    rewind(file);
    line[fread(line, 1, sizeof(line) - 1, file)] = '\0';
    fclose(file);
}

static void log_field(const char *text)
{
    log_to_line(NULL, &(struct log_field)LOG_FIELD_TEXT("id", text), 1);
}

static void check_one_line(void)
{
    size_t bytes = strlen(line);

    CHECK(bytes > 0 && strchr(line, '\n') == line + bytes - 1);
    for (size_t i = 0; i + 1 < bytes; i++) {
        CHECK((unsigned char)line[i] >= 0x20 && line[i] != 0x7f);
    }
}

static void check_json_text(const char *key, const char *wanted)
{
    check_one_line();
    cJSON *json = cJSON_ParseWithOpts(line, NULL, 0);
    CHECK(json);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    CHECK(cJSON_IsString(item));
    assert_string_equal(item->valuestring, wanted);
    cJSON_Delete(json);
}

static int as_text(void **state)
{
    (void)state;
    log_init("program", LOG_INFO, false);
    return 0;
}

static int as_json(void **state)
{
    (void)state;
    log_init("program", LOG_INFO, true);
    return 0;
}

static void test_a_line_has_time_level_program_event_and_keys(void **state)
{
    const struct log_field fields[] = {LOG_FIELD_TEXT("id", "r1"), LOG_FIELD_INTEGER("n", -3),
                                       LOG_FIELD_NUMBER("ms", 1.25)};

    (void)state;
    log_to_line(NULL, fields, 3);
    CHECK(line[4] == '-' && line[23] == 'Z');
    assert_string_equal(line + 24, " info program test: happened id=\"r1\" n=-3 ms=1.250\n");
}

static void test_text_cannot_end_its_quotes_or_its_line(void **state)
{
    (void)state;
    log_field("x\" status=\"OK\nfake\r\t\x1b[2J\\");
    check_one_line();
    CHECK(strstr(line, "id=\"x\\\" status=\\\"OK\\u000afake\\u000d\\u0009\\u001b[2J\\\\\"\n"));
    log_to_line("a\nb", NULL, 0);
    check_one_line();
    CHECK(strstr(line, "text=a\\u000ab\n"));
}

static void test_controls_beyond_ascii_and_broken_bytes_are_escaped(void **state)
{
    (void)state;
    log_field("\xc2\x9b"
              "31m \xff\xc3 \xe6\x9d\xb1");
    CHECK(strstr(line, "id=\"\\u009b31m \\u00ff\\u00c3 \xe6\x9d\xb1\"\n"));
}

static void test_a_level_below_the_threshold_is_silent(void **state)
{
    (void)state;
    log_init("program", LOG_WARN, false);
    log_field("x");
    CHECK(line[0] == '\0');
    log_to_line("x", NULL, 0);
    CHECK(line[0] == '\0');
}

static void test_json_holds_whatever_text_there_was(void **state)
{
    const char text[] = "x\",\"level\":\"error\\ \n\x01 \xe6\x9d\xb1";

    (void)state;
    log_field(text);
    check_json_text("id", text);
    check_json_text("level", "info");
    check_json_text("event", "test: happened");
    log_to_line(text, NULL, 0);
    check_json_text("message", "test: happened text=x\",\"level\":\"error\\ \n\x01 \xe6\x9d\xb1");
    check_json_text("level", "info");
}

static void test_json_has_no_number_that_is_none(void **state)
{
    const struct log_field fields[] = {LOG_FIELD_NUMBER("nan", NAN),
                                       LOG_FIELD_NUMBER("inf", INFINITY)};

    (void)state;
    log_to_line(NULL, fields, 2);
    check_json_text("program", "program");
    CHECK(strstr(line, "\"nan\":null,\"inf\":null}"));
}

static void test_what_does_not_fit_is_cut_and_the_line_stays_whole(void **state)
{
    static char big[3 * LOG_MAX_TEXT];
    struct log_field fields[16];

    (void)state;
    memset(big, '"', sizeof(big) - 1);
    for (int i = 0; i < 16; i++) {
        fields[i] = (struct log_field)LOG_FIELD_TEXT("key", big);
    }
    log_to_line(NULL, fields, 16);
    check_json_text("event", "test: happened");
    CHECK(strlen(line) <= LOG_MAX_LINE && strlen(line) > LOG_MAX_LINE / 2);
    log_to_line(big, NULL, 0);
    check_json_text("level", "info");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_a_line_has_time_level_program_event_and_keys, as_text),
        cmocka_unit_test_setup(test_text_cannot_end_its_quotes_or_its_line, as_text),
        cmocka_unit_test_setup(test_controls_beyond_ascii_and_broken_bytes_are_escaped, as_text),
        cmocka_unit_test_setup(test_a_level_below_the_threshold_is_silent, as_text),
        cmocka_unit_test_setup(test_json_holds_whatever_text_there_was, as_json),
        cmocka_unit_test_setup(test_json_has_no_number_that_is_none, as_json),
        cmocka_unit_test_setup(test_what_does_not_fit_is_cut_and_the_line_stays_whole, as_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
