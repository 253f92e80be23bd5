/*
 * print.h - the only place that writes to stdout and stderr.
 *
 * Text from a server or a file may hold control characters: on a terminal, and in every line
 * on stderr, they are shown and not obeyed.
 */
#ifndef CLI_PRINT_H
#define CLI_PRINT_H

#include "common/status.h"

#include <stdbool.h>
#include <stdint.h>

/* Our own words, to stdout and to stderr. */
void print_out(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Somebody else's text: made harmless if stdout is a terminal, else as it is.  A character may
 * not be split over two calls. */
void print_text(const char *text, size_t bytes);

/* "winnow generate: NOT_FOUND: sentence", harmless and on one line. */
void print_failure(const char *program, status code);
/* The same for wrong usage: no code, and where to read more. */
void print_usage_failure(const char *program);

bool print_stdout_is_terminal(void);
bool print_stderr_is_terminal(void);
int print_stderr_columns(void); /* of the terminal; 80 if unknown */

/* Writes what is buffered: EXIT_OK, or EXIT_ERROR told on stderr when stdout cannot be
 * written. */
int print_finish(void);
void print_flush(void);

/* A new file with this text and a newline. */
status print_file(const char *path, const char *text);

const char *print_status_name(status code); /* "UNAVAILABLE" */

/* Text in which control characters and what turns writing around are spelled out; newlines
 * and tabs stay if `lines`.  *out is malloc'd and NUL-terminated; NULL: out of memory. */
char *print_harmless(const char *text, size_t bytes, bool lines);

#endif
