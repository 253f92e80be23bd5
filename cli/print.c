#include "cli/print.h"

#include "cli/commands.h"
#include "common/utf8.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { HARMLESS_GROWTH = 8 }; /* "<U+202E>" for three bytes, "\x1b" for one */

void print_out(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stdout, format, args);
    va_end(args);
}

void print_note(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
}

status print_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");

    if (!file) {
        return status_fail(STATUS_INTERNAL, "%s: %s", path, strerror(errno));
    }
    bool ok = fputs(text, file) >= 0 && fputc('\n', file) >= 0;
    if (fclose(file) || !ok) {
        return status_fail(STATUS_INTERNAL, "%s: cannot be written: %s", path, strerror(errno));
    }
    return STATUS_OK;
}

/* Characters that a terminal obeys, or that make text read otherwise than it is written. */
static bool is_control(uint32_t c)
{
    return c < 0x20 || (c >= 0x7F && c <= 0x9F) || (c >= 0x202A && c <= 0x202E) ||
           (c >= 0x2066 && c <= 0x2069) || c == 0x200E || c == 0x200F || c == 0x2028 || c == 0x2029;
}

char *print_harmless(const char *text, size_t bytes, bool lines)
{
    char *out = bytes < SIZE_MAX / HARMLESS_GROWTH - 1 ? malloc(bytes * HARMLESS_GROWTH + 1) : NULL;
    size_t used = 0;

    if (!out) {
        return NULL;
    }
    for (size_t at = 0; at < bytes;) {
        size_t n;
        uint32_t c;
        bool good = utf8_next(text + at, bytes - at, &n, &c) == UTF8_CHARACTER;
        if (good && (!is_control(c) || (lines && (c == '\n' || c == '\t')))) {
            memcpy(out + used, text + at, n);
            used += n;
        } else if (good && c < 0x80) {
            used += (size_t)snprintf(out + used, 5, "\\x%02x", (unsigned)c);
        } else if (good) {
            used += (size_t)snprintf(out + used, 9, "<U+%04X>", (unsigned)c);
        } else {
            memcpy(out + used, "?", 1);
            used++;
        }
        at += n;
    }
    out[used] = '\0';
    return out;
}

void print_text(const char *text, size_t bytes)
{
    char *harmless = print_stdout_is_terminal() ? print_harmless(text, bytes, true) : NULL;

    if (harmless) {
        fputs(harmless, stdout);
        free(harmless);
    } else if (!print_stdout_is_terminal()) {
        fwrite(text, 1, bytes, stdout);
    }
}

const char *print_status_name(status code)
{
    static const char *const names[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };

    return (unsigned)code < sizeof(names) / sizeof(names[0]) ? names[code] : "UNKNOWN";
}

void print_failure(const char *program, status code)
{
    char *text = print_harmless(status_text(), strlen(status_text()), false);

    print_note("%s: %s: %s\n", program, print_status_name(code), text ? text : "");
    free(text);
}

void print_usage_failure(const char *program)
{
    char *text = print_harmless(status_text(), strlen(status_text()), false);

    print_note("%s: %s; %s --help lists the options\n", program, text ? text : "", program);
    free(text);
}

bool print_stdout_is_terminal(void)
{
    return isatty(STDOUT_FILENO);
}

bool print_stderr_is_terminal(void)
{
    return isatty(STDERR_FILENO);
}

int print_stderr_columns(void)
{
    struct winsize size;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

void print_flush(void)
{
    fflush(stdout);
}

int print_finish(void)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        print_note("winnow: stdout: %s\n", strerror(errno));
        return EXIT_ERROR;
    }
    return EXIT_OK;
}
