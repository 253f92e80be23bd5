#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>

/* What one call needs on the way. */
struct encoding {
    const struct tokenizer *tokenizer;
    struct text_buffer normal, spare;
    struct pretokenize_run run;
    struct bpe bpe;
    struct id_list ids;
};

/* Normalized text without added tokens. */
static status encode_words(struct encoding *e, struct slice_of_text text, bool first)
{
    const struct tokenizer *t = e->tokenizer;
    status st = pretokenize(&t->pretokenizer, &e->run, text, first);
    const struct pieces *pieces = &e->run.pieces;

    for (size_t i = 0; !st && i < pieces->n; i++) {
        struct span span = pieces->spans[i];
        struct slice_of_text word = {pieces->text.data + span.begin, span.end - span.begin};
        st = bpe_encode(&e->bpe, &t->model, &t->vocab, word, &e->ids);
    }
    return st;
}

/* Cuts the text at the tokens of a set; the stretches between them go on to `encode`. */
static status cut(struct encoding *e, const struct added_set *set, struct slice_of_text text,
                  bool first,
                  status (*encode)(struct encoding *e, struct slice_of_text text, bool first))
{
    struct added_match match;
    bool found = true;
    size_t at = 0;

    while (at < text.bytes) {
        status st = added_find(set, e->tokenizer->word, text, at, &match, &found);
        size_t until = found ? match.begin : text.bytes;
        if (!st && until > at) {
            struct slice_of_text stretch = {text.data + at, until - at};
            st = encode(e, stretch, first && at == 0);
        }
        if (!st && found) {
            st = id_list_add(&e->ids, match.id);
        }
        if (st) {
            return st;
        }
        at = found ? match.end : text.bytes;
    }
    return STATUS_OK;
}

/* Text without tokens of the first set. */
static status encode_raw(struct encoding *e, struct slice_of_text text, bool first)
{
    const struct tokenizer *t = e->tokenizer;
    status st = normalize(&t->normalizer, text, &e->normal, &e->spare);

    return st ? st : cut(e, &t->normalized, text_of(&e->normal), first, encode_words);
}

static status add_side(struct id_list *out, const struct template_side *side)
{
    status st = STATUS_OK;

    for (uint32_t i = 0; !st && i < side->n; i++) {
        st = id_list_add(out, side->ids[i]);
    }
    return st;
}

status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                        bool add_special, struct token_ids *out)
{
    struct encoding e = {.tokenizer = tokenizer};

    *out = (struct token_ids){0};
    if (bytes > TOKENIZER_MAX_TEXT) {
        return status_fail(STATUS_INVALID, "the text has %zu bytes, more than %d", bytes,
                           TOKENIZER_MAX_TEXT);
    }
    if (!utf8_is_text(text, bytes)) {
        return status_fail(STATUS_INVALID, "the text is not valid UTF-8");
    }
    status st = pretokenize_open(&e.run, &tokenizer->pretokenizer);
    if (!st && add_special) {
        st = add_side(&e.ids, &tokenizer->before);
    }
    if (!st) {
        st = cut(&e, &tokenizer->raw, (struct slice_of_text){text, bytes}, true, encode_raw);
    }
    if (!st && add_special) {
        st = add_side(&e.ids, &tokenizer->after);
    }
    text_fini(&e.normal);
    text_fini(&e.spare);
    pretokenize_close(&e.run);
    bpe_fini(&e.bpe);
    if (st) {
        free(e.ids.ids);
        return st;
    }
    *out = (struct token_ids){e.ids.ids, e.ids.n};
    return STATUS_OK;
}
