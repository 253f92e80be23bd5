#include "worker/devices.h"

#include "common/children.h"
#include "common/clock.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

enum { MAX_PATH = 4096, TICK_MS = 50, OWN_ARGUMENTS = 8 };

/* The children from `first` on: all of `arguments`, and then what is theirs, which wins. */
static status open_some(struct children **out, const char *executable, int first, int n,
                        int n_arguments, char **arguments, bool is_silent)
{
    const char *list[CHILDREN_MAX_ARGUMENTS];
    char parent[32];
    size_t used = 0;

    if (n_arguments > CHILDREN_MAX_ARGUMENTS - OWN_ARGUMENTS) {
        return status_fail(STATUS_INVALID, "more than %d arguments",
                           CHILDREN_MAX_ARGUMENTS - OWN_ARGUMENTS);
    }
    for (int i = 1; i < n_arguments; i++) {
        list[used++] = arguments[i];
    }
    snprintf(parent, sizeof(parent), "%d", (int)getpid());
    list[used++] = "--device";
    list[used++] = "cuda:{n}";
    list[used++] = "--parent-pid";
    list[used++] = parent;
    if (is_silent) { /* the ports are the first one's */
        list[used++] = "--http=";
        list[used++] = "--health-listen=";
    }
    return children_open(out, &(struct children_config){.executable = executable,
                                                        .n = n,
                                                        .first = first,
                                                        .arguments = list,
                                                        .n_arguments = used,
                                                        .environment = (const char **)environ});
}

/* Blocks the signals that end the program, which watch() then waits for. */
static void hold_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigprocmask(SIG_BLOCK, set, NULL);
}

static status watch(struct children *first, struct children *others, const sigset_t *stop)
{
    const struct timespec tick = {.tv_nsec = TICK_MS * 1000000L};
    int number;

    do {
        children_tick(first, clock_ms());
        children_tick(others, clock_ms());
        if (children_gave_up(first, &number) || children_gave_up(others, &number)) {
            return status_fail(STATUS_UNAVAILABLE, "the worker of cuda:%d gave up; see its log",
                               number);
        }
    } while (sigtimedwait(stop, NULL, &tick) < 0);
    /* Each drains its group and ends; a second signal is for who cannot wait. */
    children_ask(first);
    children_ask(others);
    bool ended = false;
    do {
        ended = children_ended(first);
        ended = children_ended(others) && ended;
    } while (!ended && sigtimedwait(stop, NULL, &tick) < 0);
    return STATUS_OK;
}

status devices_run(const struct worker_config *config, int n_arguments, char **arguments)
{
    struct children *first = NULL;
    struct children *others = NULL;
    char executable[MAX_PATH];
    sigset_t stop;

    status st = children_find_program(executable, sizeof(executable), "winnow-worker");
    if (!st) {
        st = open_some(&first, executable, config->device_index, 1, n_arguments, arguments, false);
    }
    if (!st) {
        st = open_some(&others, executable, config->device_index + 1, config->n_devices - 1,
                       n_arguments, arguments, true);
    }
    if (!st) {
        hold_signals(&stop);
        st = watch(first, others, &stop);
    }
    struct failure failure;
    status_save(&failure, st);
    children_close(others);
    children_close(first);
    return st ? status_fail(failure.code, "%s", failure.text) : STATUS_OK;
}
