#include "cli/interrupt.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static int signals = -1;

status interrupt_open(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0) {
        return status_fail(STATUS_INTERNAL, "signals cannot be blocked");
    }
    signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0) {
        return status_fail(STATUS_INTERNAL, "signalfd: %s", strerror(errno));
    }
    return STATUS_OK;
}

void interrupt_close(void)
{
    close(signals);
    signals = -1;
}

int interrupt_fd(void)
{
    return signals;
}

bool interrupt_take(void)
{
    struct signalfd_siginfo info;

    return read(signals, &info, sizeof(info)) == sizeof(info);
}
