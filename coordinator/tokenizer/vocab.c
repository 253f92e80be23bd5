#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

/* Slots are a power of two, at most half full. */
static uint32_t slots_for(size_t n)
{
    uint32_t slots = 16;

    while (slots < 2 * n) {
        slots *= 2;
    }
    return slots;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

static uint64_t hash_text(const char *text, size_t bytes)
{
    uint64_t hash = 0xCBF29CE484222325u ^ bytes;

    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001B3u;
    }
    return mix(hash);
}

/* The slot that holds the text, or the free one where it belongs. */
static uint32_t *text_slot(const struct vocab *vocab, const char *text, size_t bytes)
{
    uint64_t at = hash_text(text, bytes);

    for (;; at++) {
        uint32_t *slot = &vocab->slots[at & vocab->slot_mask];
        if (*slot == NO_TOKEN) {
            return slot;
        }
        const struct token_entry *entry = &vocab->entries[*slot];
        if (entry->bytes == bytes && memcmp(entry->text, text, bytes) == 0) {
            return slot;
        }
    }
}

uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t bytes)
{
    return *text_slot(vocab, text, bytes);
}

static struct merge_slot *pair_slot(const struct vocab *vocab, uint64_t pair)
{
    uint64_t at = mix(pair);

    while (vocab->merges[at & vocab->merge_mask].pair != UINT64_MAX &&
           vocab->merges[at & vocab->merge_mask].pair != pair) {
        at++;
    }
    return &vocab->merges[at & vocab->merge_mask];
}

const struct merge_slot *vocab_merge(const struct vocab *vocab, uint32_t left, uint32_t right)
{
    const struct merge_slot *slot = pair_slot(vocab, (uint64_t)left << 32 | right);

    return slot->pair == UINT64_MAX ? NULL : slot;
}

/* What the tables must hold, counted before anything is allocated. */
struct census {
    size_t bytes;
    size_t n_tokens;
    uint32_t n_ids; /* largest id + 1 */
};

static void count_token(struct census *census, const char *text, uint32_t id)
{
    census->bytes += strlen(text) + 1;
    census->n_tokens++;
    if (id >= census->n_ids) {
        census->n_ids = id + 1;
    }
}

static status take_census(struct census *census, const struct field *vocab,
                          const struct field *added)
{
    struct field token = {0};
    uint32_t id;
    status st = STATUS_OK;

    while (!st && field_next(&token, vocab)) {
        st = field_index(&id, &token, TOKENIZER_MAX_ID);
        if (!st) {
            count_token(census, token.name, id);
        }
    }
    token = (struct field){0};
    while (!st && added->item && field_next(&token, added)) {
        const char *text;
        st = field_expect(&token, FIELD_OBJECT);
        if (!st) {
            st = field_check_keys(&token);
        }
        if (!st) {
            st = field_get_index(&id, &token, "id", TOKENIZER_MAX_ID);
        }
        if (!st) {
            st = field_get_string(&text, &token, "content");
        }
        if (!st) {
            count_token(census, text, id);
        }
    }
    return st;
}

static struct token_entry *store(struct vocab *vocab, size_t *used, const char *text, uint32_t id)
{
    size_t bytes = strlen(text);
    char *copy = vocab->storage + *used;

    memcpy(copy, text, bytes + 1);
    *used += bytes + 1;
    vocab->entries[id].text = copy;
    vocab->entries[id].bytes = (uint32_t)bytes;
    return &vocab->entries[id];
}

static status enter_vocab(struct vocab *vocab, size_t *used, const struct field *at)
{
    struct field token = {0};

    while (field_next(&token, at)) {
        uint32_t id;
        status st = field_index(&id, &token, TOKENIZER_MAX_ID);
        if (st) {
            return st;
        }
        uint32_t *slot = text_slot(vocab, token.name, strlen(token.name));
        if (*slot != NO_TOKEN) {
            return field_fail(&token, "is there twice");
        }
        if (vocab->entries[id].text) {
            return field_fail(&token, "id %u is taken by another token", id);
        }
        store(vocab, used, token.name, id);
        *slot = id;
    }
    return STATUS_OK;
}

static status enter_added(struct vocab *vocab, size_t *used, const struct field *at)
{
    struct field token = {0};

    while (at->item && field_next(&token, at)) {
        uint32_t id;
        const char *text;
        bool special;
        status st = field_get_index(&id, &token, "id", TOKENIZER_MAX_ID);
        if (!st) {
            st = field_get_string(&text, &token, "content");
        }
        if (!st) {
            st = field_get_bool(&special, &token, "special");
        }
        if (st) {
            return st;
        }
        if (!text[0]) {
            return field_fail(&token, "content is empty");
        }
        uint32_t known = vocab_find(vocab, text, strlen(text));
        if (known != NO_TOKEN && known != id) {
            return field_fail(&token, "id is %u here and %u in the vocabulary", id, known);
        }
        if (known == NO_TOKEN && vocab->entries[id].text) {
            return field_fail(&token, "id %u is taken by another token", id);
        }
        if (known == NO_TOKEN) {
            store(vocab, used, text, id);
        }
        vocab->entries[id].special = special;
    }
    return STATUS_OK;
}

/* Old files write "left right", newer ones ["left", "right"]. */
static status merge_sides(const struct field *merge, struct slice_of_text *left,
                          struct slice_of_text *right)
{
    struct field side = {0};

    if (field_is(merge, FIELD_ARRAY)) {
        struct slice_of_text *sides[] = {left, right};
        for (int i = 0; i < 2; i++) {
            if (!field_next(&side, merge) || !field_is(&side, FIELD_STRING)) {
                return field_fail(merge, "is not two strings");
            }
            *sides[i] = text_of_string(field_string(&side));
        }
        return field_next(&side, merge) ? field_fail(merge, "is not two strings") : STATUS_OK;
    }
    if (!field_is(merge, FIELD_STRING)) {
        return field_fail(merge, "is neither a string nor two strings");
    }
    const char *text = field_string(merge);
    const char *space = strchr(text, ' ');
    if (!space || strchr(space + 1, ' ')) {
        return field_fail(merge, "is not two tokens with a space between them");
    }
    *left = (struct slice_of_text){text, (size_t)(space - text)};
    *right = text_of_string(space + 1);
    return STATUS_OK;
}

static status enter_merge(struct vocab *vocab, const struct field *merge, uint32_t rank,
                          struct text_buffer *joined)
{
    struct slice_of_text left = {"", 0};
    struct slice_of_text right = {"", 0};
    status st = merge_sides(merge, &left, &right);

    if (st) {
        return st;
    }
    joined->bytes = 0;
    st = text_append(joined, left.data, left.bytes);
    if (!st) {
        st = text_append(joined, right.data, right.bytes);
    }
    if (st) {
        return st;
    }
    uint32_t a = vocab_find(vocab, left.data, left.bytes);
    uint32_t b = vocab_find(vocab, right.data, right.bytes);
    uint32_t both = vocab_find(vocab, joined->data, joined->bytes);
    if (a == NO_TOKEN || b == NO_TOKEN || both == NO_TOKEN) {
        return field_fail(merge, "%s is not in the vocabulary",
                          a == NO_TOKEN   ? "its left side"
                          : b == NO_TOKEN ? "its right side"
                                          : "its result");
    }
    /* Of merges written twice the later one counts, as in the library the files come from. */
    uint64_t pair = (uint64_t)a << 32 | b;
    *pair_slot(vocab, pair) = (struct merge_slot){pair, rank, both};
    return STATUS_OK;
}

static status enter_merges(struct vocab *vocab, const struct field *at)
{
    struct field merge = {0};
    struct text_buffer joined = {0};
    size_t n = 0;
    status st = STATUS_OK;

    while (field_next(&merge, at)) {
        n++;
    }
    vocab->merge_mask = slots_for(n) - 1;
    vocab->merges = malloc(((size_t)vocab->merge_mask + 1) * sizeof(*vocab->merges));
    if (!vocab->merges) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    memset(vocab->merges, 0xFF, ((size_t)vocab->merge_mask + 1) * sizeof(*vocab->merges));
    merge = (struct field){0};
    while (!st && field_next(&merge, at)) {
        st = enter_merge(vocab, &merge, (uint32_t)merge.index, &joined);
    }
    text_fini(&joined);
    return st;
}

status vocab_build(struct vocab *out, const struct field *vocab, const struct field *merges,
                   const struct field *added)
{
    struct census census = {0};
    size_t used = 0;
    status st = take_census(&census, vocab, added);

    if (st) {
        return st;
    }
    if (census.n_ids == 0) {
        return field_fail(vocab, "is empty");
    }
    uint32_t slots = slots_for(census.n_tokens);
    *out = (struct vocab){.n_entries = census.n_ids, .slot_mask = slots - 1};
    out->storage = malloc(census.bytes);
    out->entries = calloc(census.n_ids, sizeof(*out->entries));
    out->slots = malloc(slots * sizeof(*out->slots));
    if (!out->storage || !out->entries || !out->slots) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    memset(out->slots, 0xFF, slots * sizeof(*out->slots));
    st = enter_vocab(out, &used, vocab);
    if (!st) {
        st = enter_added(out, &used, added);
    }
    return st ? st : enter_merges(out, merges);
}

void vocab_fini(struct vocab *vocab)
{
    free(vocab->storage);
    free(vocab->entries);
    free(vocab->slots);
    free(vocab->merges);
    *vocab = (struct vocab){0};
}
