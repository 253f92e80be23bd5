#include "tests/worker/helpers_group.h"

#include "tests/check.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_ENTRIES = 256, MAX_RANKS = 16 };

struct entry {
    char key[128];
    void *data;
    size_t bytes;
};

struct store {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct entry entries[MAX_ENTRIES];
    int n;
};

static status store_set(void *context, const char *key, const void *data, size_t bytes)
{
    struct store *store = context;

    pthread_mutex_lock(&store->mutex);
    struct entry *entry = &store->entries[store->n++];
    snprintf(entry->key, sizeof(entry->key), "%s", key);
    entry->data = malloc(bytes + 1);
    memcpy(entry->data, data, bytes);
    entry->bytes = bytes;
    pthread_cond_broadcast(&store->changed);
    pthread_mutex_unlock(&store->mutex);
    return STATUS_OK;
}

static const struct entry *find(const struct store *store, const char *key)
{
    for (int i = 0; i < store->n; i++) {
        if (strcmp(store->entries[i].key, key) == 0) {
            return &store->entries[i];
        }
    }
    return NULL;
}

static status store_get(void *context, const char *key, int timeout_ms, void **out,
                        size_t *out_bytes)
{
    struct store *store = context;
    const struct entry *entry;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000 + 1;
    pthread_mutex_lock(&store->mutex);
    while (!(entry = find(store, key))) {
        if (pthread_cond_timedwait(&store->changed, &store->mutex, &until)) {
            break;
        }
    }
    if (entry) {
        *out = malloc(entry->bytes + 1);
        memcpy(*out, entry->data, entry->bytes);
        *out_bytes = entry->bytes;
    }
    pthread_mutex_unlock(&store->mutex);
    return entry ? STATUS_OK : status_fail(STATUS_UNAVAILABLE, "no key %s", key);
}

static int store_over(void *context)
{
    (void)context;
    return 0;
}

unsigned group_tcp_ranks;
struct device **group_devices;
int group_timeout_ms = 120000;

struct member {
    pthread_t thread;
    struct comm_config config;
    group_body *body;
    void *context;
    struct failure end;
};

static void *run_member(void *argument)
{
    struct member *member = argument;
    struct comm *comm = NULL;

    if (group_devices) {
        member->config.device = group_devices[member->config.rank];
    }
    status st = comm_open(&comm, &member->config);

    if (!st) {
        st = member->body(comm, member->context);
    }
    status_save(&member->end, st);
    comm_close(comm);
    return NULL;
}

void group_run(int size, group_body *body, void *context)
{
    static uint64_t epoch;
    struct store store = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct member members[MAX_RANKS];

    epoch++;
    for (int i = 0; i < size; i++) {
        members[i] = (struct member){
            .config = {.rank = i,
                       .size = size,
                       .epoch = epoch,
                       .host = "127.0.0.1",
                       .timeout_ms = group_timeout_ms,
                       .tcp_only = (group_tcp_ranks >> i & 1) != 0,
                       .store = {&store, store_set, store_get, store_over}},
            .body = body,
            .context = context,
        };
        CHECK(pthread_create(&members[i].thread, NULL, run_member, &members[i]) == 0);
    }
    for (int i = 0; i < size; i++) {
        pthread_join(members[i].thread, NULL);
    }
    for (int i = 0; i < store.n; i++) {
        free(store.entries[i].data);
    }
    for (int i = 0; i < size; i++) {
        if (members[i].end.code) {
            fail_msg("rank %d: %s", i, members[i].end.text);
        }
    }
}
