#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

/* What the chain has come to while it is being read. */
struct reading {
    struct decoder *out;
    bool joined;   /* Fuse or ByteLevel has been seen */
    bool fallback; /* ByteFallback has been seen */
};

static status add_step(struct reading *r, const struct field *at, enum decode_kind kind,
                       const char *pattern, const char *content)
{
    if (r->out->n == TOKENIZER_MAX_STEPS) {
        return field_fail(at, "is more than %d steps", TOKENIZER_MAX_STEPS);
    }
    struct decode_step *step = &r->out->steps[r->out->n++];
    *step =
        (struct decode_step){.kind = kind, .pattern = strdup(pattern), .content = strdup(content)};
    if (!r->joined) {
        r->out->n_token_steps = r->out->n;
    }
    return step->pattern && step->content
               ? STATUS_OK
               : status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
}

static struct decode_step *last_step(struct reading *r)
{
    return &r->out->steps[r->out->n - 1];
}

/* Steps that look at one token after another make no sense once the tokens are one text. */
static status before_join(const struct reading *r, const struct field *at, const char *type)
{
    return r->joined ? field_fail(at, "%s after Fuse or ByteLevel is not supported", type)
                     : STATUS_OK;
}

static status load_replace(struct reading *r, const struct field *at)
{
    struct field pattern;
    const char *string, *content;
    status st = before_join(r, at, "Replace");

    if (!st) {
        st = field_get(&pattern, at, "pattern", FIELD_OBJECT);
    }
    if (!st) {
        st = field_get_string(&string, &pattern, "String");
    }
    if (!st && !string[0]) {
        st = field_fail(&pattern, "String is empty");
    }
    if (!st) {
        st = field_get_string(&content, at, "content");
    }
    return st ? st : add_step(r, at, DECODE_REPLACE, string, content);
}

static status load_metaspace(struct reading *r, const struct field *at)
{
    struct field scheme, legacy;
    const char *replacement;
    status st = before_join(r, at, "Metaspace");

    if (!st) {
        st = field_get_string(&replacement, at, "replacement");
    }
    if (!st && (!replacement[0] || replacement[utf8_length(replacement[0])])) {
        st = field_fail(at, "replacement is not one character");
    }
    if (!st) {
        st = field_find(&scheme, at, "prepend_scheme", FIELD_STRING);
    }
    if (!st) {
        st = field_find(&legacy, at, "add_prefix_space", FIELD_BOOL);
    }
    if (!st) {
        st = add_step(r, at, DECODE_METASPACE, replacement, " ");
    }
    if (!st) {
        last_step(r)->drop_first =
            scheme.item ? strcmp(field_string(&scheme), "never") != 0 : field_bool(&legacy, true);
    }
    return st;
}

static status load_strip(struct reading *r, const struct field *at)
{
    const char *content;
    uint32_t start, stop;
    status st = field_get_string(&content, at, "content");

    if (!st && (!content[0] || content[utf8_length(content[0])])) {
        st = field_fail(at, "content is not one character");
    }
    if (!st) {
        st = field_get_index(&start, at, "start", 1 << 16);
    }
    if (!st) {
        st = field_get_index(&stop, at, "stop", 1 << 16);
    }
    if (!st) {
        st = add_step(r, at, DECODE_STRIP, "", content);
    }
    if (!st) {
        last_step(r)->start = start;
        last_step(r)->stop = stop;
    }
    return st;
}

static status load_byte_fallback(struct reading *r, const struct field *at)
{
    status st = before_join(r, at, "ByteFallback");

    if (!st && r->fallback) {
        st = field_fail(at, "ByteFallback twice is not supported");
    }
    r->fallback = true;
    return st ? st : add_step(r, at, DECODE_BYTE_FALLBACK, "", "");
}

static status load_fuse(struct reading *r, const struct field *at)
{
    (void)at;
    r->joined = true;
    return STATUS_OK;
}

static status load_byte_level(struct reading *r, const struct field *at)
{
    status st = before_join(r, at, "ByteLevel");

    r->joined = true;
    r->out->byte_level = true;
    return st;
}

static status load_step(struct reading *r, const struct field *at, int depth);

static status load_sequence(struct reading *r, const struct field *at, int depth)
{
    struct field list;
    struct field element = {0};
    status st = field_get(&list, at, "decoders", FIELD_ARRAY);

    while (!st && field_next(&element, &list)) {
        st = load_step(r, &element, depth + 1);
    }
    return st;
}

static status load_step(struct reading *r, const struct field *at, int depth)
{
    static const struct {
        const char *type;
        status (*load)(struct reading *, const struct field *);
    } loaders[] = {
        {"Replace", load_replace},
        {"Metaspace", load_metaspace},
        {"Strip", load_strip},
        {"Fuse", load_fuse},
        {"ByteFallback", load_byte_fallback},
        {"ByteLevel", load_byte_level},
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
        return load_sequence(r, at, depth);
    }
    for (size_t i = 0; i < sizeof(loaders) / sizeof(loaders[0]); i++) {
        if (strcmp(type, loaders[i].type) == 0) {
            return loaders[i].load(r, at);
        }
    }
    return field_fail(at, "type %.40s is not supported", type);
}

status decoder_load(struct decoder *out, const struct field *at)
{
    struct reading r = {.out = out};

    return at->item ? load_step(&r, at, 0) : add_step(&r, at, DECODE_SPACES, "", " ");
}

void decoder_fini(struct decoder *decoder)
{
    for (int i = 0; i < decoder->n; i++) {
        free(decoder->steps[i].pattern);
        free(decoder->steps[i].content);
    }
    *decoder = (struct decoder){0};
}
