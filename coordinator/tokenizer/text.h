/*
 * text.h - growing buffers, and the characters that byte-level vocabularies write bytes with.
 *
 * Text is bytes and a length, never NUL-terminated, and valid UTF-8 unless said otherwise.
 */
#ifndef COORDINATOR_TOKENIZER_TEXT_H
#define COORDINATOR_TOKENIZER_TEXT_H

#include "common/status.h"
#include "common/utf8.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TEXT_MAX_BUFFER = 1 << 30 }; /* bytes: positions fit an int32_t */

struct slice_of_text {
    const char *data;
    size_t bytes;
};

struct text_buffer {
    char *data;
    size_t bytes, capacity;
};

status text_append(struct text_buffer *buffer, const char *data, size_t bytes);
void text_fini(struct text_buffer *buffer);
struct slice_of_text text_of(const struct text_buffer *buffer);
struct slice_of_text text_of_string(const char *string);

/* Appends text with every `pattern` replaced by `content`. */
status text_append_replaced(struct text_buffer *out, struct slice_of_text text,
                            struct slice_of_text pattern, struct slice_of_text content);

struct id_list {
    uint32_t *ids;
    size_t n, capacity;
};

status id_list_add(struct id_list *list, uint32_t id);

/* Grows an array to hold `need` elements of `size` bytes; capacity doubles. */
status text_grow(void **array, size_t *capacity, size_t need, size_t size);

bool text_starts_with(struct slice_of_text text, struct slice_of_text prefix);

/* A byte's printable character in byte-level vocabularies, and back; -1: not one of them. */
uint32_t byte_level_character(unsigned char byte);
int byte_level_byte(uint32_t character);

#endif
