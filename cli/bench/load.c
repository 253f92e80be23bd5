#include "cli/bench/load.h"

#include "cli/interrupt.h"
#include "cli/print.h"
#include "common/clock.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#define METHOD_PATH "/winnow.v1.Inference/Generate"

enum { PROGRESS_MS = 500, TICK_MS = 1000 };

struct load;

struct flight {
    struct load *load;
    struct record *record;
    struct rpc_stream *stream;
    struct flight *next;            /* of those over */
    struct flight *before, *behind; /* of those running; the main thread's */
};

struct load {
    const struct load_config *config;
    struct record *records;
    struct flight *flights; /* [n] */
    struct flight *running_list;
    double start_ms, shown_ms;
    size_t sent, running, peak, finished, failed;
    bool interrupted;
    int wake; /* eventfd */

    pthread_mutex_t lock; /* guards what follows */
    struct flight *over;
};

static double cpu_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static double elapsed_ms(const struct load *load)
{
    return clock_ms() - load->start_ms;
}

/* ---- on the completion threads ---- */

static void on_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context)
{
    struct flight *flight = context;
    struct record *record = flight->record;
    struct failure own;
    double now_ms = elapsed_ms(flight->load);

    if (record->code) {
        return;
    }
    status st = record_message(record, data, bytes, now_ms);
    if (st) {
        status_save(&own, st);
        record->code = own.code;
        record->error = strdup(own.text);
        rpc_stream_cancel(stream);
    }
}

static void on_done(struct rpc_stream *stream, const struct failure *end, void *context)
{
    struct flight *flight = context;
    struct load *load = flight->load;
    uint64_t one = 1;
    ssize_t n;

    (void)stream;
    record_end(flight->record, end, elapsed_ms(load));
    pthread_mutex_lock(&load->lock);
    bool first = !load->over;
    flight->next = load->over;
    load->over = flight;
    do { /* under the lock: afterwards the owner may be gone */
        n = first ? write(load->wake, &one, sizeof(one)) : 0;
    } while (n < 0 && errno == EINTR);
    pthread_mutex_unlock(&load->lock);
}

/* ---- on the main thread ---- */

static void enter(struct load *load, struct flight *flight)
{
    flight->behind = load->running_list;
    if (flight->behind) {
        flight->behind->before = flight;
    }
    load->running_list = flight;
    load->running++;
    load->peak = load->running > load->peak ? load->running : load->peak;
}

static void leave(struct load *load, struct flight *flight)
{
    if (flight->before) {
        flight->before->behind = flight->behind;
    } else {
        load->running_list = flight->behind;
    }
    if (flight->behind) {
        flight->behind->before = flight->before;
    }
    load->running--;
    load->finished++;
    load->failed += record_ok(flight->record) ? 0 : 1;
    rpc_stream_unref(flight->stream);
    flight->stream = NULL;
}

static void reap(struct load *load)
{
    pthread_mutex_lock(&load->lock);
    struct flight *flight = load->over;
    load->over = NULL;
    pthread_mutex_unlock(&load->lock);
    while (flight) {
        struct flight *next = flight->next;
        leave(load, flight);
        flight = next;
    }
}

static status start_next(struct load *load)
{
    const struct load_config *config = load->config;
    size_t i = load->sent;
    struct flight *flight = &load->flights[i];
    struct rpc_events events = {on_message, on_done, flight};
    uint8_t *data = NULL;
    size_t bytes = 0;
    status st = config->pack(config->context, i, &data, &bytes);

    if (st) {
        return st;
    }
    flight->load = load;
    flight->record = &load->records[i];
    flight->record->due_ms = config->due_s ? config->due_s[i] * 1000 : elapsed_ms(load);
    flight->record->sent_ms = elapsed_ms(load);
    flight->record->sent = true;
    struct rpc_client *client = config->clients[i % (size_t)config->n_clients];
    st = rpc_stream_open(&flight->stream, client, METHOD_PATH, config->deadline_ms, &events);
    if (!st) {
        load->sent++;
        enter(load, flight);
        /* If the call is over already its end says why. */
        if (rpc_stream_send(flight->stream, data, bytes)) {
            rpc_stream_half_close(flight->stream);
        }
    }
    free(data);
    return st;
}

static bool all_sent(const struct load *load)
{
    return load->sent == load->config->n || load->interrupted;
}

/* Milliseconds until the next request is due: 0 now, infinity when it has to wait for an end. */
static double until_next_ms(const struct load *load)
{
    const struct load_config *config = load->config;

    if (all_sent(load) || load->running >= config->max_running) {
        return (double)INFINITY;
    }
    return config->due_s ? fmax(config->due_s[load->sent] * 1000 - elapsed_ms(load), 0) : 0;
}

static void cancel_running(struct load *load)
{
    for (struct flight *flight = load->running_list; flight; flight = flight->behind) {
        rpc_stream_cancel(flight->stream);
    }
}

static void show(struct load *load)
{
    const char *title = load->config->title;
    double now_ms = elapsed_ms(load);

    if (!title || !print_stderr_is_terminal() || now_ms - load->shown_ms < PROGRESS_MS) {
        return;
    }
    load->shown_ms = now_ms;
    print_note("\r\x1b[K%s: %zu of %zu done, %zu running, %zu failed, %.0f s", title,
               load->finished, load->config->n, load->running, load->failed, now_ms / 1000);
}

/* Until something happens, at most for the time given. */
static void pause_for(struct load *load, double ms)
{
    struct pollfd fds[2] = {{.fd = load->wake, .events = POLLIN},
                            {.fd = interrupt_fd(), .events = POLLIN}};
    double seconds = fmin(ms, TICK_MS) / 1000;
    struct timespec timeout = {.tv_sec = (time_t)seconds};
    uint64_t count;

    timeout.tv_nsec = (long)((seconds - (double)timeout.tv_sec) * 1e9);
    if (ppoll(fds, 2, &timeout, NULL) > 0 && (fds[0].revents & POLLIN) &&
        read(load->wake, &count, sizeof(count)) < 0) {
        return; /* taken already */
    }
    if (interrupt_take() && !load->interrupted) {
        load->interrupted = true;
        cancel_running(load);
    }
}

static status run(struct load *load)
{
    status st = STATUS_OK;
    struct failure own = {.code = STATUS_OK};

    while (!all_sent(load) || load->running) {
        double wait_ms = until_next_ms(load);
        if (wait_ms > 0) {
            pause_for(load, wait_ms);
        } else if ((st = start_next(load))) {
            status_save(&own, st);
            load->interrupted = true;
            cancel_running(load);
        }
        reap(load);
        show(load);
    }
    if (load->shown_ms > 0) {
        print_note("\r\x1b[K");
    }
    return own.code ? status_fail(own.code, "%s", own.text) : STATUS_OK;
}

static status prepare(struct load *load)
{
    size_t n = load->config->n;

    load->records = calloc(n + 1, sizeof(*load->records));
    load->flights = calloc(n + 1, sizeof(*load->flights));
    if (!load->records || !load->flights) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %zu requests", n);
    }
    load->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return load->wake < 0 ? status_fail(STATUS_INTERNAL, "eventfd: %s", strerror(errno))
                          : STATUS_OK;
}

status load_run(struct load_outcome *out, const struct load_config *config)
{
    struct load load = {.config = config, .wake = -1};
    double cpu_s = cpu_seconds();

    assert(config->n_clients >= 1 && config->max_running >= 1);
    *out = (struct load_outcome){0};
    pthread_mutex_init(&load.lock, NULL);
    status st = prepare(&load);
    if (!st) {
        load.start_ms = clock_ms();
        st = run(&load);
        out->duration_s = elapsed_ms(&load) / 1000;
    }
    out->cpu_s = cpu_seconds() - cpu_s;
    out->records = load.records;
    out->n = load.records ? config->n : 0;
    out->peak_running = load.peak;
    out->interrupted = load.interrupted;
    free(load.flights);
    if (load.wake >= 0) {
        close(load.wake);
    }
    pthread_mutex_destroy(&load.lock);
    if (st) {
        load_free(out);
    }
    return st;
}

void load_free(struct load_outcome *outcome)
{
    for (size_t i = 0; i < outcome->n; i++) {
        record_free(&outcome->records[i]);
    }
    free(outcome->records);
    *outcome = (struct load_outcome){0};
}
