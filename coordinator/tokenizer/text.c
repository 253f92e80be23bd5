#include "coordinator/tokenizer/text.h"

#include <stdlib.h>
#include <string.h>

status text_grow(void **array, size_t *capacity, size_t need, size_t size)
{
    size_t target = *capacity ? *capacity : 64;

    if (need <= *capacity) {
        return STATUS_OK;
    }
    while (target < need) {
        if (target > SIZE_MAX / 2 / size) {
            return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
        }
        target *= 2;
    }
    void *bigger = realloc(*array, target * size);
    if (!bigger) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: out of memory");
    }
    *array = bigger;
    *capacity = target;
    return STATUS_OK;
}

status text_append(struct text_buffer *buffer, const char *data, size_t bytes)
{
    void *array = buffer->data;

    if (bytes > TEXT_MAX_BUFFER - buffer->bytes) {
        return status_fail(STATUS_EXHAUSTED, "tokenizer: a text grows beyond %d bytes",
                           TEXT_MAX_BUFFER);
    }
    status st = text_grow(&array, &buffer->capacity, buffer->bytes + bytes, 1);
    if (st) {
        return st;
    }
    buffer->data = array;
    if (bytes) {
        memcpy(buffer->data + buffer->bytes, data, bytes);
        buffer->bytes += bytes;
    }
    return STATUS_OK;
}

void text_fini(struct text_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct text_buffer){0};
}

struct slice_of_text text_of(const struct text_buffer *buffer)
{
    return (struct slice_of_text){buffer->data, buffer->bytes};
}

struct slice_of_text text_of_string(const char *string)
{
    return (struct slice_of_text){string, strlen(string)};
}

bool text_starts_with(struct slice_of_text text, struct slice_of_text prefix)
{
    return text.bytes >= prefix.bytes && memcmp(text.data, prefix.data, prefix.bytes) == 0;
}

status text_append_replaced(struct text_buffer *out, struct slice_of_text text,
                            struct slice_of_text pattern, struct slice_of_text content)
{
    size_t from = 0;

    while (from < text.bytes) {
        const char *hit = memmem(text.data + from, text.bytes - from, pattern.data, pattern.bytes);
        size_t until = hit ? (size_t)(hit - text.data) : text.bytes;
        status st = text_append(out, text.data + from, until - from);
        if (!st && hit) {
            st = text_append(out, content.data, content.bytes);
        }
        if (st) {
            return st;
        }
        from = hit ? until + pattern.bytes : until;
    }
    return STATUS_OK;
}

status id_list_add(struct id_list *list, uint32_t id)
{
    void *array = list->ids;
    status st = text_grow(&array, &list->capacity, list->n + 1, sizeof(*list->ids));

    if (st) {
        return st;
    }
    list->ids = array;
    list->ids[list->n++] = id;
    return STATUS_OK;
}

/* Bytes that print as themselves; the others take the characters from U+0100 on, in order. */
static bool prints(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

uint32_t byte_level_character(unsigned char byte)
{
    if (prints(byte)) {
        return byte;
    }
    if (byte <= 0x20) {
        return 0x100u + byte;
    }
    return byte == 0xAD ? 0x143u : 0x121u + byte - 0x7F;
}

int byte_level_byte(uint32_t character)
{
    if (character < 0x100) {
        return prints(character) ? (int)character : -1;
    }
    if (character <= 0x120) {
        return (int)character - 0x100;
    }
    if (character <= 0x142) {
        return (int)character - 0x121 + 0x7F;
    }
    return character == 0x143 ? 0xAD : -1;
}
