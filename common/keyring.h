/*
 * keyring.h - secrets from a file, read again when the file changes.
 *
 * A line is "NAME SECRET" or "NAME SECRET admin"; where names mean nothing, the secret alone. Empty
 * lines and lines that begin with '#' are skipped.  All functions are thread-safe.
 *
 * A file that cannot be read any more, or that breaks a rule, changes nothing: what was read
 * last stays in force, and the log says why, once for each new content.
 */
#ifndef COMMON_KEYRING_H
#define COMMON_KEYRING_H

#include "common/status.h"

#include <stdbool.h>

enum keyring_limits {
    KEYRING_MAX_FILE = 256 << 10, /* bytes */
    KEYRING_MAX_KEYS = 1024,
    KEYRING_MAX_NAME = 64,    /* bytes of printable ASCII */
    KEYRING_MAX_SECRET = 256, /* likewise */
    KEYRING_SHORT = 16,       /* a secret of fewer bytes is warned of */
};

struct keyring;

struct keyring_owner {
    char name[KEYRING_MAX_NAME + 1]; /* "": the line has none */
    bool admin;
};

/* `named`: a line without a name is refused.  A file without a secret is refused as well. */
status keyring_open(struct keyring **out, const char *path, bool named);
void keyring_close(struct keyring *ring); /* NULL is fine */

/* Whose secret this is; the time it takes tells nothing of the secrets.  False: nobody's. */
bool keyring_find(struct keyring *ring, const char *secret, struct keyring_owner *out);

/* The first secret of the file: what a client says. */
void keyring_first(struct keyring *ring, char out[KEYRING_MAX_SECRET + 1]);

#endif
