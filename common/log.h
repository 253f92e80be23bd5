/*
 * log.h - one line per event on stderr: time, level, "module: event key=value ...".
 *
 * Nothing per token above debug level; silence is the normal state.  Values that hold
 * outside data are printed by the caller with "%s": control bytes are escaped here.
 */
#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Not thread-safe; called once before threads start.  `program` is borrowed for ever. */
void log_init(const char *program, enum log_level level, bool json);
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

#endif
