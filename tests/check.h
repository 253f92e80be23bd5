/* check.h - cmocka with the few words that the tests here use. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include "common/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* cmocka.h needs those above. */
#include <cmocka.h>

#define CHECK(condition) assert_true(condition)

static inline void check_status_ok(status st, const char *call, const char *file, int line)
{
    if (st) {
        print_error("%s: %s\n", call, status_text());
        _fail(file, line);
    }
}

static inline void check_status_fails(status st, status code, const char *words, const char *call,
                                      const char *file, int line)
{
    if (st != code || !strstr(status_text(), words)) {
        print_error("%s: status %d, \"%s\"\n", call, (int)st, st ? status_text() : "");
        _fail(file, line);
    }
}

#define CHECK_OK(call) check_status_ok((call), #call, __FILE__, __LINE__)

/* The call fails with this code, and its sentence contains the words. */
#define CHECK_FAILS(call, code, words) \
    check_status_fails((call), (code), (words), #call, __FILE__, __LINE__)

#endif
