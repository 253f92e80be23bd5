/*
 * tokenizer.h - text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * Byte-level BPE with regex pre-tokenizers (Llama 3, GPT-2 style, Mistral Tekken) and
 * sentencepiece-style BPE with byte fallback (Llama 2, Mistral).  What the file asks for and
 * this code does not do is refused by name when it is loaded.  Immutable once loaded: any
 * number of threads encode and decode with it at the same time.
 */
#ifndef COORDINATOR_TOKENIZER_TOKENIZER_H
#define COORDINATOR_TOKENIZER_TOKENIZER_H

#include "common/status.h"
#include "common/utf8.h" /* utf8_is_valid(), which callers check text with */

#include <stdbool.h>
#include <stdint.h>

struct tokenizer;

struct token_ids {
    uint32_t *ids; /* malloc'd; the caller frees it */
    size_t n;
};

status tokenizer_load(struct tokenizer **out, const char *path);
/* `what` names the text in errors. */
status tokenizer_parse(struct tokenizer **out, const char *what, const char *json, size_t bytes);
void tokenizer_free(struct tokenizer *tokenizer); /* NULL is fine */

uint32_t tokenizer_size(const struct tokenizer *tokenizer); /* largest id + 1 */
bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id);

/* Ids, ascending, of the special tokens, and of those whose text is punctuation and nothing else
 * once white space is stripped. */
status tokenizer_specials(const struct tokenizer *tokenizer, struct token_ids *out);
status tokenizer_punctuation(const struct tokenizer *tokenizer, struct token_ids *out);

/* Text must be valid UTF-8; NUL is a character like any other.  With add_special the template
 * (BOS, ...) is applied. */
status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                        bool add_special, struct token_ids *out);

/* *out is malloc'd and NUL-terminated; invalid byte sequences become U+FFFD. */
status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t n,
                        bool skip_special, char **out, size_t *out_bytes);

/* Decoding one id after another: the pieces joined are what tokenizer_decode() gives for all
 * ids at once; text is held back while a character is incomplete. */
struct token_stream;
status token_stream_open(struct token_stream **out, const struct tokenizer *tokenizer,
                         bool skip_special);
/* *out is borrowed until the next call on the stream. */
status token_stream_push(struct token_stream *stream, uint32_t id, const char **out,
                         size_t *out_bytes);
/* What was held back, as if no more ids follow. */
status token_stream_finish(struct token_stream *stream, const char **out, size_t *out_bytes);
void token_stream_close(struct token_stream *stream);

#endif
