/* classes.c - what a vocabulary's ids are: special, or punctuation. */
#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>

/* Unicode's punctuation, and the symbols that ASCII counts as such. */
static const char punctuation[] = "[\\p{P}$+<=>^`|~]+";

static status take_id(struct token_ids *out, uint32_t id)
{
    if ((out->n & (out->n - 1)) == 0) { /* room for a power of two */
        size_t room = out->n ? 2 * out->n : 1;
        uint32_t *ids = realloc(out->ids, room * sizeof(*ids));
        if (!ids) {
            return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
        }
        out->ids = ids;
    }
    out->ids[out->n++] = id;
    return STATUS_OK;
}

/* Without White_Space at either end. */
static struct slice_of_text strip(struct slice_of_text text)
{
    size_t begin = text.bytes;
    size_t end = 0;
    size_t bytes;
    uint32_t character;

    for (size_t at = 0; at < text.bytes; at += bytes) {
        if (utf8_next(text.data + at, text.bytes - at, &bytes, &character) != UTF8_CHARACTER ||
            !utf8_is_space(character)) {
            begin = at < begin ? at : begin;
            end = at + bytes;
        }
    }
    return begin < end ? (struct slice_of_text){text.data + begin, end - begin}
                       : (struct slice_of_text){text.data, 0};
}

static status is_punctuation(const struct tokenizer *tokenizer, struct regex_run *run, uint32_t id,
                             bool *out)
{
    char *text;
    size_t bytes;
    size_t begin;
    size_t end;
    status st = tokenizer_decode(tokenizer, &id, 1, false, &text, &bytes);

    *out = false;
    if (st) {
        return st;
    }
    struct slice_of_text inside = strip((struct slice_of_text){text, bytes});
    if (inside.bytes > 0) {
        st = regex_next(run, inside, 0, &begin, &end);
        *out = !st && begin == 0 && end == inside.bytes;
    }
    free(text);
    return st;
}

static status find_punctuation(const struct tokenizer *tokenizer, struct regex_run *run,
                               struct token_ids *out)
{
    status st = STATUS_OK;

    for (uint32_t id = 0; !st && id < tokenizer_size(tokenizer); id++) {
        bool found = false;
        if (tokenizer->vocab.entries[id].text && !tokenizer_is_special(tokenizer, id)) {
            st = is_punctuation(tokenizer, run, id, &found);
        }
        if (!st && found) {
            st = take_id(out, id);
        }
    }
    return st;
}

status tokenizer_punctuation(const struct tokenizer *tokenizer, struct token_ids *out)
{
    const struct field at = {.name = "punctuation"};
    struct regex *regex = NULL;
    struct regex_run *run = NULL;
    status st = regex_compile(&regex, &at, punctuation);

    *out = (struct token_ids){0};
    if (!st) {
        st = regex_run_open(&run, regex);
    }
    if (!st) {
        st = find_punctuation(tokenizer, run, out);
    }
    if (st) {
        free(out->ids);
        *out = (struct token_ids){0};
    }
    regex_run_close(run);
    regex_free(regex);
    return st;
}

status tokenizer_specials(const struct tokenizer *tokenizer, struct token_ids *out)
{
    status st = STATUS_OK;

    *out = (struct token_ids){0};
    for (uint32_t id = 0; !st && id < tokenizer_size(tokenizer); id++) {
        if (tokenizer_is_special(tokenizer, id)) {
            st = take_id(out, id);
        }
    }
    if (st) {
        free(out->ids);
        *out = (struct token_ids){0};
    }
    return st;
}
