#include "common/rpc_accept.h"

#include "common/clock.h"
#include "common/log.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { REFUSED_MS = 1000 /* between two lines about closed connections */ };

void rpc_accept_init(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= RPC_ACCEPT_MAX) {
        return;
    }
    limit.rlim_cur = limit.rlim_max < RPC_ACCEPT_MAX ? limit.rlim_max : RPC_ACCEPT_MAX;
    if (setrlimit(RLIMIT_NOFILE, &limit)) {
        log_debug("rpc: the limit of descriptors stays as it is");
    }
}

/* Descriptors are given lowest first: a high number says that few are left. */
static int is_surplus(int fd)
{
    struct rlimit limit;

    return !getrlimit(RLIMIT_NOFILE, &limit) && (rlim_t)fd + RPC_ACCEPT_RESERVE >= limit.rlim_cur;
}

static void log_surplus(int64_t limit_ms)
{
    static atomic_int_fast64_t logged_ms = INT64_MIN / 2;
    int64_t now = (int64_t)clock_ms();
    int64_t last = atomic_load(&logged_ms);

    if (now - last >= limit_ms && atomic_compare_exchange_strong(&logged_ms, &last, now)) {
        log_warn("rpc: connections are closed reason=\"too few descriptors left\"");
    }
}

/* In place of the C library's, for every library of this process.
 * NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name): those are reserved names */
int accept4(int listener, struct sockaddr *address, socklen_t *bytes, int flags)
{
    socklen_t room = bytes ? *bytes : 0;

    for (;;) {
        if (bytes) {
            *bytes = room; /* which the last round has changed */
        }
        int fd = (int)syscall(SYS_accept4, listener, address, bytes, flags);
        if (fd >= 0 && is_surplus(fd)) {
            close(fd);
            log_surplus(REFUSED_MS);
        } else if (fd >= 0) {
            return fd;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_surplus(REFUSED_MS);
            errno = EAGAIN; /* the next connection that arrives is looked at again */
            return -1;
        } else if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO) {
            return -1;
        }
    }
}
