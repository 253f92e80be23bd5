#include "cli/input.h"

#include "common/utf8.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status append(struct input_text *text, size_t *capacity, const char *data, size_t bytes)
{
    if (bytes > INPUT_MAX_BYTES - text->bytes) {
        return status_fail(STATUS_INVALID, "the input has more than %d bytes", INPUT_MAX_BYTES);
    }
    size_t need = text->bytes + bytes + 1;
    if (need > *capacity) {
        size_t target = need > *capacity * 2 ? need : *capacity * 2;
        char *bigger = realloc(text->data, target);
        if (!bigger) {
            return status_fail(STATUS_EXHAUSTED, "out of memory for the input");
        }
        text->data = bigger;
        *capacity = target;
    }
    assert(text->data); /* need was at least 1 */
    memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
    return STATUS_OK;
}

static status read_stream(struct input_text *text, FILE *stream, const char *name)
{
    size_t capacity = 0;
    size_t n;
    char block[1 << 14];
    status st = append(text, &capacity, "", 0);

    while (!st && (n = fread(block, 1, sizeof(block), stream)) > 0) {
        st = append(text, &capacity, block, n);
    }
    if (!st && ferror(stream)) {
        st = status_fail(STATUS_INTERNAL, "%s: %s", name, strerror(errno));
    }
    return st;
}

status input_read(struct input_text *out, const char *path)
{
    bool is_stdin = strcmp(path, "-") == 0;
    const char *name = is_stdin ? "stdin" : path;
    struct input_text text = {0};
    FILE *stream = is_stdin ? stdin : fopen(path, "re");

    if (!stream) {
        return status_fail(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_PERMISSION, "%s: %s", path,
                           strerror(errno));
    }
    status st = read_stream(&text, stream, name);
    if (!is_stdin) {
        fclose(stream);
    }
    if (!st && !utf8_is_valid(text.data, text.bytes)) {
        st = status_fail(STATUS_INVALID, "%s: not UTF-8 text", name);
    }
    if (st) {
        free(text.data);
        return st;
    }
    *out = text;
    return STATUS_OK;
}

/* What makes one blank line between a document and what follows. */
static const char *gap_after(const struct input_text *text)
{
    const char *end = text->data + text->bytes;

    if (text->bytes == 0 || (text->bytes >= 2 && memcmp(end - 2, "\n\n", 2) == 0)) {
        return "";
    }
    return end[-1] == '\n' ? "\n" : "\n\n";
}

status input_prompt(struct input_text *out, const char *path, const char *prompt)
{
    struct input_text text = {0};
    size_t capacity = 0;
    status st = path ? input_read(&text, path) : STATUS_OK;

    if (!st && prompt && !utf8_is_valid(prompt, strlen(prompt))) {
        st = status_fail(STATUS_INVALID, "--prompt: not UTF-8 text");
    }
    if (!st && prompt && text.data) {
        const char *gap = gap_after(&text);
        st = append(&text, &capacity, gap, strlen(gap));
    }
    if (!st && prompt) {
        st = append(&text, &capacity, prompt, strlen(prompt));
    }
    if (st) {
        free(text.data);
        return st;
    }
    *out = text;
    return STATUS_OK;
}

status input_ids_parse(struct input_ids *out, const char *what, const char *text)
{
    size_t capacity = 0;

    for (text += strspn(text, " \t\r\n,[]"); *text; text += strspn(text, " \t\r\n,[]")) {
        char *end;
        errno = 0;
        unsigned long long id = strtoull(text, &end, 10);
        bool number = *text >= '0' && *text <= '9' && strspn(end, " \t\r\n,[]") + !*end > 0;
        if (!number || errno || id > UINT32_MAX) {
            return status_fail(STATUS_INVALID, "%s: \"%.20s\" is not a token id", what, text);
        }
        if (out->n == INPUT_MAX_IDS) {
            return status_fail(STATUS_INVALID, "%s: more than %d token ids", what, INPUT_MAX_IDS);
        }
        if (out->n == capacity || !out->ids) {
            capacity = out->n < 32 ? 64 : out->n * 2;
            uint32_t *bigger = realloc(out->ids, capacity * sizeof(*bigger));
            if (!bigger) {
                return status_fail(STATUS_EXHAUSTED, "out of memory for token ids");
            }
            out->ids = bigger;
        }
        out->ids[out->n++] = (uint32_t)id;
        text = end;
    }
    return STATUS_OK;
}

status input_ids_read(struct input_ids *out, const char *path)
{
    struct input_text text = {0};
    status st = input_read(&text, path);

    if (!st) {
        assert(text.data);
        st = input_ids_parse(out, path, text.data);
        free(text.data);
    }
    return st;
}
