/* utf8.h - characters in bytes: for the tokenizer, and for what goes to a terminal. */
#ifndef COMMON_UTF8_H
#define COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum utf8_kind {
    UTF8_CHARACTER,
    UTF8_BROKEN,     /* `bytes` of it cannot begin a character: the longest such prefix */
    UTF8_INCOMPLETE, /* all bytes given may begin a character that goes on */
};

/* Looks at the first bytes of data (n > 0): how many belong together, and the character. */
enum utf8_kind utf8_next(const char *data, size_t n, size_t *bytes, uint32_t *character);

/* The length of the valid character that begins with this byte. */
size_t utf8_length(char first);

/* Writes a character, 1 to 4 bytes. */
size_t utf8_put(char out[4], uint32_t character);

bool utf8_is_text(const char *text, size_t bytes);  /* valid UTF-8; NUL is allowed */
bool utf8_is_valid(const char *text, size_t bytes); /* valid UTF-8 without NUL */

bool utf8_is_space(uint32_t character); /* White_Space of Unicode */

#endif
