/*
 * core.h - what the service thread does: requests, scheduler, fleet and streams in one place.
 *
 * One thread calls it, with the time as an argument.  An event goes in, everything that follows
 * from it is done before the call returns: plans are sent, requests are answered, readiness is
 * told.
 */
#ifndef COORDINATOR_CORE_H
#define COORDINATOR_CORE_H

#include "coordinator/dispatch.h"

struct core_sink {
    /* The request has ended; its sink is told next. */
    void (*forget)(void *context, struct request *request);
    void (*ready)(void *context, bool ready);
    /* This worker said nothing for too long and was given up. */
    void (*silent)(void *context, uint32_t process);
    void *context;
};

struct core;

status core_open(struct core **out, const struct service_config *config,
                 const struct core_sink *sink, double now);
/* Everything has been failed and every peer is gone.  NULL is fine. */
void core_close(struct core *core);

void core_submit_take(struct core *core, struct request *request, double now);
void core_cancel(struct core *core, uint64_t handle, bool abort, double now);
void core_fail_all(struct core *core, const struct failure *failure, double now);

/* `data` is the core's from now on. */
void core_message_take(struct core *core, struct dispatch_peer *peer, uint8_t *data, size_t bytes,
                       double now);
/* The peer is the core's from now on.  `cause` completes the sentence "rank 1 of ... CAUSE". */
void core_gone_take(struct core *core, struct dispatch_peer *peer, const char *cause, double now);

void core_tick(struct core *core, double now);
void core_drain(struct core *core, double deadline_ms,
                void (*reply)(uint32_t unfinished, void *context), void *context, double now);
void core_status(struct core *core,
                 void (*reply)(const struct service_status *status, void *context), void *context,
                 double now);

uint64_t core_steps(const struct core *core);         /* results that were complete */
double core_progress_ms(const struct core *core);     /* when the last ended, or nothing ran */
bool core_was_ready(const struct core *core);         /* ever */
const char *core_last_fault(const struct core *core); /* "" or a worker's last sentence */

#endif
