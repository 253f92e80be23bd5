#include "coordinator/stop.h"

#include <stdlib.h>
#include <string.h>

void stop_text_init(struct stop_text *text)
{
    *text = (struct stop_text){.found = -1};
}

void stop_text_fini(struct stop_text *text)
{
    free(text->data);
    stop_text_init(text);
}

static status append(struct stop_text *text, const char *piece, size_t bytes)
{
    size_t wanted = text->bytes + bytes;

    if (wanted > text->capacity) {
        size_t capacity = wanted < 256 ? 512 : 2 * wanted;
        char *data = realloc(text->data, capacity);
        if (!data) {
            return status_fail(STATUS_EXHAUSTED, "out of memory for generated text");
        }
        text->data = data;
        text->capacity = capacity;
    }
    if (bytes) {
        memcpy(text->data + text->bytes, piece, bytes);
    }
    text->bytes = wanted;
    return STATUS_OK;
}

/* The longest string that ends exactly at `end`, or -1. */
static int ends_at(const struct stop_text *text, const struct stop_set *set, size_t end)
{
    int best = -1;

    for (int i = 0; i < set->n; i++) {
        const struct stop_string *stop = &set->strings[i];
        if (stop->bytes <= end &&
            !memcmp(text->data + end - stop->bytes, stop->text, stop->bytes) &&
            (best < 0 || stop->bytes > set->strings[best].bytes)) {
            best = i;
        }
    }
    return best;
}

/* Bytes at the end of the text that begin a stop string. */
static size_t undecided(const struct stop_text *text, const struct stop_set *set)
{
    size_t most = 0;

    for (int i = 0; i < set->n; i++) {
        const struct stop_string *stop = &set->strings[i];
        size_t n = text->bytes < stop->bytes ? text->bytes : stop->bytes - 1U;
        while (n > most && memcmp(text->data + text->bytes - n, stop->text, n) != 0) {
            n--;
        }
        most = n > most ? n : most;
    }
    return most;
}

static void release(struct stop_text *text, size_t bytes, const char **out, size_t *out_bytes)
{
    text->released = bytes;
    *out = text->data ? text->data : "";
    *out_bytes = bytes;
}

status stop_text_push(struct stop_text *text, const struct stop_set *set, bool watch,
                      const char *piece, size_t bytes, const char **out, size_t *out_bytes)
{
    size_t held = text->bytes - text->released;

    if (held && text->released) {
        memmove(text->data, text->data + text->released, held);
    }
    text->bytes = held;
    text->released = 0;
    status st = append(text, piece, bytes);
    if (st) {
        return st;
    }
    if (!set->n) {
        release(text, text->bytes, out, out_bytes);
        return STATUS_OK;
    }
    for (size_t end = held + 1; watch && end <= text->bytes; end++) {
        text->found = ends_at(text, set, end);
        if (text->found >= 0) {
            text->bytes = end - set->strings[text->found].bytes;
            release(text, text->bytes, out, out_bytes);
            return STATUS_OK;
        }
    }
    release(text, text->bytes - undecided(text, set), out, out_bytes);
    return STATUS_OK;
}

void stop_text_finish(struct stop_text *text, const char **out, size_t *out_bytes)
{
    *out = text->data ? text->data + text->released : "";
    *out_bytes = text->bytes - text->released;
    text->released = text->bytes;
}
