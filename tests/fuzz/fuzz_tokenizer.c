/* Any bytes as tokenizer.json: refused, or good for encoding and decoding a little text. */
#include "coordinator/tokenizer/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] = "Hello <s> the  world's 1234\n\tab \xE6\x97\xA5\xF0\x9F\x9A\x80 aaaa";

static void check_stream(const struct tokenizer *tokenizer, const struct token_ids *ids,
                         const char *whole, size_t whole_bytes)
{
    struct token_stream *stream;
    const char *piece;
    size_t bytes;
    size_t at = 0;

    if (token_stream_open(&stream, tokenizer, false)) {
        return;
    }
    for (size_t i = 0; i <= ids->n; i++) {
        status st = i < ids->n ? token_stream_push(stream, ids->ids[i], &piece, &bytes)
                               : token_stream_finish(stream, &piece, &bytes);
        assert(st == STATUS_OK && bytes <= whole_bytes - at);
        assert(memcmp(whole + at, piece, bytes) == 0);
        at += bytes;
    }
    assert(at == whole_bytes);
    token_stream_close(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tokenizer *tokenizer;
    struct token_ids ids;
    char *decoded;
    size_t bytes;

    if (tokenizer_parse(&tokenizer, "input", (const char *)data, size)) {
        return 0;
    }
    if (tokenizer_encode(tokenizer, text, strlen(text), true, &ids) == STATUS_OK) {
        for (size_t i = 0; i < ids.n; i++) {
            assert(ids.ids[i] < tokenizer_size(tokenizer));
        }
        if (tokenizer_decode(tokenizer, ids.ids, ids.n, false, &decoded, &bytes) == STATUS_OK) {
            check_stream(tokenizer, &ids, decoded, bytes);
            free(decoded);
        }
        free(ids.ids);
    }
    tokenizer_free(tokenizer);
    return 0;
}
