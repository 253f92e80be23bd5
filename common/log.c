#include "common/log.h"

#include "common/utf8.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *program_name = "winnow";
static enum log_level threshold = LOG_INFO;
static bool as_json;

void log_init(const char *program, enum log_level level, bool json)
{
    program_name = program;
    threshold = level;
    as_json = json;
}

/* ---- a line ---- */

struct line {
    char text[LOG_MAX_LINE];
    size_t bytes;
};

/* What does not fit whole is left out: false. */
static bool line_put(struct line *line, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool line_put(struct line *line, const char *format, ...)
{
    size_t room = sizeof(line->text) - 3 - line->bytes; /* for the end of an object and a line */
    va_list args;

    va_start(args, format);
    int n = vsnprintf(line->text + line->bytes, room, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= room) {
        return false;
    }
    line->bytes += (size_t)n;
    return true;
}

static void line_begin(struct line *line, enum log_level level)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char when[32];
    struct timespec now;
    struct tm utc;

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &utc);
    line->bytes = 0;
    line_put(line,
             as_json ? "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"program\":\"%s\""
                     : "%s.%03ldZ %s %s",
             when, now.tv_nsec / 1000000, names[level], program_name);
}

/* One write: lines of several threads and processes do not mix. */
static void line_end(struct line *line)
{
    if (as_json) {
        line->text[line->bytes++] = '}';
    }
    line->text[line->bytes++] = '\n';
    ssize_t written = write(STDERR_FILENO, line->text, line->bytes);
    (void)written; /* there is nowhere to report it to */
}

/* ---- text from outside ---- */

static bool is_control(uint32_t character)
{
    return character < 0x20 || (character >= 0x7f && character < 0xa0);
}

/* `out` has LOG_MAX_TEXT bytes.  `quoted`: quotes and backslashes are escaped, too. */
static void escape(char *out, const char *in, bool quoted)
{
    size_t left = strlen(in);
    size_t used = 0;

    while (left && used + 8 < LOG_MAX_TEXT) {
        size_t bytes = 1;
        uint32_t character = 0;
        bool broken = utf8_next(in, left, &bytes, &character) != UTF8_CHARACTER;
        if (broken || is_control(character)) {
            bytes = broken ? 1 : bytes;
            used += (size_t)snprintf(out + used, LOG_MAX_TEXT - used, "\\u%04x",
                                     broken ? (unsigned char)*in : character);
        } else if (quoted && (character == '"' || character == '\\')) {
            out[used++] = '\\';
            out[used++] = (char)character;
        } else {
            memcpy(out + used, in, bytes);
            used += bytes;
        }
        in += bytes;
        left -= bytes;
    }
    out[used] = '\0';
}

void log_write(enum log_level level, const char *format, ...)
{
    char text[LOG_MAX_TEXT];
    char safe[LOG_MAX_TEXT];
    struct line line;
    va_list args;

    if (level < threshold) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    escape(safe, text, as_json);
    line_begin(&line, level);
    line_put(&line, as_json ? ",\"message\":\"%s\"" : " %s", safe);
    line_end(&line);
}

/* False: it did not fit. */
static bool put_field(struct line *line, const struct log_field *field)
{
    const char *form = as_json ? ",\"%s\":" : " %s=";
    char safe[LOG_MAX_TEXT];
    size_t before = line->bytes;
    bool fits = line_put(line, form, field->key);

    switch (field->kind) {
    case LOG_TEXT:
        escape(safe, field->text, true);
        fits = fits && line_put(line, "\"%s\"", safe);
        break;
    case LOG_INTEGER:
        fits = fits && line_put(line, "%lld", field->integer);
        break;
    case LOG_NUMBER:
        /* JSON has no other numbers. */
        fits = fits && (isfinite(field->number) ? line_put(line, "%.3f", field->number)
                                                : line_put(line, "null"));
        break;
    }
    if (!fits) {
        line->bytes = before;
    }
    return fits;
}

void log_event(enum log_level level, const char *event, const struct log_field *fields, int n)
{
    struct line line;

    if (level < threshold) {
        return;
    }
    line_begin(&line, level);
    line_put(&line, as_json ? ",\"event\":\"%s\"" : " %s", event);
    for (int i = 0; i < n && put_field(&line, &fields[i]); i++) {
    }
    line_end(&line);
}
