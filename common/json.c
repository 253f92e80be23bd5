#include "common/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\0';
}

status json_parse(cJSON **out, const char *file, const char *text, size_t bytes)
{
    const char *end = text;
    cJSON *json = cJSON_ParseWithLengthOpts(text, bytes, &end, false);

    if (!json) {
        size_t at = end >= text && end <= text + bytes ? (size_t)(end - text) : 0;
        return status_fail(STATUS_INVALID, "%s: not valid JSON at byte %zu", file, at);
    }
    while (end < text + bytes && is_space(*end)) {
        end++;
    }
    status st = STATUS_OK;
    if (end != text + bytes) {
        st = status_fail(STATUS_INVALID, "%s: not valid JSON at byte %zu: text after the object",
                         file, (size_t)(end - text));
    } else if (!cJSON_IsObject(json)) {
        st = status_fail(STATUS_INVALID, "%s: not a JSON object", file);
    }
    if (st) {
        cJSON_Delete(json);
        return st;
    }
    *out = json;
    return STATUS_OK;
}

const cJSON *json_find(const struct json_reader *reader, const char *field)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(reader->object, field);

    return cJSON_IsNull(item) ? NULL : item;
}

void json_fail(struct json_reader *reader, status code, const char *field, const char *format, ...)
{
    char text[256];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (reader->st) {
        return;
    }
    reader->st = status_fail(code, "%s: %s%s: %s", reader->file, reader->prefix, field, text);
}

int json_item_int(struct json_reader *reader, const char *field, const cJSON *item, int min,
                  int max)
{
    if (!cJSON_IsNumber(item)) {
        json_fail(reader, STATUS_INVALID, field, "%s", item ? "not a number" : "missing");
        return min;
    }
    double value = item->valuedouble;
    if (!(value >= min && value <= max) || value != floor(value)) {
        json_fail(reader, STATUS_INVALID, field, "%.17g is not a whole number from %d to %d", value,
                  min, max);
        return min;
    }
    return (int)value;
}

int json_int(struct json_reader *reader, const char *field, int min, int max)
{
    return json_item_int(reader, field, json_find(reader, field), min, max);
}

int json_int_or(struct json_reader *reader, const char *field, int min, int max, int otherwise)
{
    const cJSON *item = json_find(reader, field);

    return item ? json_item_int(reader, field, item, min, max) : otherwise;
}

double json_number(struct json_reader *reader, const char *field, double min, double max)
{
    const cJSON *item = json_find(reader, field);

    if (!cJSON_IsNumber(item)) {
        json_fail(reader, STATUS_INVALID, field, "%s", item ? "not a number" : "missing");
        return min;
    }
    double value = item->valuedouble;
    if (!(value >= min && value <= max)) {
        json_fail(reader, STATUS_INVALID, field, "%.9g is not between %.9g and %.9g", value, min,
                  max);
        return min;
    }
    return value;
}

double json_number_or(struct json_reader *reader, const char *field, double min, double max,
                      double otherwise)
{
    return json_find(reader, field) ? json_number(reader, field, min, max) : otherwise;
}

bool json_bool_or(struct json_reader *reader, const char *field, bool otherwise)
{
    const cJSON *item = json_find(reader, field);

    if (!item) {
        return otherwise;
    }
    if (!cJSON_IsBool(item)) {
        json_fail(reader, STATUS_INVALID, field, "not true or false");
        return otherwise;
    }
    return cJSON_IsTrue(item);
}

const char *json_string_or_null(struct json_reader *reader, const char *field)
{
    const cJSON *item = json_find(reader, field);

    if (item && !cJSON_IsString(item)) {
        json_fail(reader, STATUS_INVALID, field, "not a string");
        return NULL;
    }
    return item ? item->valuestring : NULL;
}

bool json_get_size(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) ||
        item->valuedouble > 9007199254740992.0 || item->valuedouble != floor(item->valuedouble)) {
        return false;
    }
    *out = (uint64_t)item->valuedouble;
    return true;
}
