/*
 * link_state.h - what the files of the link share: link_receive.c takes what the coordinator says,
 * link_store.c keeps the rendezvous, link.c sends and keeps the stream open.
 */
#ifndef WORKER_LINK_STATE_H
#define WORKER_LINK_STATE_H

#include "winnow/v1/worker.pb-c.h"
#include "worker/link.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

/* Of the rendezvous. */
struct entry {
    char *key;
    void *value;
    size_t bytes;
};

struct link {
    struct link_config config;
    struct rpc_client *client;
    pthread_t keeper; /* opens the stream, sends heartbeats */
    bool keeper_runs;
    atomic_uint_fast64_t steps;
    atomic_bool draining;
    atomic_bool stopping;
    sem_t wake; /* posted by link_stop() and link_drain(), perhaps in a signal handler */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t changed;
    struct rpc_stream *stream; /* NULL while there is none */
    uint64_t epoch;            /* of the last assignment; 0: in no group */
    uint64_t engine_epoch;     /* of the assignment that the engine thread took last */
    bool left;                 /* the epoch is over */
    uint32_t loaded_rank, loaded_size;
    struct comm *comm;
    struct link_event events[LINK_MAX_EVENTS];
    size_t first_event, n_events;
    struct entry entries[LINK_MAX_ENTRIES];
    int n_entries;
};

/* ---- link_receive.c ---- */

/* For rpc_stream_open(); the context is the link. */
void link_on_message(struct rpc_stream *stream, const uint8_t *data, size_t bytes, void *context);
void link_on_done(struct rpc_stream *stream, const struct failure *end, void *context);

/* The events that wait are forgotten. */
void link_drop_events(struct link *link);

/* ---- link_store.c, with the mutex held ---- */

/* A packed StoreEntry; of another epoch, or one that makes no sense, is not kept. */
void link_keep_entry(struct link *link, const uint8_t *data, size_t bytes);
void link_forget_entries(struct link *link);

/* What the engine thread joins or has joined is over; the next epoch may be assigned already. */
bool link_is_over(const struct link *link);

/* ---- link.c ---- */

/* Packs and sends; without a stream the message is dropped. */
void link_send(struct link *link, int field, const ProtobufCMessage *message);

/* protobuf-c's bytes; packing only reads them. */
static inline ProtobufCBinaryData link_text(const char *s)
{
    return (ProtobufCBinaryData){.len = strlen(s), .data = (uint8_t *)s};
}

/* The moment after so many ms, as pthread_cond_timedwait() and sem_timedwait() take it. */
struct timespec link_in_ms(int ms);

#endif
