/*
 * Decoding is streaming: tokenizer_decode() pushes all ids through the same steps.
 *
 * A token passes the token steps, one call deeper for each; then it is joined to the text,
 * which passes the text steps.  What a step must hold back until it knows more is in its
 * step_state: bytes of a character, a run of byte tokens, trailing characters to strip.
 */
#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

struct step_state {
    size_t seen;              /* tokens, or stripped characters */
    bool past_start;          /* STRIP of text: nothing more to strip at the start */
    size_t held;              /* STRIP of text: trailing characters held back */
    struct text_buffer bytes; /* BYTE_FALLBACK: the run of byte tokens */
    struct text_buffer work;  /* the step's output for the next one */
};

struct token_stream {
    const struct tokenizer *tokenizer;
    bool skip_special;
    struct step_state states[TOKENIZER_MAX_STEPS];
    struct text_buffer out;
    char partial[4]; /* byte-level: the beginning of a character */
    size_t n_partial;
};

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

static status text_step(struct token_stream *s, int i, struct slice_of_text text);

/* Emits n of the step's characters to the steps after it. */
static status emit_content(struct token_stream *s, int i, size_t n)
{
    const struct decode_step *step = &s->tokenizer->decoder.steps[i];
    status st = STATUS_OK;

    while (!st && n-- > 0) {
        st = text_step(s, i + 1, text_of_string(step->content));
    }
    return st;
}

/* STRIP of a text that comes in parts. */
static status strip_text(struct token_stream *s, int i, struct slice_of_text text)
{
    const struct decode_step *step = &s->tokenizer->decoder.steps[i];
    struct step_state *state = &s->states[i];
    struct slice_of_text content = text_of_string(step->content);
    status st = STATUS_OK;

    while (!st && text.bytes > 0) {
        size_t bytes = utf8_length(text.data[0]);
        struct slice_of_text character = {text.data, bytes};
        bool hit = text_starts_with(text, content);
        if (hit && !state->past_start && state->seen < step->start) {
            state->seen++;
        } else if (hit && state->held < step->stop) {
            state->past_start = true;
            state->held++;
        } else if (hit) {
            state->past_start = true;
            st = emit_content(s, i, 1); /* the oldest of those held back */
        } else {
            state->past_start = true;
            st = emit_content(s, i, state->held);
            state->held = 0;
            if (!st) {
                st = text_step(s, i + 1, character);
            }
        }
        text.data += bytes;
        text.bytes -= bytes;
    }
    return st;
}

/* Text steps are all STRIP; after the last the text is the caller's. */
static status text_step(struct token_stream *s, int i, struct slice_of_text text)
{
    if (i < s->tokenizer->decoder.n) {
        return strip_text(s, i, text);
    }
    return text_append(&s->out, text.data, text.bytes);
}

/* Bytes become characters; what is no character becomes U+FFFD, as much at a time as could
 * have begun one.  `last`: nothing follows. */
static status join_bytes(struct token_stream *s, struct slice_of_text bytes, bool last)
{
    int first = s->tokenizer->decoder.n_token_steps;
    status st = STATUS_OK;

    while (!st && (bytes.bytes > 0 || s->n_partial > 0)) {
        while (s->n_partial < sizeof(s->partial) && bytes.bytes > 0) {
            s->partial[s->n_partial++] = *bytes.data++;
            bytes.bytes--;
        }
        size_t n;
        uint32_t character;
        enum utf8_kind kind = utf8_next(s->partial, s->n_partial, &n, &character);
        if (kind == UTF8_INCOMPLETE && !last) {
            return STATUS_OK; /* all that was given is held back */
        }
        struct slice_of_text good = {s->partial, n};
        st = text_step(s, first, kind == UTF8_CHARACTER ? good : text_of_string(replacement));
        s->n_partial -= n;
        memmove(s->partial, s->partial + n, s->n_partial);
    }
    return st;
}

/* A byte-level token spells bytes; one that does not is taken as it is. */
static status join_byte_level(struct token_stream *s, struct slice_of_text token)
{
    struct text_buffer *work = &s->states[TOKENIZER_MAX_STEPS - 1].work;
    status st = STATUS_OK;

    work->bytes = 0;
    for (size_t at = 0; !st && at < token.bytes;) {
        size_t n;
        uint32_t character;
        utf8_next(token.data + at, token.bytes - at, &n, &character);
        int byte = byte_level_byte(character);
        if (byte < 0) {
            return join_bytes(s, token, false);
        }
        char spelled = (char)byte;
        st = text_append(work, &spelled, 1);
        at += n;
    }
    return st ? st : join_bytes(s, text_of(work), false);
}

static status token_step(struct token_stream *s, int i, struct slice_of_text token);

/* The value of "<0xE4>", else -1. */
static int byte_token(struct slice_of_text token)
{
    static const char digits[] = "0123456789ABCDEF0123456789abcdef";

    if (token.bytes != 6 || memcmp(token.data, "<0x", 3) != 0 || token.data[5] != '>') {
        return -1;
    }
    const char *high = memchr(digits, token.data[3], sizeof(digits) - 1);
    const char *low = memchr(digits, token.data[4], sizeof(digits) - 1);
    return high && low ? (int)((high - digits) % 16 * 16 + (low - digits) % 16) : -1;
}

/* A run of byte tokens is text, or, if it is not valid as a whole, one U+FFFD a byte. */
static status end_run(struct token_stream *s, int i)
{
    struct text_buffer *bytes = &s->states[i].bytes;
    size_t n = bytes->bytes;
    status st = STATUS_OK;

    if (n == 0) {
        return STATUS_OK;
    }
    bytes->bytes = 0;
    struct slice_of_text run = {bytes->data, n};
    if (utf8_is_text(run.data, run.bytes)) {
        return token_step(s, i + 1, run);
    }
    for (size_t k = 0; !st && k < n; k++) {
        st = token_step(s, i + 1, text_of_string(replacement));
    }
    return st;
}

static status byte_fallback(struct token_stream *s, int i, struct slice_of_text token)
{
    int byte = byte_token(token);

    if (byte >= 0) {
        char raw = (char)byte;
        return text_append(&s->states[i].bytes, &raw, 1);
    }
    status st = end_run(s, i);
    return st ? st : token_step(s, i + 1, token);
}

static struct slice_of_text strip_token(const struct decode_step *step, struct slice_of_text token)
{
    struct slice_of_text content = text_of_string(step->content);

    for (uint32_t k = 0; k < step->start && text_starts_with(token, content); k++) {
        token.data += content.bytes;
        token.bytes -= content.bytes;
    }
    for (uint32_t k = 0; k < step->stop && token.bytes >= content.bytes; k++) {
        size_t before = token.bytes - content.bytes;
        if (memcmp(token.data + before, content.data, content.bytes) != 0) {
            break;
        }
        token.bytes = before;
    }
    return token;
}

static status token_step(struct token_stream *s, int i, struct slice_of_text token)
{
    const struct decoder *decoder = &s->tokenizer->decoder;
    const struct decode_step *step = &decoder->steps[i];
    struct step_state *state = &s->states[i];
    status st = STATUS_OK;

    if (i == decoder->n_token_steps) {
        return decoder->byte_level ? join_byte_level(s, token) : text_step(s, i, token);
    }
    if (step->kind == DECODE_BYTE_FALLBACK) {
        return byte_fallback(s, i, token);
    }
    if (step->kind == DECODE_STRIP) {
        return token_step(s, i + 1, strip_token(step, token));
    }
    bool first = state->seen++ == 0;
    state->work.bytes = 0;
    if (step->kind == DECODE_SPACES) {
        st = first ? STATUS_OK : text_append(&state->work, " ", 1);
        if (!st) {
            st = text_append(&state->work, token.data, token.bytes);
        }
    } else {
        bool drop = step->kind == DECODE_METASPACE && step->drop_first && first;
        st = text_append_replaced(&state->work, token, text_of_string(step->pattern),
                                  text_of_string(drop ? "" : step->content));
    }
    return st ? st : token_step(s, i + 1, text_of(&state->work));
}

static status feed(struct token_stream *s, uint32_t id)
{
    const struct vocab *vocab = &s->tokenizer->vocab;

    /* A model may have more rows than its tokenizer has tokens: those have no text. */
    if (id >= vocab->n_entries || !vocab->entries[id].text) {
        return STATUS_OK;
    }
    const struct token_entry *entry = &vocab->entries[id];
    if (s->skip_special && entry->special) {
        return STATUS_OK;
    }
    return token_step(s, 0, (struct slice_of_text){entry->text, entry->bytes});
}

static status finish(struct token_stream *s)
{
    const struct decoder *decoder = &s->tokenizer->decoder;
    status st = STATUS_OK;

    for (int i = 0; !st && i < decoder->n_token_steps; i++) {
        st = end_run(s, i);
    }
    if (!st) {
        st = join_bytes(s, (struct slice_of_text){"", 0}, true);
    }
    return st;
}

status token_stream_open(struct token_stream **out, const struct tokenizer *tokenizer,
                         bool skip_special)
{
    struct token_stream *stream = calloc(1, sizeof(*stream));

    if (!stream) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    stream->tokenizer = tokenizer;
    stream->skip_special = skip_special;
    *out = stream;
    return STATUS_OK;
}

static void fini(struct token_stream *stream)
{
    for (int i = 0; i < TOKENIZER_MAX_STEPS; i++) {
        text_fini(&stream->states[i].bytes);
        text_fini(&stream->states[i].work);
    }
    text_fini(&stream->out);
}

void token_stream_close(struct token_stream *stream)
{
    if (stream) {
        fini(stream);
        free(stream);
    }
}

static status give(struct token_stream *stream, status st, const char **out, size_t *out_bytes)
{
    *out = stream->out.bytes ? stream->out.data : "";
    *out_bytes = stream->out.bytes;
    return st;
}

status token_stream_push(struct token_stream *stream, uint32_t id, const char **out,
                         size_t *out_bytes)
{
    stream->out.bytes = 0;
    return give(stream, feed(stream, id), out, out_bytes);
}

status token_stream_finish(struct token_stream *stream, const char **out, size_t *out_bytes)
{
    stream->out.bytes = 0;
    return give(stream, finish(stream), out, out_bytes);
}

status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, size_t n,
                        bool skip_special, char **out, size_t *out_bytes)
{
    struct token_stream stream = {.tokenizer = tokenizer, .skip_special = skip_special};
    status st = STATUS_OK;

    for (size_t i = 0; !st && i < n; i++) {
        st = feed(&stream, ids[i]);
    }
    if (!st) {
        st = finish(&stream);
    }
    if (!st) {
        st = text_append(&stream.out, "", 1); /* the NUL */
    }
    if (!st) {
        *out = stream.out.data; /* moves */
        *out_bytes = stream.out.bytes - 1;
        stream.out = (struct text_buffer){0};
    }
    fini(&stream);
    return st;
}
