#include "cli/progress.h"
#include "tests/check.h"

#include <string.h>

static Winnow__V1__Progress report(Winnow__V1__Phase phase, float fraction)
{
    Winnow__V1__Progress out;

    winnow__v1__progress__init(&out);
    out.phase = phase;
    out.fraction = fraction;
    out.prompt_tokens = 32000;
    out.tokens_done = 12288;
    out.layer = 2;
    out.layers = 8;
    out.queue_position = 3;
    return out;
}

static void check_line(const struct progress *progress, const Winnow__V1__Progress *r, double now,
                       int columns, const char *expected)
{
    char line[256];

    progress_format(progress, r, now, columns, line, sizeof(line));
    if (strcmp(line, expected) != 0) {
        fail_msg("the line is \"%s\", expected \"%s\"", line, expected);
    }
}

static void test_a_waiting_request_sees_its_place(void **state)
{
    struct progress progress;
    Winnow__V1__Progress r = report(WINNOW__V1__PHASE__PHASE_QUEUED, 0);

    (void)state;
    progress_init(&progress, true, false);
    check_line(&progress, &r, 0, 0, "queued, 32000 tokens, position 3");
}

static void test_reading_shows_tokens_layer_and_time_left(void **state)
{
    struct progress progress;
    Winnow__V1__Progress r = report(WINNOW__V1__PHASE__PHASE_PREFILL, 0.25F);

    (void)state;
    progress_init(&progress, true, true);
    progress_update(&progress, &r, 100);
    check_line(&progress, &r, 100, 0,
               "reading [####............] 25%, layer 3/8, token 12288/32000");
    r.fraction = 0.5F;
    check_line(&progress, &r, 110, 0,
               "reading [########........] 50%, layer 3/8, token 12288/32000, 20 s left");
    check_line(&progress, &r, 400, 0,
               "reading [########........] 50%, layer 3/8, token 12288/32000, 10 min left");
    progress.terminal = false;
    check_line(&progress, &r, 110, 0, "reading  50%, layer 3/8, token 12288/32000, 20 s left");
}

static void test_a_line_fits_the_terminal(void **state)
{
    struct progress progress;
    Winnow__V1__Progress r = report(WINNOW__V1__PHASE__PHASE_PREFILL, 1);

    (void)state;
    progress_init(&progress, true, true);
    check_line(&progress, &r, 0, 12, "reading [###");
}

static void test_a_senseless_fraction_does_no_harm(void **state)
{
    struct progress progress;
    Winnow__V1__Progress r = report(WINNOW__V1__PHASE__PHASE_PREFILL, 7);

    (void)state;
    progress_init(&progress, true, true);
    check_line(&progress, &r, 0, 30, "reading [................]  0%");
    r.fraction = -1;
    check_line(&progress, &r, 0, 30, "reading [................]  0%");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_waiting_request_sees_its_place),
        cmocka_unit_test(test_reading_shows_tokens_layer_and_time_left),
        cmocka_unit_test(test_a_line_fits_the_terminal),
        cmocka_unit_test(test_a_senseless_fraction_does_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
