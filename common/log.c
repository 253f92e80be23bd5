#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MAX_LINE 2048

static const char *program_name = "winnow";
static enum log_level threshold = LOG_INFO;
static bool as_json;

void log_init(const char *program, enum log_level level, bool json)
{
    program_name = program;
    threshold = level;
    as_json = json;
}

/* Control bytes, and in JSON quotes and backslashes, never reach a terminal or a parser raw. */
static void escape(char *out, size_t out_size, const char *in)
{
    size_t used = 0;

    for (; *in && used + 7 < out_size; in++) {
        unsigned char c = (unsigned char)*in;
        if (c < 0x20 || c == 0x7f) {
            used += (size_t)snprintf(out + used, out_size - used, "\\u%04x", c);
        } else if (as_json && (c == '"' || c == '\\')) {
            out[used++] = '\\';
            out[used++] = (char)c;
        } else {
            out[used++] = (char)c;
        }
    }
    out[used] = '\0';
}

void log_write(enum log_level level, const char *format, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char text[MAX_LINE];
    char safe[MAX_LINE + 64];
    char when[32];
    struct timespec now;
    struct tm utc;
    va_list args;

    if (level < threshold) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    escape(safe, sizeof(safe), text);
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &utc);
    const char *line = as_json ? "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"program\":\"%s\","
                                 "\"message\":\"%s\"}\n"
                               : "%s.%03ldZ %s %s %s\n";
    fprintf(stderr, line, when, now.tv_nsec / 1000000, names[level], program_name, safe);
}
