#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

/* How GPT-2 cuts text, which ByteLevel does when use_regex is set. */
#define GPT2_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static status add_step(struct pretokenizer *out, const struct field *at, enum pretokenize_kind kind,
                       const char *content)
{
    if (out->n == TOKENIZER_MAX_STEPS) {
        return field_fail(at, "is more than %d steps", TOKENIZER_MAX_STEPS);
    }
    struct pretokenize_step *step = &out->steps[out->n++];
    step->kind = kind;
    if (content) {
        step->content = strdup(content);
        if (!step->content) {
            return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
        }
    }
    return STATUS_OK;
}

static struct pretokenize_step *last_step(struct pretokenizer *out)
{
    return &out->steps[out->n - 1];
}

static status add_split(struct pretokenizer *out, const struct field *at, const char *pattern,
                        enum split_behavior behavior)
{
    status st = add_step(out, at, PRETOKENIZE_SPLIT, NULL);

    if (st) {
        return st;
    }
    last_step(out)->behavior = behavior;
    return regex_compile(&last_step(out)->regex, at, pattern);
}

static status load_byte_level(struct pretokenizer *out, const struct field *at)
{
    struct field use_regex;
    bool prefix_space;
    status st = field_get_bool(&prefix_space, at, "add_prefix_space");

    if (!st) {
        st = field_find(&use_regex, at, "use_regex", FIELD_BOOL);
    }
    if (!st && prefix_space) {
        st = add_step(out, at, PRETOKENIZE_PREPEND, " ");
    }
    if (!st && field_bool(&use_regex, true)) {
        st = add_split(out, at, GPT2_PATTERN, SPLIT_ISOLATED);
    }
    return st ? st : add_step(out, at, PRETOKENIZE_BYTES, NULL);
}

static status load_digits(struct pretokenizer *out, const struct field *at)
{
    bool individual;
    status st = field_get_bool(&individual, at, "individual_digits");

    return st ? st : add_split(out, at, individual ? "\\p{N}" : "\\p{N}+", SPLIT_ISOLATED);
}

/* always, first or never; old files have add_prefix_space instead. */
static status prepend_scheme(const struct field *at, const char **scheme)
{
    struct field declared, legacy;
    status st = field_find(&declared, at, "prepend_scheme", FIELD_STRING);

    if (!st) {
        st = field_find(&legacy, at, "add_prefix_space", FIELD_BOOL);
    }
    if (st) {
        return st;
    }
    *scheme = field_bool(&legacy, true) ? "always" : "never";
    if (declared.item) {
        *scheme = field_string(&declared);
        if (strcmp(*scheme, "always") != 0 && strcmp(*scheme, "first") != 0 &&
            strcmp(*scheme, "never") != 0) {
            return field_fail(&declared, "%.40s is not supported", *scheme);
        }
    }
    return STATUS_OK;
}

static status load_metaspace(struct pretokenizer *out, const struct field *at)
{
    const char *replacement, *scheme;
    struct field split, named = {at, "replacement", 0, NULL};
    status st = field_get_string(&replacement, at, "replacement");

    if (!st && (!replacement[0] || replacement[utf8_length(replacement[0])])) {
        st = field_fail(&named, "is not one character");
    }
    if (!st) {
        st = prepend_scheme(at, &scheme);
    }
    if (!st) {
        st = field_find(&split, at, "split", FIELD_BOOL);
    }
    if (!st) {
        st = add_step(out, at, PRETOKENIZE_REPLACE, replacement);
    }
    if (!st && strcmp(scheme, "never") != 0) {
        st = add_step(out, at, PRETOKENIZE_PREPEND, replacement);
        if (!st) {
            last_step(out)->only_first = strcmp(scheme, "first") == 0;
        }
    }
    if (!st && field_bool(&split, true)) {
        st = add_step(out, at, PRETOKENIZE_SPLIT, NULL);
        if (!st) {
            last_step(out)->behavior = SPLIT_MERGED_WITH_NEXT;
            st = regex_compile_literal(&last_step(out)->regex, &named, replacement);
        }
    }
    return st;
}

static status split_behavior(const struct field *at, enum split_behavior *out)
{
    static const char *const names[] = {
        [SPLIT_REMOVED] = "Removed",
        [SPLIT_ISOLATED] = "Isolated",
        [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [SPLIT_CONTIGUOUS] = "Contiguous",
    };
    struct field field;
    status st = field_get(&field, at, "behavior", FIELD_STRING);

    for (int i = 0; !st && i < 5; i++) {
        if (strcmp(field_string(&field), names[i]) == 0) {
            *out = (enum split_behavior)i;
            return STATUS_OK;
        }
    }
    return st ? st : field_fail(&field, "%.40s is not supported", field_string(&field));
}

static status load_split(struct pretokenizer *out, const struct field *at)
{
    struct field pattern, regex, literal;
    status st = add_step(out, at, PRETOKENIZE_SPLIT, NULL);

    if (!st) {
        st = split_behavior(at, &last_step(out)->behavior);
    }
    if (!st) {
        st = field_get_bool(&last_step(out)->invert, at, "invert");
    }
    if (!st) {
        st = field_get(&pattern, at, "pattern", FIELD_OBJECT);
    }
    if (!st) {
        st = field_find(&regex, &pattern, "Regex", FIELD_STRING);
    }
    if (!st) {
        st = field_find(&literal, &pattern, "String", FIELD_STRING);
    }
    if (st) {
        return st;
    }
    if (!regex.item == !literal.item) {
        return field_fail(&pattern, "has not exactly one of Regex and String");
    }
    return regex.item
               ? regex_compile(&last_step(out)->regex, &regex, field_string(&regex))
               : regex_compile_literal(&last_step(out)->regex, &literal, field_string(&literal));
}

static status load_step(struct pretokenizer *out, const struct field *at, int depth);

static status load_sequence(struct pretokenizer *out, const struct field *at, int depth)
{
    struct field list;
    struct field element = {0};
    status st = field_get(&list, at, "pretokenizers", FIELD_ARRAY);

    while (!st && field_next(&element, &list)) {
        st = load_step(out, &element, depth + 1);
    }
    return st;
}

static status load_step(struct pretokenizer *out, const struct field *at, int depth)
{
    static const struct {
        const char *type;
        status (*load)(struct pretokenizer *, const struct field *);
    } loaders[] = {
        {"Split", load_split},
        {"ByteLevel", load_byte_level},
        {"Digits", load_digits},
        {"Metaspace", load_metaspace},
    };
    const char *type;
    status st = field_expect(at, FIELD_OBJECT);

    if (!st) {
        st = field_check_keys(at);
    }
    if (!st) {
        st = field_get_string(&type, at, "type");
    }
    if (st) {
        return st;
    }
    if (strcmp(type, "Sequence") == 0 && depth < TOKENIZER_MAX_NESTING) {
        return load_sequence(out, at, depth);
    }
    for (size_t i = 0; i < sizeof(loaders) / sizeof(loaders[0]); i++) {
        if (strcmp(type, loaders[i].type) == 0) {
            return loaders[i].load(out, at);
        }
    }
    return field_fail(at, "type %.40s is not supported", type);
}

status pretokenizer_load(struct pretokenizer *out, const struct field *at)
{
    return at->item ? load_step(out, at, 0) : STATUS_OK;
}

void pretokenizer_fini(struct pretokenizer *pretokenizer)
{
    for (int i = 0; i < pretokenizer->n; i++) {
        free(pretokenizer->steps[i].content);
        regex_free(pretokenizer->steps[i].regex);
    }
    *pretokenizer = (struct pretokenizer){0};
}
