/*
 * log.h - one line per event on stderr: time, level, program, "module: event key=value ...".
 *
 * Nothing per token above debug level; silence is the normal state.  A line that holds text from
 * outside is written with log_event(), which quotes it: whatever the text is, it cannot look like
 * another key or another line.  In both forms control characters, those beyond ASCII too, are
 * escaped here, and so are bytes that are no UTF-8: none reaches a terminal or a parser raw.
 *
 * As JSON a line is one object; log_event()'s keys are members of it, log_write()'s whole sentence
 * is "message".
 */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include <stdbool.h>

enum log_limits {
    LOG_MAX_LINE = 4096, /* bytes; longer ones are cut at a key */
    LOG_MAX_TEXT = 1024, /* bytes of one text, escaped; longer ones are cut */
};

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Not thread-safe; called once before threads start.  `program` is borrowed for ever. */
void log_init(const char *program, enum log_level level, bool json);
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

enum log_kind { LOG_TEXT, LOG_INTEGER, LOG_NUMBER };

struct log_field {
    const char *key; /* a word */
    enum log_kind kind;
    const char *text;
    long long integer;
    double number;
};

/* `event` is "module: what happened", our own words. */
void log_event(enum log_level level, const char *event, const struct log_field *fields, int n);

#define LOG_FIELD_TEXT(name, value)                      \
    {                                                    \
        .key = (name), .kind = LOG_TEXT, .text = (value) \
    }
#define LOG_FIELD_INTEGER(name, value)                                    \
    {                                                                     \
        .key = (name), .kind = LOG_INTEGER, .integer = (long long)(value) \
    }
#define LOG_FIELD_NUMBER(name, value)                        \
    {                                                        \
        .key = (name), .kind = LOG_NUMBER, .number = (value) \
    }

#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

#endif
