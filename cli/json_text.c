#include "cli/json_text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

char *json_text_quoted(const char *text, size_t bytes)
{
    char *out = bytes < SIZE_MAX / 8 ? malloc(bytes * 6 + 3) : NULL;
    size_t used = 0;

    if (!out) {
        return NULL;
    }
    out[used++] = '"';
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F) {
            used += (size_t)snprintf(out + used, 7, "\\u%04x", c);
            continue;
        }
        if (c == '"' || c == '\\') {
            out[used++] = '\\';
        }
        out[used++] = (char)c;
    }
    out[used++] = '"';
    out[used] = '\0';
    return out;
}

bool json_text_add(cJSON *object, const char *key, const char *text, size_t bytes)
{
    char *raw = json_text_quoted(text, bytes);
    bool added = raw && cJSON_AddRawToObject(object, key, raw);

    free(raw);
    return added;
}

bool json_text_add_whole(cJSON *object, const char *key, uint64_t value)
{
    char raw[32];

    snprintf(raw, sizeof(raw), "%" PRIu64, value);
    return cJSON_AddRawToObject(object, key, raw) != NULL;
}
