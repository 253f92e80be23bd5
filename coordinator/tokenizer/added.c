#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

static int by_text(const void *a, const void *b)
{
    const struct added_token *left = a;
    const struct added_token *right = b;

    return strcmp(left->text, right->text);
}

void added_set_sort(struct added_set *set)
{
    uint32_t at = 0;

    if (set->n) {
        qsort(set->tokens, set->n, sizeof(*set->tokens), by_text);
    }
    for (uint32_t byte = 0; byte <= 256; byte++) {
        while (at < set->n && (unsigned char)set->tokens[at].text[0] < byte) {
            at++;
        }
        set->first[byte] = at;
    }
}

void added_set_fini(struct added_set *set)
{
    for (uint32_t i = 0; i < set->n; i++) {
        free((char *)set->tokens[i].text);
    }
    free(set->tokens);
    *set = (struct added_set){0};
}

/* Among tokens [low, high), which agree in their first `depth` bytes: where those begin whose
 * next byte is at least `byte`.  A token that ends here has the byte 0. */
static uint32_t lower_bound(const struct added_set *set, uint32_t low, uint32_t high, size_t depth,
                            int byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((unsigned char)set->tokens[middle].text[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The longest token that the text begins with, or NULL. */
static const struct added_token *longest_at(const struct added_set *set, struct slice_of_text text)
{
    unsigned char byte = (unsigned char)text.data[0];
    uint32_t low = set->first[byte];
    uint32_t high = set->first[byte + 1];
    const struct added_token *best = NULL;

    for (size_t depth = 1; low < high; depth++) {
        if (set->tokens[low].bytes == depth) {
            best = &set->tokens[low];
        }
        byte = depth < text.bytes ? (unsigned char)text.data[depth] : 0;
        if (byte == 0) { /* in no token: there it is the end */
            break;
        }
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return best;
}

static bool is_word(struct regex_run *run, struct slice_of_text text, size_t at, status *st)
{
    size_t begin, end;
    struct slice_of_text one = {text.data + at, utf8_length(text.data[at])};

    if (*st) {
        return false;
    }
    *st = regex_next(run, one, 0, &begin, &end);
    return end > 0;
}

static size_t character_before(struct slice_of_text text, size_t at)
{
    do {
        at--;
    } while (((unsigned char)text.data[at] & 0xC0) == 0x80);
    return at;
}

/* A single_word token counts only where no letter or digit touches it. */
static status stands_alone(const struct regex *word, struct slice_of_text text, size_t begin,
                           size_t end, bool *alone)
{
    struct regex_run *run;
    status st = regex_run_open(&run, word);

    if (st) {
        return st;
    }
    *alone = !(begin > 0 && is_word(run, text, character_before(text, begin), &st)) &&
             !(end < text.bytes && is_word(run, text, end, &st));
    regex_run_close(run);
    return st;
}

/* Where the white space begins that ends at `at`, not before `from`. */
static size_t spaces_before(struct slice_of_text text, size_t from, size_t at)
{
    while (at > from) {
        size_t bytes;
        uint32_t character;
        size_t before = character_before(text, at);
        utf8_next(text.data + before, at - before, &bytes, &character);
        if (before < from || !utf8_is_space(character)) {
            break;
        }
        at = before;
    }
    return at;
}

static size_t spaces_after(struct slice_of_text text, size_t at)
{
    size_t bytes;
    uint32_t character;

    while (at < text.bytes) {
        utf8_next(text.data + at, text.bytes - at, &bytes, &character);
        if (!utf8_is_space(character)) {
            break;
        }
        at += bytes;
    }
    return at;
}

status added_find(const struct added_set *set, const struct regex *word, struct slice_of_text text,
                  size_t from, struct added_match *out, bool *found)
{
    *found = false;
    for (size_t at = from; set->n && at < text.bytes;) {
        struct slice_of_text rest = {text.data + at, text.bytes - at};
        const struct added_token *token = longest_at(set, rest);
        if (!token) {
            at++;
            continue;
        }
        size_t end = at + token->bytes;
        bool alone = true;
        if (token->single_word) {
            status st = stands_alone(word, text, at, end, &alone);
            if (st) {
                return st;
            }
        }
        if (!alone) {
            at = end;
            continue;
        }
        *out = (struct added_match){at, end, token->id};
        if (token->lstrip) {
            out->begin = spaces_before(text, from, at);
        }
        if (token->rstrip) {
            out->end = spaces_after(text, end);
        }
        *found = true;
        return STATUS_OK;
    }
    return STATUS_OK;
}
