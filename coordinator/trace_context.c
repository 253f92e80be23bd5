#include "coordinator/trace_context.h"

#include <string.h>

/* Digits of the specification are lower case.  `some`: they must not all be zero. */
static bool is_hex(const char *text, size_t n, bool some)
{
    static const char digits[] = "0123456789abcdef";
    bool zero = true;

    for (size_t i = 0; i < n; i++) {
        if (!text[i] || !strchr(digits, text[i])) {
            return false;
        }
        zero = zero && text[i] == '0';
    }
    return !(some && zero);
}

/* version "-" trace-id "-" parent-id "-" flags; later versions may append "-" and more. */
static bool is_valid(const char *text)
{
    enum { TRACE = 3, PARENT = 36, FLAGS = 53, END = 55 };

    if (strnlen(text, END) < END || text[2] != '-' || text[PARENT - 1] != '-' ||
        text[FLAGS - 1] != '-' || !is_hex(text, 2, false) || strncmp(text, "ff", 2) == 0 ||
        !is_hex(text + TRACE, REQUEST_TRACE_ID, true) || !is_hex(text + PARENT, 16, true) ||
        !is_hex(text + FLAGS, 2, false)) {
        return false;
    }
    return text[END] == '\0' || (text[END] == '-' && strncmp(text, "00", 2) != 0);
}

bool trace_context_id(char out[REQUEST_TRACE_ID + 1], const char *traceparent)
{
    bool valid = traceparent && is_valid(traceparent);

    memset(out, 0, REQUEST_TRACE_ID + 1);
    if (valid) {
        memcpy(out, traceparent + 3, REQUEST_TRACE_ID);
    }
    return valid;
}
