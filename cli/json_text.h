/* json_text.h - JSON pieces that cJSON would not write exactly. */
#ifndef CLI_JSON_TEXT_H
#define CLI_JSON_TEXT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Valid UTF-8 as a JSON string with its quotes; a NUL in it is kept.  malloc'd; NULL: no
 * memory. */
char *json_text_quoted(const char *text, size_t bytes);

/* False: no memory. */
bool json_text_add(cJSON *object, const char *key, const char *text, size_t bytes);
/* Beyond 2^53 a double would round. */
bool json_text_add_whole(cJSON *object, const char *key, uint64_t value);

#endif
