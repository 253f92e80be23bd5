/*
 * The files' patterns are written for Oniguruma in its Ruby syntax.  PCRE2 reads them, but not
 * everything means the same there: what would differ is translated or refused by name.
 */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "coordinator/tokenizer/internal.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum regex_limits {
    REGEX_MATCH_LIMIT = 20000000, /* steps of one match */
    REGEX_HEAP_LIMIT = 256 << 10, /* KiB of one match */
};

struct regex {
    pcre2_code *code;
};

struct regex_run {
    const struct regex *regex;
    pcre2_match_data *data;
    pcre2_match_context *context;
};

struct translation {
    const struct field *at;
    const char *in; /* what is left */
    struct text_buffer *out;
    bool in_class;
};

static status copy(struct translation *t, size_t bytes)
{
    status st = text_append(t->out, t->in, bytes);

    t->in += bytes;
    return st;
}

static status translate_escape(struct translation *t)
{
    char c = t->in[1];

    if (c == 's' || c == 'S') {
        /* PCRE2's own \s also has U+180E. */
        const char *property = c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
        t->in += 2;
        return text_append(t->out, property, strlen(property));
    }
    if ((c == 'p' || c == 'P') && t->in[2] == '{') {
        size_t name = strcspn(t->in, "}");
        return t->in[name] ? copy(t, name + 1) : field_fail(t->at, "has \\%c{ without }", c);
    }
    if (c && (strchr("drntf", c) || ((unsigned char)c < 0x80 && ispunct((unsigned char)c)))) {
        return copy(t, 2);
    }
    return field_fail(t->at, "uses \\%c, which is not supported",
                      isprint((unsigned char)c) ? c : '?');
}

static status translate_group(struct translation *t)
{
    static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};

    if (t->in[1] != '?') {
        return copy(t, 1);
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strncmp(t->in, known[i], strlen(known[i])) == 0) {
            return copy(t, strlen(known[i]));
        }
    }
    return field_fail(t->at, "uses a group %.4s, which is not supported", t->in);
}

static status translate_in_class(struct translation *t)
{
    if (t->in[0] == '[') {
        return field_fail(t->at, "uses [ inside a class, which is not supported");
    }
    if (t->in[0] == '&' && t->in[1] == '&') {
        return field_fail(t->at, "uses && inside a class, which is not supported");
    }
    if (t->in[0] == ']') {
        t->in_class = false;
    }
    return copy(t, 1);
}

static status translate_next(struct translation *t)
{
    const char *in = t->in;

    if (in[0] == '\\') {
        return translate_escape(t);
    }
    if (t->in_class) {
        return translate_in_class(t);
    }
    switch (in[0]) {
    case '(':
        return translate_group(t);
    case '[':
        t->in_class = true;
        if (in[1] == ']' || (in[1] == '^' && in[2] == ']')) {
            return field_fail(t->at, "has a class that begins with ], which is not supported");
        }
        return copy(t, in[1] == '^' ? 2 : 1);
    case '^':
    case '$':
        return field_fail(t->at, "uses %c, which is not supported", in[0]);
    case '{':
        return isdigit((unsigned char)in[1]) ? copy(t, 1)
                                             : field_fail(t->at, "has { without a number");
    case '}':
        return in[1] != '+' ? copy(t, 1) : field_fail(t->at, "uses }+, which is not supported");
    default:
        return copy(t, 1);
    }
}

static status compile(struct regex **out, const struct field *at, struct slice_of_text pattern)
{
    int error;
    PCRE2_SIZE where;
    uint32_t matches_empty = 0;
    struct regex *regex = calloc(1, sizeof(*regex));

    if (!regex) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    regex->code =
        pcre2_compile((PCRE2_SPTR)pattern.data, pattern.bytes,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &where, NULL);
    if (!regex->code) {
        PCRE2_UCHAR message[128] = "";
        pcre2_get_error_message(error, message, sizeof(message));
        free(regex);
        return field_fail(at, "is not a regular expression: %s", (const char *)message);
    }
    pcre2_pattern_info(regex->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty) {
        regex_free(regex);
        return field_fail(at, "can match nothing at all, which is not supported");
    }
    /* Without the compiler the interpreter does the same, more slowly. */
    if (pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE)) {
        regex_free(regex);
        return field_fail(at, "cannot be compiled to machine code");
    }
    *out = regex;
    return STATUS_OK;
}

status regex_compile(struct regex **out, const struct field *at, const char *pattern)
{
    struct text_buffer buffer = {0};
    struct translation t = {at, pattern, &buffer, false};
    status st = STATUS_OK;

    if (strlen(pattern) > TOKENIZER_MAX_PATTERN) {
        return field_fail(at, "is longer than %d bytes", TOKENIZER_MAX_PATTERN);
    }
    while (!st && t.in[0]) {
        st = translate_next(&t);
    }
    if (!st) {
        st = compile(out, at, text_of(&buffer));
    }
    text_fini(&buffer);
    return st;
}

status regex_compile_literal(struct regex **out, const struct field *at, const char *literal)
{
    struct text_buffer buffer = {0};
    status st = STATUS_OK;

    if (!literal[0] || strlen(literal) > TOKENIZER_MAX_PATTERN) {
        return field_fail(at, "is empty or longer than %d bytes", TOKENIZER_MAX_PATTERN);
    }
    for (; !st && literal[0]; literal++) {
        if ((unsigned char)literal[0] < 0x80 && ispunct((unsigned char)literal[0])) {
            st = text_append(&buffer, "\\", 1);
        }
        if (!st) {
            st = text_append(&buffer, literal, 1);
        }
    }
    if (!st) {
        st = compile(out, at, text_of(&buffer));
    }
    text_fini(&buffer);
    return st;
}

void regex_free(struct regex *regex)
{
    if (regex) {
        pcre2_code_free(regex->code);
        free(regex);
    }
}

status regex_run_open(struct regex_run **out, const struct regex *regex)
{
    struct regex_run *run = calloc(1, sizeof(*run));

    if (run) {
        run->regex = regex;
        run->data = pcre2_match_data_create_from_pattern(regex->code, NULL);
        run->context = pcre2_match_context_create(NULL);
    }
    if (!run || !run->data || !run->context) {
        regex_run_close(run);
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    pcre2_set_match_limit(run->context, REGEX_MATCH_LIMIT);
    pcre2_set_heap_limit(run->context, REGEX_HEAP_LIMIT);
    *out = run;
    return STATUS_OK;
}

void regex_run_close(struct regex_run *run)
{
    if (run) {
        pcre2_match_data_free(run->data);
        pcre2_match_context_free(run->context);
        free(run);
    }
}

status regex_next(struct regex_run *run, struct slice_of_text text, size_t from, size_t *begin,
                  size_t *end)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)text.data;
    const pcre2_code *code = run->regex->code;
    uint32_t options = PCRE2_NO_UTF_CHECK; /* checked once; here it would be quadratic */
    int rc = pcre2_match(code, subject, text.bytes, from, options, run->data, run->context);

    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        rc = pcre2_match(code, subject, text.bytes, from, options | PCRE2_NO_JIT, run->data,
                         run->context);
    }
    *begin = *end = 0;
    if (rc == PCRE2_ERROR_NOMATCH) {
        return STATUS_OK;
    }
    if (rc == PCRE2_ERROR_NOMEMORY) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    const PCRE2_SIZE *pair = pcre2_get_ovector_pointer(run->data);
    if (rc < 0 || pair[1] <= pair[0] || pair[0] < from) {
        return status_fail(STATUS_INVALID,
                           "tokenizer: the text is too hard for the pre-tokenizer's pattern "
                           "(code %d at byte %zu)",
                           rc, from);
    }
    *begin = pair[0];
    *end = pair[1];
    return STATUS_OK;
}
