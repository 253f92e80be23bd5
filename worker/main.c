/* main.c - winnow-worker: options, link, rank; then everything closed in reverse. */
#include "common/log.h"
#include "common/machine.h"
#include "common/rpc.h"
#include "worker/devices.h"
#include "worker/model.h"
#include "worker/rank.h"
#include "worker/vitals.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

/* For the signal handler. */
static struct link *running;
static atomic_bool asked;

/* The first time the group finishes what it runs; the second time all stays as it is. */
static void on_signal(int number)
{
    (void)number;
    if (atomic_exchange(&asked, true)) {
        _exit(EXIT_FAILURE);
    }
    link_drain(running);
}

/* The parent may have died before this was asked for. */
static status die_with(int64_t parent)
{
    if (parent == 0) {
        return STATUS_OK;
    }
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != (pid_t)parent) {
        return status_fail(STATUS_UNAVAILABLE, "the parent process %lld is gone",
                           (long long)parent);
    }
    return STATUS_OK;
}

static status open_vitals(struct vitals **out, const struct worker_config *config)
{
    struct model_config model;

    model_config_name(&model, config->model);
    return vitals_open(out, &(struct vitals_config){.http = config->http,
                                                    .health_listen = config->health_listen,
                                                    .model_name = model.name});
}

static status run(const struct worker_config *config)
{
    struct link_config link = {.coordinator = config->coordinator,
                               .identity = config->identity,
                               .host = config->advertise,
                               .device = config->backend,
                               .memory_bytes = machine_look().memory_bytes,
                               .fixed_rank = config->fixed_rank,
                               .cohort = config->cohort,
                               .drain_ms = (int)config->drain_timeout_ms};
    struct sigaction action = {.sa_handler = on_signal};
    struct vitals *vitals = NULL;

    status st = die_with(config->parent_pid);
    if (!st) {
        st = model_fingerprint(&link.model_fingerprint, config->model);
        /* another model to its group */
        link.model_fingerprint += (config->int8_weights ? 1 : 0) + (config->int8_kv ? 2 : 0);
    }
    if (!st) {
        st = open_vitals(&vitals, config);
    }
    if (!st) {
        st = link_open(&running, &link);
    }
    if (st) {
        vitals_close(vitals);
        return st;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL); /* gloo writes to peers that may be gone */
    st = rank_run(running, config, vitals);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    link_close(running);
    vitals_close(vitals);
    return st;
}

int main(int argc, char **argv)
{
    struct worker_config config;
    enum options_outcome outcome;

    if (worker_config_parse(&config, argc, argv, &outcome)) {
        fprintf(stderr, "winnow-worker: %s\n", status_text());
        return 2;
    }
    if (outcome != OPTIONS_RUN) {
        return 0;
    }
    log_init("winnow-worker", config.log_debug ? LOG_DEBUG : LOG_INFO, config.log_json);
    status st;
    if (config.n_devices > 1) {
        st = devices_run(&config, argc, argv);
    } else {
        rpc_init();
        st = run(&config);
        rpc_fini();
    }
    if (st) {
        fprintf(stderr, "winnow-worker: %s\n", status_text());
        return 1;
    }
    return 0;
}
