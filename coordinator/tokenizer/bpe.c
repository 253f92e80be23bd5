/*
 * The two neighbours whose merge has the smallest rank are merged, the leftmost first, until
 * nothing merges.  Candidates wait in a heap and symbols form a linked list, so a word of n
 * characters costs n log n: where there is no pre-tokenizer the whole text is one word.
 */
#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>

void bpe_fini(struct bpe *bpe)
{
    free(bpe->symbols);
    free(bpe->heap);
    *bpe = (struct bpe){0};
}

static status heap_push(struct bpe *bpe, struct bpe_entry entry)
{
    void *array = bpe->heap;
    status st = text_grow(&array, &bpe->heap_capacity, bpe->n_heap + 1, sizeof(*bpe->heap));

    if (st) {
        return st;
    }
    bpe->heap = array;
    size_t at = bpe->n_heap++;
    while (at > 0 && bpe->heap[(at - 1) / 2].key > entry.key) {
        bpe->heap[at] = bpe->heap[(at - 1) / 2];
        at = (at - 1) / 2;
        bpe->heap_moves++;
    }
    bpe->heap[at] = entry;
    bpe->heap_moves++;
    return STATUS_OK;
}

static struct bpe_entry heap_pop(struct bpe *bpe)
{
    struct bpe_entry top = bpe->heap[0];
    struct bpe_entry last = bpe->heap[--bpe->n_heap];
    size_t at = 0;

    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= bpe->n_heap) {
            break;
        }
        if (child + 1 < bpe->n_heap && bpe->heap[child + 1].key < bpe->heap[child].key) {
            child++;
        }
        if (bpe->heap[child].key >= last.key) {
            break;
        }
        bpe->heap[at] = bpe->heap[child];
        at = child;
        bpe->heap_moves++;
    }
    bpe->heap[at] = last;
    bpe->heap_moves++;
    return top;
}

static status add_symbol(struct bpe *bpe, uint32_t id)
{
    void *array = bpe->symbols;
    status st = text_grow(&array, &bpe->symbol_capacity, bpe->n_symbols + 1, sizeof(*bpe->symbols));

    if (st) {
        return st;
    }
    bpe->symbols = array;
    int32_t at = (int32_t)bpe->n_symbols++;
    bpe->symbols[at] = (struct bpe_symbol){id, at - 1, at + 1, false};
    return STATUS_OK;
}

/* A character without a token, as its bytes; *done: each of them has one. */
static status add_bytes(struct bpe *bpe, const struct bpe_model *model,
                        struct slice_of_text character, bool *done)
{
    status st = STATUS_OK;

    *done = false;
    for (size_t i = 0; i < character.bytes; i++) {
        if (!model->byte_fallback ||
            model->byte_ids[(unsigned char)character.data[i]] == NO_TOKEN) {
            return STATUS_OK;
        }
    }
    *done = true;
    for (size_t i = 0; !st && i < character.bytes; i++) {
        st = add_symbol(bpe, model->byte_ids[(unsigned char)character.data[i]]);
    }
    return st;
}

/* One symbol a character.  A run of unknown characters is one unknown token if so asked. */
static status add_characters(struct bpe *bpe, const struct bpe_model *model,
                             const struct vocab *vocab, struct slice_of_text word)
{
    bool unknown = false; /* an unknown token waits to be added */
    status st = STATUS_OK;

    for (size_t at = 0; !st && at < word.bytes;) {
        struct slice_of_text character = {word.data + at, utf8_length(word.data[at])};
        uint32_t id = vocab_find(vocab, character.data, character.bytes);
        bool done = false;
        at += character.bytes;
        if (id == NO_TOKEN) {
            st = add_bytes(bpe, model, character, &done);
            if (st || done) {
                continue;
            }
        }
        if (unknown && (id != NO_TOKEN || !model->fuse_unknown)) {
            st = add_symbol(bpe, model->unknown_id);
            unknown = false;
        }
        if (id == NO_TOKEN) {
            unknown = model->unknown_id != NO_TOKEN;
        } else if (!st) {
            st = add_symbol(bpe, id);
        }
    }
    return !st && unknown ? add_symbol(bpe, model->unknown_id) : st;
}

/* Queues the merge of a symbol with the one after it, if there is such a merge. */
static status offer(struct bpe *bpe, const struct vocab *vocab, int32_t left)
{
    int32_t right = left < 0 ? -1 : bpe->symbols[left].next;

    if (right < 0) {
        return STATUS_OK;
    }
    const struct merge_slot *merge =
        vocab_merge(vocab, bpe->symbols[left].id, bpe->symbols[right].id);
    if (!merge) {
        return STATUS_OK;
    }
    struct bpe_entry entry = {(uint64_t)merge->rank << 32 | (uint32_t)left, merge->id};
    return heap_push(bpe, entry);
}

static status merge_all(struct bpe *bpe, const struct vocab *vocab)
{
    struct bpe_symbol *symbols = bpe->symbols;
    status st = STATUS_OK;

    for (size_t i = 0; !st && i + 1 < bpe->n_symbols; i++) {
        st = offer(bpe, vocab, (int32_t)i);
    }
    while (!st && bpe->n_heap > 0) {
        struct bpe_entry entry = heap_pop(bpe);
        int32_t left = (int32_t)(uint32_t)entry.key;
        int32_t right = symbols[left].next;
        if (symbols[left].gone || right < 0) {
            continue;
        }
        /* The neighbours may have changed since the merge was queued. */
        const struct merge_slot *merge = vocab_merge(vocab, symbols[left].id, symbols[right].id);
        if (!merge || merge->id != entry.id) {
            continue;
        }
        symbols[left].id = entry.id;
        symbols[left].next = symbols[right].next;
        symbols[right].gone = true;
        if (symbols[left].next >= 0) {
            symbols[symbols[left].next].previous = left;
        }
        st = offer(bpe, vocab, symbols[left].previous);
        if (!st) {
            st = offer(bpe, vocab, left);
        }
    }
    return st;
}

status bpe_encode(struct bpe *bpe, const struct bpe_model *model, const struct vocab *vocab,
                  struct slice_of_text word, struct id_list *out)
{
    if (model->ignore_merges) {
        uint32_t id = vocab_find(vocab, word.data, word.bytes);
        if (id != NO_TOKEN) {
            return id_list_add(out, id);
        }
    }
    bpe->n_symbols = 0;
    bpe->n_heap = 0;
    status st = add_characters(bpe, model, vocab, word);
    if (st || bpe->n_symbols == 0) {
        return st;
    }
    bpe->symbols[bpe->n_symbols - 1].next = -1;
    st = merge_all(bpe, vocab);
    for (int32_t at = 0; !st && at >= 0; at = bpe->symbols[at].next) {
        st = id_list_add(out, bpe->symbols[at].id);
    }
    return st;
}
