#include "coordinator/ending.h"

#include "common/log.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { IMPATIENT = 3 }; /* signals until the process ends where it stands */

static sem_t changed; /* posted after every change of what follows */
static atomic_int n_signals;
static atomic_bool drained;
static atomic_bool gave_up;
static struct failure hopeless; /* written before gave_up is set */

static void on_signal(int number)
{
    (void)number;
    if (atomic_fetch_add(&n_signals, 1) + 1 >= IMPATIENT) {
        _exit(EXIT_FAILURE);
    }
    sem_post(&changed);
}

void ending_watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    sem_init(&changed, 0, 0);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
}

void ending_give_up(const struct failure *failure, void *context)
{
    (void)context;
    hopeless = *failure;
    atomic_store(&gave_up, true);
    sem_post(&changed);
}

static void on_drained(uint32_t unfinished, void *context)
{
    (void)context;
    if (unfinished) {
        log_warn("ending: stopped unfinished=%u", unfinished);
    }
    atomic_store(&drained, true);
    sem_post(&changed);
}

status ending_await(void)
{
    while (!atomic_load(&n_signals) && !atomic_load(&gave_up)) {
        sem_wait(&changed); /* a signal interrupts it, and is looked at */
    }
    return atomic_load(&gave_up) ? status_fail(hopeless.code, "%s", hopeless.text) : STATUS_OK;
}

static bool in_haste(void)
{
    return atomic_load(&n_signals) > 1 || atomic_load(&gave_up);
}

static void wait_out_window(int64_t window_ms)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += window_ms / 1000;
    until.tv_nsec += window_ms % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (!in_haste() && (sem_timedwait(&changed, &until) == 0 || errno == EINTR)) {
    }
}

void ending_drain(const struct ending *ending)
{
    health_leave(ending->health);
    log_info("ending: not serving window_ms=%lld drain_ms=%lld", (long long)ending->window_ms,
             (long long)ending->drain_ms);
    wait_out_window(ending->window_ms);
    bool haste = in_haste();
    service_drain(ending->service, haste ? 0 : ending->drain_ms, on_drained, NULL);
    while (!atomic_load(&drained)) {
        if (!haste && in_haste()) {
            haste = true;
            service_drain(ending->service, 0, on_drained, NULL);
        }
        sem_wait(&changed);
    }
}
