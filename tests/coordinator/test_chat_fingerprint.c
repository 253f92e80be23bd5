/* What counts in a chat template, and what does not. */
#include "coordinator/tokenizer/chat_fingerprint.h"
#include "tests/check.h"

#include <string.h>

static uint64_t of(const char *text)
{
    uint64_t out;

    CHECK_OK(chat_fingerprint(&out, text, strlen(text)));
    return out;
}

static void check_same(const char *a, const char *b)
{
    if (of(a) != of(b)) {
        fail_msg("not the same: %s and %s", a, b);
    }
}

static void check_different(const char *a, const char *b)
{
    if (of(a) == of(b)) {
        fail_msg("the same: %s and %s", a, b);
    }
}

static void test_spaces_quotes_and_escapes_do_not_count(void **state)
{
    (void)state;
    check_same("{{ a+'b' }}", "{{a  + \"b\"}}");
    check_same("{{ 'a\\nb' }}", "{{ 'a\nb' }}");
    check_same("{{ '\\'' }}", "{{ \"'\" }}");
    check_same("{% set a = 1 %}", "{%- set a=1 -%}");
    check_same("{{ raise_exception('this') }}", "{{ raise_exception('that') }}");
    check_different("{{ 'a b' }}", "{{ 'ab' }}");
    check_different("{{ ab }}", "{{ a b }}");
    check_different("{{ a }}", "{{ 'a' }}");
    check_different("{{ a }}", "{% a %}");
    check_different("{{ 'a' + 'b' }}", "{{ 'a + b' }}");
    check_different("{{ '%}' }}", "{{ '}}' }}");
}

static void test_text_between_tags_counts_as_jinja_would_write_it(void **state)
{
    (void)state;
    check_same("{% set a = 1 %}\nx", "{% set a = 1 %}x");
    check_same("x\n  {% set a = 1 %}", "x\n{% set a = 1 %}");
    check_same("x \n {%- set a = 1 %}", "x{% set a = 1 %}");
    check_same("{{ a -}} \n x", "{{ a }}x");
    check_same("x{# y #}", "x");
    check_same("{% set a = 1 %}\n  {% set b = 1 %}", "{% set a = 1 %}{% set b = 1 %}");
    check_same("  {% set a = 1 %}", "{% set a = 1 %}");
    check_different("{% set a = 1 %}  {% set b = 1 %}", "{% set a = 1 %}{% set b = 1 %}");
    check_same("x\n", "x");
    check_different("{% set a = 1 %}\n\nx", "{% set a = 1 %}x");
    check_different("{{ a }}\nx", "{{ a }}x");
    check_different("x  {% set a = 1 %}", "x{% set a = 1 %}");
    check_different("x\n  {%+ set a = 1 %}", "x\n{% set a = 1 %}");
    check_different("x\n  {{ a }}", "x\n{{ a }}");
    check_different("x", "y");
}

static void test_what_only_tools_reach_does_not_count(void **state)
{
    (void)state;
    check_same("{% if tools %}x{{ y }}{% for t in tools %}z{% endfor %}{% endif %}", "");
    check_same("{% if tools %}x{% else %}y{% endif %}", "y");
    check_same("{% if a %}1{% elif m.tool_calls %}2{% else %}3{% endif %}",
               "{% if a %}1{% else %}3{% endif %}");
    check_same("{% if tools %}1{% elif a %}2{% endif %}", "{% if a %}2{% endif %}");
    check_same("{% if not (m.role == 'tool') %}x{% endif %}",
               "{% if not (m.role == 'tool_results' or m.tool_calls) %}x{% endif %}");
    check_different("{% if not (m.role == 'tool') %}x{% endif %}", "");
    check_different("{% if not (m.role == 'tool') %}x{% endif %}",
                    "{% if not (m.role == 'tool') %}y{% endif %}");
    check_different("{% if a %}x{% endif %}", "");
    check_different("{% if a %}x{% endif %}", "{% if b %}x{% endif %}");
    check_different("{% if a %}x{% endif %}y", "{% if a %}xy{% endif %}");
    check_different("{% for a in b %}x{% endfor %}", "{% for a in c %}x{% endfor %}");
    check_different("{% for a in b %}x{% else %}y{% endfor %}", "{% for a in b %}xy{% endfor %}");
}

/* Numbers that are in the table of known templates must never change. */
static void test_fingerprints_stay_what_they_are(void **state)
{
    (void)state;
    CHECK(of("") == 0xcbf29ce484222325U);
    CHECK(of("{{- bos }}\n{% for m in n %}\n  {%- if not (m.tool) %}a{{ m['b'] + \"\\n\" }}"
             "{% elif m.tools %}{{ 1 }}{% else %}{{ raise_exception('no') }}{% endif %}\n"
             "{% endfor %}\nz\n") == 0x8bea307947fc8658U);
}

static void check_broken(const char *text, const char *words)
{
    uint64_t out;

    CHECK_FAILS(chat_fingerprint(&out, text, strlen(text)), STATUS_INVALID, words);
}

static void test_what_does_not_end_is_refused(void **state)
{
    char deep[(CHAT_MAX_NESTING + 1) * 8 + 1] = "";

    (void)state;
    check_broken("{{", "a tag does not end");
    check_broken("{% if a", "a tag does not end");
    check_broken("{{ 'a }}", "a tag does not end");
    check_broken("{{ 'a\\", "a tag does not end");
    check_broken("{# a", "a tag does not end");
    check_broken("{% if a %}", "a block does not end");
    check_broken("{% endif %}", "a block ends that did not begin");
    check_broken("{% for a in b %}{% endif %}", "a block ends that did not begin");
    check_broken("{% else %}", "an else without its block");
    for (int i = 0; i <= CHAT_MAX_NESTING; i++) {
        memcpy(deep + (size_t)i * 8, "{%if a%}", 9);
    }
    check_broken(deep, "blocks in blocks");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spaces_quotes_and_escapes_do_not_count),
        cmocka_unit_test(test_text_between_tags_counts_as_jinja_would_write_it),
        cmocka_unit_test(test_what_only_tools_reach_does_not_count),
        cmocka_unit_test(test_fingerprints_stay_what_they_are),
        cmocka_unit_test(test_what_does_not_end_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
