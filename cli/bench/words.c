#include "cli/bench/words.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool words_next(const char **list, struct word *out)
{
    const char *text = *list + strspn(*list, ", ");

    out->text = text;
    out->bytes = strcspn(text, ", ");
    *list = text + out->bytes;
    return out->bytes > 0;
}

status word_number(const struct word *word, double min, double max, double *out)
{
    char text[64];
    char *end;

    if (word->bytes == 0 || word->bytes >= sizeof(text)) {
        return status_fail(STATUS_INVALID, "\"%.*s\" is not a number", (int)word->bytes,
                           word->text);
    }
    memcpy(text, word->text, word->bytes);
    text[word->bytes] = '\0';
    *out = strtod(text, &end);
    if (*end || isnan(*out)) {
        return status_fail(STATUS_INVALID, "\"%s\" is not a number", text);
    }
    if (!(*out >= min && *out <= max)) {
        return status_fail(STATUS_INVALID, "%s is not within %.15g..%.15g", text, min, max);
    }
    return STATUS_OK;
}
