#include "common/file.h"
#include "coordinator/tokenizer/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the model ---- */

/* Settings that must be absent or empty: what they ask for is not done here. */
static status refuse_extras(const struct field *model)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    struct field at;

    for (size_t i = 0; i < 2; i++) {
        status st = field_find(&at, model, affixes[i], FIELD_STRING);
        if (st) {
            return st;
        }
        if (at.item && field_string(&at)[0]) {
            return field_fail(&at, "is not supported");
        }
    }
    status st = field_find(&at, model, "dropout", FIELD_NUMBER);
    if (st || !at.item) {
        return st;
    }
    uint32_t zero;
    return field_index(&zero, &at, 1) ? field_fail(&at, "is not supported") : STATUS_OK;
}

static status optional_bool(bool *out, const struct field *model, const char *key)
{
    struct field at;
    status st = field_find(&at, model, key, FIELD_BOOL);

    *out = !st && field_bool(&at, false);
    return st;
}

static status load_model_flags(struct bpe_model *out, const struct field *at)
{
    const char *type;
    status st = field_check_keys(at);

    if (!st) {
        st = field_get_string(&type, at, "type");
    }
    if (!st && strcmp(type, "BPE") != 0) {
        st = field_fail(at, "type %.40s is not supported", type);
    }
    if (!st) {
        st = refuse_extras(at);
    }
    if (!st) {
        st = optional_bool(&out->byte_fallback, at, "byte_fallback");
    }
    if (!st) {
        st = optional_bool(&out->fuse_unknown, at, "fuse_unk");
    }
    if (!st) {
        st = optional_bool(&out->ignore_merges, at, "ignore_merges");
    }
    return st;
}

static status load_model(struct tokenizer *t, const struct field *at, const struct field *added)
{
    struct field vocab, merges, unknown;
    status st = load_model_flags(&t->model, at);

    if (!st) {
        st = field_get(&vocab, at, "vocab", FIELD_OBJECT);
    }
    if (!st) {
        st = field_get(&merges, at, "merges", FIELD_ARRAY);
    }
    if (!st) {
        st = field_find(&unknown, at, "unk_token", FIELD_STRING);
    }
    if (!st) {
        st = vocab_build(&t->vocab, &vocab, &merges, added);
    }
    if (st) {
        return st;
    }
    t->model.unknown_id = NO_TOKEN;
    if (unknown.item) {
        const char *text = field_string(&unknown);
        t->model.unknown_id = vocab_find(&t->vocab, text, strlen(text));
        if (t->model.unknown_id == NO_TOKEN) {
            return field_fail(&unknown, "is not in the vocabulary");
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof(name), "<0x%02X>", byte);
        t->model.byte_ids[byte] = vocab_find(&t->vocab, name, 6);
    }
    return STATUS_OK;
}

/* ---- added tokens ---- */

static status load_added_token(struct tokenizer *t, const struct field *at)
{
    struct added_token token = {0};
    const char *text;
    bool normalized;
    status st = field_get_string(&text, at, "content");

    if (!st) {
        st = field_get_index(&token.id, at, "id", TOKENIZER_MAX_ID);
    }
    if (!st) {
        st = field_get_bool(&token.single_word, at, "single_word");
    }
    if (!st) {
        st = field_get_bool(&token.lstrip, at, "lstrip");
    }
    if (!st) {
        st = field_get_bool(&token.rstrip, at, "rstrip");
    }
    if (!st) {
        st = field_get_bool(&normalized, at, "normalized");
    }
    struct text_buffer search = {0};
    struct text_buffer spare = {0};
    const struct normalizer none = {0};
    if (!st) {
        st = normalize(normalized ? &t->normalizer : &none, text_of_string(text), &search, &spare);
    }
    if (!st) {
        st = text_append(&search, "", 1);
    }
    text_fini(&spare);
    if (st || search.bytes == 1) {
        text_fini(&search);
        return st ? st : field_fail(at, "content is empty once normalized");
    }
    struct added_set *set = normalized ? &t->normalized : &t->raw;
    token.text = search.data; /* moves */
    token.bytes = (uint32_t)search.bytes - 1;
    set->tokens[set->n++] = token;
    return STATUS_OK;
}

static status load_added(struct tokenizer *t, const struct field *list)
{
    struct field at = {0};
    size_t n = 0;
    bool any_single_word = false;
    status st = STATUS_OK;

    while (list->item && field_next(&at, list)) {
        n++;
    }
    t->raw.tokens = calloc(n + 1, sizeof(*t->raw.tokens));
    t->normalized.tokens = calloc(n + 1, sizeof(*t->normalized.tokens));
    if (!t->raw.tokens || !t->normalized.tokens) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    at = (struct field){0};
    while (!st && list->item && field_next(&at, list)) {
        st = load_added_token(t, &at);
    }
    added_set_sort(&t->raw);
    added_set_sort(&t->normalized);
    for (uint32_t i = 0; i < t->raw.n + t->normalized.n; i++) {
        any_single_word |= i < t->raw.n ? t->raw.tokens[i].single_word
                                        : t->normalized.tokens[i - t->raw.n].single_word;
    }
    if (!st && any_single_word) {
        const char *word = "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]";
        st = regex_compile(&t->word, list, word);
    }
    return st;
}

/* ---- the template ---- */

static status add_special(struct template_side *side, const struct field *at,
                          const struct field *known, const struct tokenizer *t)
{
    struct field token, ids;
    struct field id = {0};
    const char *name;
    status st = field_get_string(&name, at, "id");

    if (!st) {
        st = field_get(&token, known, name, FIELD_OBJECT);
    }
    if (!st) {
        st = field_get(&ids, &token, "ids", FIELD_ARRAY);
    }
    while (!st && field_next(&id, &ids)) {
        if (side->n == TOKENIZER_MAX_TEMPLATE) {
            return field_fail(at, "is more than %d tokens", TOKENIZER_MAX_TEMPLATE);
        }
        st = field_index(&side->ids[side->n], &id, t->vocab.n_entries);
        if (!st) {
            side->n++;
        }
    }
    return st;
}

/* One element of the template: a special token, or the place of the text. */
static status load_piece(struct tokenizer *t, const struct field *piece, const struct field *known,
                         bool *text_seen)
{
    struct field special, sequence;
    status st = field_expect(piece, FIELD_OBJECT);

    if (!st) {
        st = field_find(&special, piece, "SpecialToken", FIELD_OBJECT);
    }
    if (!st) {
        st = field_find(&sequence, piece, "Sequence", FIELD_OBJECT);
    }
    if (st) {
        return st;
    }
    if (!special.item == !sequence.item || (sequence.item && *text_seen)) {
        return field_fail(piece, "is not a special token or the one place of the text");
    }
    if (special.item) {
        return add_special(*text_seen ? &t->after : &t->before, &special, known, t);
    }
    *text_seen = true;
    return STATUS_OK;
}

static status load_template(struct tokenizer *t, const struct field *at)
{
    struct field single, known;
    struct field piece = {0};
    bool text_seen = false;
    status st = field_get(&single, at, "single", FIELD_ARRAY);

    if (!st) {
        st = field_get(&known, at, "special_tokens", FIELD_OBJECT);
    }
    if (!st) {
        st = field_check_keys(&known);
    }
    while (!st && field_next(&piece, &single)) {
        st = load_piece(t, &piece, &known, &text_seen);
    }
    return st || text_seen ? st : field_fail(&single, "has no place for the text");
}

static status load_processor(struct tokenizer *t, const struct field *at, int depth,
                             bool *template_seen)
{
    struct field list;
    struct field element = {0};
    const char *type;
    status st = field_expect(at, FIELD_OBJECT);

    if (!st) {
        st = field_check_keys(at);
    }
    if (!st) {
        st = field_get_string(&type, at, "type");
    }
    if (st || strcmp(type, "ByteLevel") == 0) { /* which only moves offsets */
        return st;
    }
    if (strcmp(type, "TemplateProcessing") == 0 && !*template_seen) {
        *template_seen = true;
        return load_template(t, at);
    }
    if (strcmp(type, "Sequence") != 0 || depth == TOKENIZER_MAX_NESTING) {
        return field_fail(at, "type %.40s is not supported%s", type,
                          *template_seen ? " after TemplateProcessing" : "");
    }
    st = field_get(&list, at, "processors", FIELD_ARRAY);
    while (!st && field_next(&element, &list)) {
        st = load_processor(t, &element, depth + 1, template_seen);
    }
    return st;
}

/* ---- the whole ---- */

static status load_all(struct tokenizer *t, const struct field *root)
{
    struct field model, added, part;
    bool template_seen = false;
    status st = field_expect(root, FIELD_OBJECT);

    if (!st) {
        st = field_check_keys(root);
    }
    if (!st) {
        st = field_get(&model, root, "model", FIELD_OBJECT);
    }
    if (!st) {
        st = field_find(&added, root, "added_tokens", FIELD_ARRAY);
    }
    if (!st) {
        st = load_model(t, &model, &added);
    }
    if (!st) {
        st = field_find(&part, root, "normalizer", FIELD_OBJECT);
    }
    if (!st) {
        st = normalizer_load(&t->normalizer, &part);
    }
    if (!st) {
        st = load_added(t, &added);
    }
    if (!st) {
        st = field_find(&part, root, "pre_tokenizer", FIELD_OBJECT);
    }
    if (!st) {
        st = pretokenizer_load(&t->pretokenizer, &part);
    }
    if (!st) {
        st = field_find(&part, root, "decoder", FIELD_OBJECT);
    }
    if (!st) {
        st = decoder_load(&t->decoder, &part);
    }
    if (!st) {
        st = field_find(&part, root, "post_processor", FIELD_OBJECT);
    }
    return st || !part.item ? st : load_processor(t, &part, 0, &template_seen);
}

status tokenizer_parse(struct tokenizer **out, const char *what, const char *json, size_t bytes)
{
    struct cJSON *root = NULL;

    if (bytes > TOKENIZER_MAX_FILE) {
        return status_fail(STATUS_INVALID, "%s: has %zu bytes, more than %d", what, bytes,
                           TOKENIZER_MAX_FILE);
    }
    struct tokenizer *t = calloc(1, sizeof(*t));
    if (!t) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    status st = field_parse(&root, what, json, bytes);
    if (!st) {
        struct field at = {NULL, what, 0, root};
        st = load_all(t, &at);
        field_free(root);
    }
    if (st) {
        tokenizer_free(t);
        return st;
    }
    *out = t;
    return STATUS_OK;
}

status tokenizer_load(struct tokenizer **out, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    status st = file_read(&text, &bytes, path, TOKENIZER_MAX_FILE);

    if (!st) {
        st = tokenizer_parse(out, path, text, bytes);
        free(text);
    }
    return st;
}

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (!tokenizer) {
        return;
    }
    vocab_fini(&tokenizer->vocab);
    normalizer_fini(&tokenizer->normalizer);
    added_set_fini(&tokenizer->raw);
    added_set_fini(&tokenizer->normalized);
    regex_free(tokenizer->word);
    pretokenizer_fini(&tokenizer->pretokenizer);
    decoder_fini(&tokenizer->decoder);
    free(tokenizer);
}

uint32_t tokenizer_size(const struct tokenizer *tokenizer)
{
    return tokenizer->vocab.n_entries;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->vocab.n_entries && tokenizer->vocab.entries[id].special;
}
