#include "coordinator/tokenizer/field.h"

#include "coordinator/tokenizer/tokenizer.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum field_limits {
    FIELD_MAX_FIELDS = 64, /* of an object that is read field by field */
    FIELD_MAX_PATH = 160,  /* bytes of a path in an error */
    FIELD_MAX_KEY = 40,    /* bytes of one key in it */
};

static const char *const type_names[] = {
    [FIELD_OBJECT] = "an object", [FIELD_ARRAY] = "a list",       [FIELD_STRING] = "a string",
    [FIELD_NUMBER] = "a number",  [FIELD_BOOL] = "true or false",
};

/* "\u0000" would end a string early. */
static const char *find_escaped_nul(const char *text, size_t bytes)
{
    for (size_t i = 0; i + 6 <= bytes; i++) {
        if (text[i] != '\\') {
            continue;
        }
        if (memcmp(text + i, "\\u0000", 6) == 0) {
            return text + i;
        }
        i++; /* the character after a backslash begins nothing */
    }
    return NULL;
}

status field_parse(struct cJSON **out, const char *what, const char *text, size_t bytes)
{
    const char *end = NULL;

    if (!utf8_is_valid(text, bytes)) {
        return status_fail(STATUS_INVALID, "%s: not valid UTF-8 text", what);
    }
    const char *nul = find_escaped_nul(text, bytes);
    if (nul) {
        return status_fail(STATUS_INVALID, "%s: a \\u0000 at byte %zu", what, (size_t)(nul - text));
    }
    *out = cJSON_ParseWithLengthOpts(text, bytes, &end, 0);
    if (!*out) {
        size_t at = end && end >= text ? (size_t)(end - text) : 0;
        return status_fail(STATUS_INVALID, "%s: not JSON at byte %zu of %zu", what, at, bytes);
    }
    while (end < text + bytes && strchr(" \t\r\n", *end)) {
        end++;
    }
    if (end < text + bytes) {
        field_free(*out);
        *out = NULL;
        return status_fail(STATUS_INVALID, "%s: more text after the JSON value, at byte %zu", what,
                           (size_t)(end - text));
    }
    return STATUS_OK;
}

void field_free(struct cJSON *root)
{
    cJSON_Delete(root);
}

/* Paths come from the file: control bytes never reach a terminal raw. */
static void append_key(char *path, size_t size, const char *key)
{
    size_t used = strlen(path);

    if (used + 1 < size && used > 0) {
        path[used++] = '.';
    }
    for (size_t i = 0; key[i] && i < FIELD_MAX_KEY && used + 1 < size; i++) {
        path[used++] = (unsigned char)key[i] < 0x20 || key[i] == 0x7f ? '?' : key[i];
    }
    path[used] = '\0';
}

static void path_of(char *path, size_t size, const struct field *at)
{
    const struct field *chain[16];
    int n = 0;

    for (; at->parent && n < 16; at = at->parent) {
        chain[n++] = at;
    }
    path[0] = '\0';
    while (n-- > 0) {
        if (chain[n]->name) {
            append_key(path, size, chain[n]->name);
        } else {
            size_t used = strlen(path);
            snprintf(path + used, size - used, "[%zu]", chain[n]->index);
        }
    }
}

status field_fail(const struct field *at, const char *format, ...)
{
    char path[FIELD_MAX_PATH];
    char text[256];
    const struct field *root = at;
    va_list args;

    while (root->parent) {
        root = root->parent;
    }
    path_of(path, sizeof(path), at);
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return status_fail(STATUS_INVALID, "%s: %s%s%s", root->name, path, path[0] ? ": " : "", text);
}

bool field_is(const struct field *at, enum field_type type)
{
    const struct cJSON *item = at->item;

    switch (type) {
    case FIELD_OBJECT:
        return cJSON_IsObject(item);
    case FIELD_ARRAY:
        return cJSON_IsArray(item);
    case FIELD_STRING:
        return cJSON_IsString(item);
    case FIELD_NUMBER:
        return cJSON_IsNumber(item);
    case FIELD_BOOL:
        return cJSON_IsBool(item);
    }
    return false;
}

status field_expect(const struct field *at, enum field_type type)
{
    return field_is(at, type) ? STATUS_OK : field_fail(at, "is not %s", type_names[type]);
}

status field_find(struct field *out, const struct field *object, const char *key,
                  enum field_type type)
{
    const struct cJSON *item = cJSON_GetObjectItemCaseSensitive(object->item, key);

    *out = (struct field){object, key, 0, cJSON_IsNull(item) ? NULL : item};
    return out->item ? field_expect(out, type) : STATUS_OK;
}

status field_get(struct field *out, const struct field *object, const char *key,
                 enum field_type type)
{
    status st = field_find(out, object, key, type);

    if (!st && !out->item) {
        st = field_fail(out, "is missing");
    }
    return st;
}

status field_check_keys(const struct field *object)
{
    int n = 0;

    for (const struct cJSON *a = object->item->child; a; a = a->next) {
        if (++n > FIELD_MAX_FIELDS) {
            return field_fail(object, "has more than %d fields", FIELD_MAX_FIELDS);
        }
        for (const struct cJSON *b = object->item->child; b != a; b = b->next) {
            if (strcmp(a->string, b->string) == 0) {
                struct field at = {object, a->string, 0, a};
                return field_fail(&at, "is there twice");
            }
        }
    }
    return STATUS_OK;
}

bool field_next(struct field *out, const struct field *parent)
{
    const struct cJSON *next = out->item ? out->item->next : parent->item->child;
    size_t index = out->item ? out->index + 1 : 0;

    *out = (struct field){parent, next ? next->string : NULL, index, next};
    return next != NULL;
}

const char *field_string(const struct field *at)
{
    assert(at->item);
    return at->item->valuestring;
}

bool field_bool(const struct field *at, bool absent)
{
    return at->item ? cJSON_IsTrue(at->item) : absent;
}

status field_index(uint32_t *out, const struct field *at, uint32_t limit)
{
    status st = field_expect(at, FIELD_NUMBER);

    if (st) {
        return st;
    }
    assert(at->item);
    double value = at->item->valuedouble;
    if (!(value >= 0) || value >= limit || value != floor(value)) {
        return field_fail(at, "%g is not a whole number below %u", value, limit);
    }
    *out = (uint32_t)value;
    return STATUS_OK;
}

status field_get_string(const char **out, const struct field *object, const char *key)
{
    struct field at;
    status st = field_get(&at, object, key, FIELD_STRING);

    if (!st) {
        *out = field_string(&at);
    }
    return st;
}

status field_get_bool(bool *out, const struct field *object, const char *key)
{
    struct field at;
    status st = field_get(&at, object, key, FIELD_BOOL);

    if (!st) {
        *out = field_bool(&at, false);
    }
    return st;
}

status field_get_index(uint32_t *out, const struct field *object, const char *key, uint32_t limit)
{
    struct field at;
    status st = field_get(&at, object, key, FIELD_NUMBER);

    return st ? st : field_index(out, &at, limit);
}
