/*
 * internal.h - what a loaded tokenizer consists of; private to this folder and its tests.
 *
 * Everything below hangs off struct tokenizer and is read-only after loading.  What a call
 * needs on the way (match data, BPE symbols, decoder state) belongs to that call.
 */
#ifndef COORDINATOR_TOKENIZER_INTERNAL_H
#define COORDINATOR_TOKENIZER_INTERNAL_H

#include "common/status.h"
#include "coordinator/tokenizer/field.h"
#include "coordinator/tokenizer/text.h"
#include "coordinator/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tokenizer_limits {
    TOKENIZER_MAX_FILE = 64 << 20,  /* bytes of a tokenizer.json */
    TOKENIZER_MAX_TEXT = 128 << 20, /* bytes of one text to encode */
    TOKENIZER_MAX_ID = 1 << 22,     /* ids stay below */
    TOKENIZER_MAX_STEPS = 16,       /* of a normalizer, pre-tokenizer or decoder, flattened */
    TOKENIZER_MAX_TEMPLATE = 16,    /* special tokens on one side of the text */
    TOKENIZER_MAX_PATTERN = 4096,   /* bytes of a regular expression */
    TOKENIZER_MAX_NESTING = 8,      /* of Sequences inside Sequences */
};

/* ---- regex.c: pre-tokenizer patterns, in the dialect that the files are written for ---- */

struct regex;
struct regex_run; /* what one thread needs to match; not shared */

/* `at` names the pattern in errors.  A pattern that can match nothing is refused. */
status regex_compile(struct regex **out, const struct field *at, const char *pattern);
/* Matches the literal text. */
status regex_compile_literal(struct regex **out, const struct field *at, const char *literal);
void regex_free(struct regex *regex);
status regex_run_open(struct regex_run **out, const struct regex *regex);
void regex_run_close(struct regex_run *run);
/* The first match at or after `from`; *end == 0: none.  Text is valid UTF-8. */
status regex_next(struct regex_run *run, struct slice_of_text text, size_t from, size_t *begin,
                  size_t *end);

/* ---- vocab.c: token strings and merges ---- */

enum { NO_TOKEN = UINT32_MAX };

struct token_entry {
    const char *text; /* NULL: the id is unused */
    uint32_t bytes;
    bool special;
};

struct merge_slot {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty */
    uint32_t rank;
    uint32_t id;
};

struct vocab {
    char *storage;               /* every string of the vocabulary and the added tokens */
    struct token_entry *entries; /* by id */
    uint32_t n_entries;          /* largest id + 1 */
    uint32_t *slots;             /* hash of model tokens: id or NO_TOKEN */
    uint32_t slot_mask;
    struct merge_slot *merges;
    uint32_t merge_mask;
};

/* The id of a token of the model, NO_TOKEN if there is none. */
uint32_t vocab_find(const struct vocab *vocab, const char *text, size_t bytes);
/* NULL if the two do not merge. */
const struct merge_slot *vocab_merge(const struct vocab *vocab, uint32_t left, uint32_t right);
/* From the model's vocab and merges and the added tokens, whose ids it enters. */
status vocab_build(struct vocab *out, const struct field *vocab, const struct field *merges,
                   const struct field *added);
void vocab_fini(struct vocab *vocab);

/* ---- added.c: tokens that are found in the text before the model sees it ---- */

struct added_token {
    const char *text; /* as searched for: normalized if the token says so */
    uint32_t bytes;
    uint32_t id;
    bool single_word, lstrip, rstrip;
};

struct added_set {
    struct added_token *tokens; /* sorted by text */
    uint32_t n;
    uint32_t first[257]; /* tokens that begin with byte b: [first[b], first[b + 1]) */
};

struct added_match {
    size_t begin, end;
    uint32_t id;
};

void added_set_sort(struct added_set *set);
void added_set_fini(struct added_set *set);
/* The next token in text at or after `from`, the longest of the leftmost; *found tells. */
status added_find(const struct added_set *set, const struct regex *word, struct slice_of_text text,
                  size_t from, struct added_match *out, bool *found);

/* ---- normalize.c ---- */

enum normalize_kind { NORMALIZE_PREPEND, NORMALIZE_REPLACE };

struct normalize_step {
    enum normalize_kind kind;
    char *pattern; /* REPLACE */
    char *content;
};

struct normalizer {
    struct normalize_step steps[TOKENIZER_MAX_STEPS];
    int n;
};

status normalizer_load(struct normalizer *out, const struct field *at);
void normalizer_fini(struct normalizer *normalizer);
/* out is replaced; `spare` is scratch. */
status normalize(const struct normalizer *normalizer, struct slice_of_text text,
                 struct text_buffer *out, struct text_buffer *spare);

/* ---- pretokenize.c ---- */

enum pretokenize_kind {
    PRETOKENIZE_PREPEND, /* content before each piece that does not begin with it */
    PRETOKENIZE_REPLACE, /* a space by content */
    PRETOKENIZE_SPLIT,
    PRETOKENIZE_BYTES, /* each byte by its printable character */
};

enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
};

struct pretokenize_step {
    enum pretokenize_kind kind;
    char *content;
    bool only_first; /* PREPEND: only where the whole text begins */
    struct regex *regex;
    enum split_behavior behavior;
    bool invert;
};

struct pretokenizer {
    struct pretokenize_step steps[TOKENIZER_MAX_STEPS];
    int n;
};

struct span {
    size_t begin, end;
};

/* Words: spans of one text. */
struct pieces {
    struct text_buffer text;
    struct span *spans;
    size_t n, capacity;
};

/* The scratch of one encoding call. */
struct pretokenize_run {
    struct regex_run *runs[TOKENIZER_MAX_STEPS];
    struct pieces pieces; /* the result */
    struct pieces other;
    struct pieces segments;
};

status pretokenizer_load(struct pretokenizer *out, const struct field *at);
void pretokenizer_fini(struct pretokenizer *pretokenizer);
status pretokenize_open(struct pretokenize_run *run, const struct pretokenizer *pretokenizer);
void pretokenize_close(struct pretokenize_run *run);
/* `first`: this text is the beginning of what the caller encodes. */
status pretokenize(const struct pretokenizer *pretokenizer, struct pretokenize_run *run,
                   struct slice_of_text text, bool first);

/* ---- bpe.c ---- */

struct bpe_model {
    bool byte_fallback;
    bool fuse_unknown;
    bool ignore_merges;
    uint32_t unknown_id;    /* NO_TOKEN: characters without a token vanish */
    uint32_t byte_ids[256]; /* of "<0x00>" to "<0xFF>", NO_TOKEN where missing */
};

struct bpe_symbol {
    uint32_t id;
    int32_t previous, next; /* -1: none */
    bool gone;
};

struct bpe_entry {
    uint64_t key; /* rank << 32 | position of the left symbol: the smallest merges first */
    uint32_t id;
};

/* Scratch of one encoding call, reused from word to word. */
struct bpe {
    struct bpe_symbol *symbols;
    size_t n_symbols, symbol_capacity;
    struct bpe_entry *heap;
    size_t n_heap, heap_capacity;
    uint64_t heap_moves; /* work done, for the tests */
};

void bpe_fini(struct bpe *bpe);
status bpe_encode(struct bpe *bpe, const struct bpe_model *model, const struct vocab *vocab,
                  struct slice_of_text word, struct id_list *out);

/* ---- decode.c ---- */

enum decode_kind {
    DECODE_REPLACE,
    DECODE_METASPACE,
    DECODE_STRIP,
    DECODE_BYTE_FALLBACK,
    DECODE_SPACES, /* no decoder: tokens with a space between them */
};

struct decode_step {
    enum decode_kind kind;
    char *pattern;
    char *content;
    bool drop_first;      /* METASPACE: in the first token the replacement is dropped */
    uint32_t start, stop; /* STRIP: how many at each end of a token */
};

/* Steps [0, n_token_steps) see token by token, the others the joined text. */
struct decoder {
    struct decode_step steps[TOKENIZER_MAX_STEPS];
    int n, n_token_steps;
    bool byte_level; /* tokens spell bytes with printable characters */
};

status decoder_load(struct decoder *out, const struct field *at);
void decoder_fini(struct decoder *decoder);

/* ---- the whole ---- */

struct template_side {
    uint32_t ids[TOKENIZER_MAX_TEMPLATE];
    uint32_t n;
};

struct tokenizer {
    struct vocab vocab;
    struct bpe_model model;
    struct normalizer normalizer;
    struct added_set raw;        /* searched before normalizing */
    struct added_set normalized; /* and after it */
    struct regex *word;          /* one character of a word; only with single_word tokens */
    struct pretokenizer pretokenizer;
    struct template_side before, after;
    struct decoder decoder;
};

#endif
