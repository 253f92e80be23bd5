#include "coordinator/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

static status add_span(struct pieces *pieces, size_t begin, size_t end)
{
    void *array = pieces->spans;
    status st = text_grow(&array, &pieces->capacity, pieces->n + 1, sizeof(*pieces->spans));

    if (st) {
        return st;
    }
    pieces->spans = array;
    pieces->spans[pieces->n++] = (struct span){begin, end};
    return STATUS_OK;
}

static void pieces_clear(struct pieces *pieces)
{
    pieces->text.bytes = 0;
    pieces->n = 0;
}

static void pieces_fini(struct pieces *pieces)
{
    text_fini(&pieces->text);
    free(pieces->spans);
    *pieces = (struct pieces){0};
}

static struct slice_of_text piece(const struct pieces *pieces, size_t i)
{
    struct span span = pieces->spans[i];

    return (struct slice_of_text){pieces->text.data + span.begin, span.end - span.begin};
}

/* The matches of a piece and the gaps between them: odd segments are matches, even ones gaps,
 * which may be empty. */
static status find_segments(struct regex_run *run, struct slice_of_text text,
                            struct pieces *segments)
{
    size_t at = 0;
    size_t begin, end;
    status st = STATUS_OK;

    segments->n = 0;
    while (!st && at < text.bytes) {
        st = regex_next(run, text, at, &begin, &end);
        if (!st && end == 0) {
            return add_span(segments, at, text.bytes);
        }
        if (!st) {
            st = add_span(segments, at, begin);
        }
        if (!st) {
            st = add_span(segments, begin, end);
        }
        at = end;
    }
    return st;
}

/* Segments become pieces: a hit is a match, or with `invert` a gap. */
struct joiner {
    enum split_behavior behavior;
    bool any;          /* a piece is open */
    bool previous_hit; /* its last segment was a hit */
    struct span open;
};

static bool joins(const struct joiner *j, bool hit)
{
    if (!j->any) {
        return false;
    }
    switch (j->behavior) {
    case SPLIT_CONTIGUOUS:
        return hit == j->previous_hit;
    case SPLIT_MERGED_WITH_PREVIOUS:
        return hit && !j->previous_hit;
    case SPLIT_MERGED_WITH_NEXT: /* seen from behind: what follows joins the hit before it */
        return !hit && j->previous_hit;
    case SPLIT_ISOLATED:
    case SPLIT_REMOVED:
        break;
    }
    return false;
}

static status flush(struct joiner *j, struct pieces *out, size_t base)
{
    bool drop = j->behavior == SPLIT_REMOVED && j->previous_hit;

    if (!j->any || drop) {
        return STATUS_OK;
    }
    return add_span(out, base + j->open.begin, base + j->open.end);
}

static status split_piece(const struct pretokenize_step *step, const struct pieces *segments,
                          size_t base, struct pieces *out)
{
    struct joiner j = {.behavior = step->behavior};
    status st = STATUS_OK;

    for (size_t i = 0; !st && i < segments->n; i++) {
        struct span segment = segments->spans[i];
        bool hit = (i % 2 == 1) != step->invert;
        if (segment.begin == segment.end) {
            continue;
        }
        if (joins(&j, hit)) {
            j.open.end = segment.end;
        } else {
            st = flush(&j, out, base);
            j.open = segment;
        }
        j.any = true;
        j.previous_hit = hit;
    }
    return st ? st : flush(&j, out, base);
}

static status run_split(const struct pretokenize_step *step, struct regex_run *regex,
                        struct pretokenize_run *run)
{
    struct pieces *in = &run->pieces;
    struct pieces *out = &run->other;
    status st = STATUS_OK;

    out->n = 0;
    for (size_t i = 0; !st && i < in->n; i++) {
        st = find_segments(regex, piece(in, i), &run->segments);
        if (!st) {
            st = split_piece(step, &run->segments, in->spans[i].begin, out);
        }
    }
    /* The text stays; the spans are the new ones. */
    struct text_buffer text = in->text;
    in->text = out->text;
    out->text = text;
    return st;
}

static status append_bytes(struct text_buffer *out, struct slice_of_text text)
{
    status st = STATUS_OK;

    for (size_t i = 0; !st && i < text.bytes; i++) {
        char character[4];
        size_t n = utf8_put(character, byte_level_character((unsigned char)text.data[i]));
        st = text_append(out, character, n);
    }
    return st;
}

static status append_prefixed(struct text_buffer *out, struct slice_of_text text,
                              struct slice_of_text prefix, bool applies)
{
    status st = STATUS_OK;

    if (applies && !text_starts_with(text, prefix)) {
        st = text_append(out, prefix.data, prefix.bytes);
    }
    return st ? st : text_append(out, text.data, text.bytes);
}

/* Rewrites every piece; `first`: the first of them begins the caller's text. */
static status run_rewrite(const struct pretokenize_step *step, struct pretokenize_run *run,
                          bool first)
{
    struct pieces *in = &run->pieces;
    struct pieces *out = &run->other;
    status st = STATUS_OK;

    pieces_clear(out);
    for (size_t i = 0; !st && i < in->n; i++) {
        struct slice_of_text text = piece(in, i);
        size_t begin = out->text.bytes;
        if (step->kind == PRETOKENIZE_BYTES) {
            st = append_bytes(&out->text, text);
        } else if (step->kind == PRETOKENIZE_REPLACE) {
            st = text_append_replaced(&out->text, text, (struct slice_of_text){" ", 1},
                                      text_of_string(step->content));
        } else {
            bool applies = !step->only_first || (first && in->spans[i].begin == 0);
            st = append_prefixed(&out->text, text, text_of_string(step->content), applies);
        }
        if (!st) {
            st = add_span(out, begin, out->text.bytes);
        }
    }
    return st;
}

status pretokenize(const struct pretokenizer *pretokenizer, struct pretokenize_run *run,
                   struct slice_of_text text, bool first)
{
    pieces_clear(&run->pieces);
    status st = text_append(&run->pieces.text, text.data, text.bytes);
    if (!st && text.bytes) {
        st = add_span(&run->pieces, 0, text.bytes);
    }
    for (int i = 0; !st && i < pretokenizer->n; i++) {
        const struct pretokenize_step *step = &pretokenizer->steps[i];
        st = step->kind == PRETOKENIZE_SPLIT ? run_split(step, run->runs[i], run)
                                             : run_rewrite(step, run, first);
        struct pieces done = run->other;
        run->other = run->pieces;
        run->pieces = done;
    }
    return st;
}

status pretokenize_open(struct pretokenize_run *run, const struct pretokenizer *pretokenizer)
{
    status st = STATUS_OK;

    *run = (struct pretokenize_run){0};
    for (int i = 0; !st && i < pretokenizer->n; i++) {
        if (pretokenizer->steps[i].regex) {
            st = regex_run_open(&run->runs[i], pretokenizer->steps[i].regex);
        }
    }
    return st;
}

void pretokenize_close(struct pretokenize_run *run)
{
    for (int i = 0; i < TOKENIZER_MAX_STEPS; i++) {
        regex_run_close(run->runs[i]);
    }
    pieces_fini(&run->pieces);
    pieces_fini(&run->other);
    pieces_fini(&run->segments);
}
