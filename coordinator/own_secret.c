#include "coordinator/own_secret.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECRET_BYTES = 32 };

status own_secret_make(char path[OWN_SECRET_PATH])
{
    unsigned char random[SECRET_BYTES];
    char line[2 * SECRET_BYTES + 2];
    int fd = memfd_create("winnow-secret", 0); /* children inherit it */

    if (fd < 0 || getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return status_fail(STATUS_INTERNAL, "cannot make a secret: %s", strerror(errno));
    }
    for (size_t i = 0; i < sizeof(random); i++) {
        snprintf(line + 2 * i, 3, "%02x", random[i]);
    }
    line[sizeof(line) - 2] = '\n';
    if (fchmod(fd, 0600) || write(fd, line, sizeof(line) - 1) != (ssize_t)sizeof(line) - 1) {
        return status_fail(STATUS_INTERNAL, "cannot keep a secret: %s", strerror(errno));
    }
    snprintf(path, OWN_SECRET_PATH, "/proc/self/fd/%d", fd);
    return STATUS_OK;
}
