#include "common/envelope.h"
#include "common/log.h"
#include "worker/link_state.h"

#include <errno.h>
#include <stdlib.h>

void link_forget_entries(struct link *link)
{
    for (int i = 0; i < link->n_entries; i++) {
        free(link->entries[i].key);
        free(link->entries[i].value);
    }
    link->n_entries = 0;
}

static void keep(struct link *link, const Winnow__V1__StoreEntry *m)
{
    struct entry *entry = &link->entries[link->n_entries];

    entry->key = strndup((const char *)m->key.data, m->key.len);
    entry->value = malloc(m->value.len + 1);
    if (!entry->key || !entry->value) {
        free(entry->key);
        free(entry->value);
        log_error("link: no memory for a rendezvous entry");
        return;
    }
    if (m->value.len) {
        memcpy(entry->value, m->value.data, m->value.len);
    }
    entry->bytes = m->value.len;
    link->n_entries++;
    pthread_cond_broadcast(&link->changed);
}

void link_keep_entry(struct link *link, const uint8_t *data, size_t bytes)
{
    Winnow__V1__StoreEntry *m =
        bytes <= LINK_MAX_ENTRY ? winnow__v1__store_entry__unpack(NULL, bytes, data) : NULL;

    if (!m || link->n_entries == LINK_MAX_ENTRIES) {
        log_error("link: a rendezvous entry is refused bytes=%zu", bytes);
    } else if (m->epoch == link->epoch) {
        keep(link, m);
    }
    if (m) {
        winnow__v1__store_entry__free_unpacked(m, NULL);
    }
}

bool link_is_over(const struct link *link)
{
    return link->left || link->epoch != link->engine_epoch || atomic_load(&link->stopping);
}

static status store_set(void *context, const char *key, const void *data, size_t bytes)
{
    struct link *link = context;
    Winnow__V1__StoreEntry m = WINNOW__V1__STORE_ENTRY__INIT;

    pthread_mutex_lock(&link->mutex);
    m.epoch = link->engine_epoch;
    pthread_mutex_unlock(&link->mutex);
    m.key = link_text(key);
    m.value.data = (uint8_t *)data;
    m.value.len = bytes;
    link_send(link, WORKER_STORE, &m.base);
    return STATUS_OK;
}

static const struct entry *find_entry(const struct link *link, const char *key)
{
    for (int i = 0; i < link->n_entries; i++) {
        if (strcmp(link->entries[i].key, key) == 0) {
            return &link->entries[i];
        }
    }
    return NULL;
}

static status copy_entry(const struct entry *entry, void **out, size_t *out_bytes)
{
    *out = malloc(entry->bytes + 1);
    if (!*out) {
        return status_fail(STATUS_EXHAUSTED, "no memory for a rendezvous entry");
    }
    memcpy(*out, entry->value, entry->bytes);
    *out_bytes = entry->bytes;
    return STATUS_OK;
}

static status store_get(void *context, const char *key, int timeout_ms, void **out,
                        size_t *out_bytes)
{
    struct link *link = context;
    struct timespec until = link_in_ms(timeout_ms);
    const struct entry *entry = NULL;
    bool late = false;

    pthread_mutex_lock(&link->mutex);
    while (!link_is_over(link) && !late) {
        entry = find_entry(link, key);
        if (entry) {
            break;
        }
        late = pthread_cond_timedwait(&link->changed, &link->mutex, &until) == ETIMEDOUT;
    }
    status st = entry  ? copy_entry(entry, out, out_bytes)
                : late ? status_fail(STATUS_UNAVAILABLE, "no rank published %s within %d ms", key,
                                     timeout_ms)
                       : status_fail(STATUS_UNAVAILABLE, "the group was dissolved");
    pthread_mutex_unlock(&link->mutex);
    return st;
}

static int store_over(void *context)
{
    struct link *link = context;

    pthread_mutex_lock(&link->mutex);
    int over = link_is_over(link);
    pthread_mutex_unlock(&link->mutex);
    return over;
}

struct comm_store link_store(struct link *link)
{
    return (struct comm_store){
        .context = link, .set = store_set, .get = store_get, .over = store_over};
}
