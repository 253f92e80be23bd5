/*
 * field.h - reading fields of a parsed JSON text, with errors that name text and field.
 *
 * A field is a value and the way to it, a chain on the stack: the path is put together
 * only when something is wrong.
 */
#ifndef COORDINATOR_TOKENIZER_FIELD_H
#define COORDINATOR_TOKENIZER_FIELD_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

struct field {
    const struct field *parent; /* NULL: the root */
    const char *name;           /* the text's name for the root, else the key */
    size_t index;               /* of an array element: name is NULL */
    const struct cJSON *item;   /* NULL: a field that is absent or null */
};

enum field_type { FIELD_OBJECT, FIELD_ARRAY, FIELD_STRING, FIELD_NUMBER, FIELD_BOOL };

/* Parses UTF-8 text without NUL, raw or escaped; *out is freed with field_free(). */
status field_parse(struct cJSON **out, const char *what, const char *text, size_t bytes);
void field_free(struct cJSON *root);

/* STATUS_INVALID: "tokenizer.json: model.vocab: " and the sentence. */
status field_fail(const struct field *at, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The field of an object, of this type.  field_find(): absent or null gives out->item NULL. */
status field_get(struct field *out, const struct field *object, const char *key,
                 enum field_type type);
status field_find(struct field *out, const struct field *object, const char *key,
                  enum field_type type);
bool field_is(const struct field *at, enum field_type type);
status field_expect(const struct field *at, enum field_type type);
/* Every key of the object is there once; for objects of a few fields. */
status field_check_keys(const struct field *object);

/* Elements of an array or members of an object, in order: begins with out->item NULL. */
bool field_next(struct field *out, const struct field *parent);

const char *field_string(const struct field *at); /* of a FIELD_STRING */
bool field_bool(const struct field *at, bool absent);
/* A whole number in [0, limit). */
status field_index(uint32_t *out, const struct field *at, uint32_t limit);
/* A required field of a kind; strings are borrowed from the parsed text. */
status field_get_string(const char **out, const struct field *object, const char *key);
status field_get_bool(bool *out, const struct field *object, const char *key);
status field_get_index(uint32_t *out, const struct field *object, const char *key, uint32_t limit);

#endif
