#include "common/utf8.h"

#include <string.h>

/* What may follow a first byte: how many bytes, and the range of the first of them. */
struct lead {
    unsigned char follow, low, high;
};

static struct lead lead_of(unsigned char byte)
{
    if (byte >= 0xC2 && byte <= 0xDF) {
        return (struct lead){1, 0x80, 0xBF};
    }
    if (byte >= 0xE0 && byte <= 0xEF) {
        return (struct lead){2, byte == 0xE0 ? 0xA0 : 0x80, byte == 0xED ? 0x9F : 0xBF};
    }
    if (byte >= 0xF0 && byte <= 0xF4) {
        return (struct lead){3, byte == 0xF0 ? 0x90 : 0x80, byte == 0xF4 ? 0x8F : 0xBF};
    }
    return (struct lead){0, 0, 0};
}

enum utf8_kind utf8_next(const char *data, size_t n, size_t *bytes, uint32_t *character)
{
    const unsigned char *p = (const unsigned char *)data;
    struct lead lead = lead_of(p[0]);

    *bytes = 1;
    *character = p[0];
    if (p[0] < 0x80) {
        return UTF8_CHARACTER;
    }
    if (lead.follow == 0) {
        return UTF8_BROKEN;
    }
    *character &= 0x3Fu >> lead.follow;
    for (size_t i = 1; i <= lead.follow; i++) {
        if (i >= n) {
            *bytes = n;
            return UTF8_INCOMPLETE;
        }
        if (p[i] < (i == 1 ? lead.low : 0x80) || p[i] > (i == 1 ? lead.high : 0xBF)) {
            *bytes = i;
            return UTF8_BROKEN;
        }
        *character = *character << 6 | (p[i] & 0x3Fu);
    }
    *bytes = (size_t)lead.follow + 1;
    return UTF8_CHARACTER;
}

size_t utf8_length(char first)
{
    return (size_t)lead_of((unsigned char)first).follow + 1;
}

size_t utf8_put(char out[4], uint32_t character)
{
    if (character < 0x80) {
        out[0] = (char)character;
        return 1;
    }
    if (character < 0x800) {
        out[0] = (char)(0xC0 | character >> 6);
        out[1] = (char)(0x80 | (character & 0x3F));
        return 2;
    }
    if (character < 0x10000) {
        out[0] = (char)(0xE0 | character >> 12);
        out[1] = (char)(0x80 | (character >> 6 & 0x3F));
        out[2] = (char)(0x80 | (character & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | character >> 18);
    out[1] = (char)(0x80 | (character >> 12 & 0x3F));
    out[2] = (char)(0x80 | (character >> 6 & 0x3F));
    out[3] = (char)(0x80 | (character & 0x3F));
    return 4;
}

bool utf8_is_text(const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t length;
        uint32_t character;
        if (utf8_next(text + at, bytes - at, &length, &character) != UTF8_CHARACTER) {
            return false;
        }
        at += length;
    }
    return true;
}

bool utf8_is_valid(const char *text, size_t bytes)
{
    return !(bytes && memchr(text, 0, bytes)) && utf8_is_text(text, bytes);
}

bool utf8_is_space(uint32_t c)
{
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}
