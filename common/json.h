/*
 * json.h - reading JSON that comes from outside, field by field.
 *
 * A reader stands for one object of one file.  Its functions return the value, or a harmless
 * default after a failure; the first failure is kept in `st` with a sentence that names file
 * and field, and later ones do not replace it.  So a caller reads everything and checks once.
 */
#ifndef COMMON_JSON_H
#define COMMON_JSON_H

#include "common/status.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

/* The whole text must be one object.  *out is freed with cJSON_Delete(). */
status json_parse(cJSON **out, const char *file, const char *text, size_t bytes);

struct json_reader {
    const cJSON *object;
    const char *file; /* for errors, like prefix: "rope_scaling." or "" */
    const char *prefix;
    status st;
};

/* The member, or NULL when it is absent or null. */
const cJSON *json_find(const struct json_reader *reader, const char *field);

/* Keeps the failure "FILE: PREFIX FIELD: ..." unless there is one already. */
void json_fail(struct json_reader *reader, status code, const char *field, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* A whole number min..max; the field must be there. */
int json_int(struct json_reader *reader, const char *field, int min, int max);
/* The same for an item that was found before. */
int json_item_int(struct json_reader *reader, const char *field, const cJSON *item, int min,
                  int max);
int json_int_or(struct json_reader *reader, const char *field, int min, int max, int otherwise);
/* A finite number, min <= x <= max. */
double json_number(struct json_reader *reader, const char *field, double min, double max);
double json_number_or(struct json_reader *reader, const char *field, double min, double max,
                      double otherwise);
bool json_bool_or(struct json_reader *reader, const char *field, bool otherwise);
/* Borrowed from the object; NULL when absent. */
const char *json_string_or_null(struct json_reader *reader, const char *field);

/* A whole number from 0 to 2^53 that a double holds exactly. */
bool json_get_size(const cJSON *item, uint64_t *out);

#endif
