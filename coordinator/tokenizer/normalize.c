#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

static status duplicate(char **out, const char *string)
{
    *out = strdup(string);
    return *out ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
}

static status load_replace(struct normalize_step *step, const struct field *at)
{
    struct field pattern;
    const char *string, *content;
    status st = field_get(&pattern, at, "pattern", FIELD_OBJECT);

    if (!st) {
        st = field_get_string(&string, &pattern, "String");
    }
    if (!st && !string[0]) {
        st = field_fail(&pattern, "String is empty");
    }
    if (!st) {
        st = field_get_string(&content, at, "content");
    }
    if (!st) {
        st = duplicate(&step->pattern, string);
    }
    return st ? st : duplicate(&step->content, content);
}

static status load_step(struct normalizer *out, const struct field *at, int depth);

static status load_sequence(struct normalizer *out, const struct field *at, int depth)
{
    struct field list;
    struct field element = {0};
    status st = field_get(&list, at, "normalizers", FIELD_ARRAY);

    while (!st && field_next(&element, &list)) {
        st = load_step(out, &element, depth + 1);
    }
    return st;
}

static status load_step(struct normalizer *out, const struct field *at, int depth)
{
    const char *type, *content;
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
    if (out->n == TOKENIZER_MAX_STEPS) {
        return field_fail(at, "is more than %d steps", TOKENIZER_MAX_STEPS);
    }
    struct normalize_step *step = &out->steps[out->n++];
    if (strcmp(type, "Prepend") == 0) {
        step->kind = NORMALIZE_PREPEND;
        st = field_get_string(&content, at, "prepend");
        return st ? st : duplicate(&step->content, content);
    }
    if (strcmp(type, "Replace") == 0) {
        step->kind = NORMALIZE_REPLACE;
        return load_replace(step, at);
    }
    return field_fail(at, "type %.40s is not supported", type);
}

status normalizer_load(struct normalizer *out, const struct field *at)
{
    return at->item ? load_step(out, at, 0) : STATUS_OK;
}

void normalizer_fini(struct normalizer *normalizer)
{
    for (int i = 0; i < normalizer->n; i++) {
        free(normalizer->steps[i].pattern);
        free(normalizer->steps[i].content);
    }
    *normalizer = (struct normalizer){0};
}

static status run_step(const struct normalize_step *step, struct slice_of_text text,
                       struct text_buffer *out)
{
    struct slice_of_text content = text_of_string(step->content);

    if (step->kind == NORMALIZE_REPLACE) {
        return text_append_replaced(out, text, text_of_string(step->pattern), content);
    }
    status st = text.bytes ? text_append(out, content.data, content.bytes) : STATUS_OK;
    return st ? st : text_append(out, text.data, text.bytes);
}

status normalize(const struct normalizer *normalizer, struct slice_of_text text,
                 struct text_buffer *out, struct text_buffer *spare)
{
    out->bytes = 0;
    status st = text_append(out, text.data, text.bytes);
    for (int i = 0; !st && i < normalizer->n; i++) {
        struct text_buffer before = *out;
        *out = *spare;
        *spare = before;
        out->bytes = 0;
        st = run_step(&normalizer->steps[i], text_of(spare), out);
    }
    return st;
}
