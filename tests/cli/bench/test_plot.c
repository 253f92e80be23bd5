#include "cli/bench/plot.h"
#include "tests/check.h"

#include <math.h>
#include <stdio.h>

static void test_ticks_are_round_and_cover_the_values(void **state)
{
    static const double maxima[] = {0, 1e-9, 0.07, 1, 4.99, 5, 5.01, 80, 99, 123456, 1e12};

    (void)state;
    for (size_t i = 0; i < sizeof(maxima) / sizeof(maxima[0]); i++) {
        struct plot_ticks ticks = plot_ticks_for(maxima[i], 5);
        double top = ticks.step * (ticks.n - 1);
        double digits = ticks.step / pow(10, floor(log10(ticks.step) + 1e-9));
        CHECK(top >= maxima[i] * (1 - 1e-9) && ticks.n >= 2 && ticks.n <= 7);
        CHECK(fabs(digits - 1) < 1e-6 || fabs(digits - 2) < 1e-6 || fabs(digits - 5) < 1e-6);
    }
}

static void test_numbers_are_short(void **state)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0, "0"},       {0.25, "0.25"},    {1.2345, "1.23"},   {123.4, "123"},
                 {8192, "8k"},   {131072, "128k"},  {1000, "1000"},     {12000, "12,000"},
                 {99.96, "100"}, {12345, "12,345"}, {10999.7, "11,000"}};
    char text[32];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        plot_format(text, sizeof(text), cases[i].value);
        if (strcmp(text, cases[i].text) != 0) {
            fail_msg("%g is \"%s\", expected \"%s\"", cases[i].value, text, cases[i].text);
        }
    }
}

static void test_text_is_escaped(void **state)
{
    struct html html = {0};

    (void)state;
    html_text(&html, "<b a=\"x\" c='y'>&\x01\x1b\n");
    CHECK_OK(html_finish(&html));
    CHECK(strcmp(html.data ? html.data : "", "&lt;b a=&quot;x&quot; c=&#39;y&#39;&gt;&amp;\n") ==
          0);
    html_free(&html);
}

static void test_a_page_beyond_its_limit_is_an_error(void **state)
{
    struct html html = {0};
    static char block[(1 << 20) + 1];

    (void)state;
    memset(block, 'x', 1 << 20);
    block[1 << 20] = '\0';
    for (int i = 0; i < 63; i++) {
        html_add(&html, "%s", block);
    }
    CHECK_OK(html_finish(&html));
    html_add(&html, "%s", block);
    html_add(&html, "y");
    CHECK_FAILS(html_finish(&html), STATUS_EXHAUSTED, "no memory for the page");
    CHECK(html.bytes == (size_t)63 << 20);
    html_free(&html);
    CHECK_FAILS(html_finish(&html), STATUS_EXHAUSTED, "no memory");
}

static void test_one_point_is_a_figure_too(void **state)
{
    struct html html = {0};
    struct plot plot = {.title = "t", .x_label = "x", .y_label = "y", .lengths = true, .n = 1};

    (void)state;
    snprintf(plot.series[0].name, PLOT_NAME, "<one>");
    plot.series[0].n = 1;
    plot.series[0].x[0] = 4096;
    plot.series[0].y[0] = 0;
    plot_draw(&html, &plot);
    plot.lengths = false;
    plot_draw(&html, &plot);
    plot.n = 0;
    plot_draw(&html, &plot);
    CHECK_OK(html_finish(&html));
    CHECK(strstr(html.data, "&lt;one&gt;, 4k: 0") && !strstr(html.data, "<one>"));
    CHECK(!strstr(html.data, "nan") && !strstr(html.data, "inf"));
    html_free(&html);
}

static void test_bars_carry_their_numbers(void **state)
{
    struct html html = {0};
    struct plot_bars bars = {.title = "b",
                             .y_label = "times",
                             .groups = {"8k", "16k"},
                             .n_groups = 2,
                             .series = {"A", "B"},
                             .n_series = 2,
                             .values = {{1.5, 2}, {-1, 0.25}},
                             .suffix = "x",
                             .reference = 1};

    (void)state;
    plot_draw_bars(&html, &bars);
    CHECK_OK(html_finish(&html));
    CHECK(strstr(html.data, "A, 8k: 1.50x") && strstr(html.data, "B, 16k: 0.25x"));
    CHECK(!strstr(html.data, "A, 16k")); /* was not measured */
    html_free(&html);
}

static void test_a_stack_shows_parts_and_sum(void **state)
{
    static const char *const parts[] = {"queue", "decode"};
    struct html html = {0};
    struct plot_stack stack = {.title = "s",
                               .unit = "ms",
                               .rows = {"one", "none"},
                               .n_rows = 2,
                               .parts = parts,
                               .n_parts = 2,
                               .values = {{30, 12}, {0, 0}}};

    (void)state;
    plot_draw_stack(&html, &stack);
    CHECK_OK(html_finish(&html));
    CHECK(strstr(html.data, "queue: 30 ms") && strstr(html.data, ">42 ms<"));
    CHECK(strstr(html.data, ">0 ms<") && !strstr(html.data, "nan"));
    html_free(&html);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ticks_are_round_and_cover_the_values),
        cmocka_unit_test(test_numbers_are_short),
        cmocka_unit_test(test_text_is_escaped),
        cmocka_unit_test(test_a_page_beyond_its_limit_is_an_error),
        cmocka_unit_test(test_one_point_is_a_figure_too),
        cmocka_unit_test(test_bars_carry_their_numbers),
        cmocka_unit_test(test_a_stack_shows_parts_and_sum),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
