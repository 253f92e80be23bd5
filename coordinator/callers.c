#include "coordinator/callers.h"

#include "common/clock.h"
#include "common/keyring.h"
#include "common/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { REFUSALS_MS = 1000 /* between two lines about refused calls */ };

struct callers {
    struct callers_config config;
    struct keyring *secrets; /* NULL: none */
    pthread_mutex_t lock;    /* guards what follows */
    double logged_ms;        /* the last line about a refusal */
    unsigned unlogged;       /* refusals since */
};

/* A flood of refused calls is one line a second. */
static void log_refusal(struct callers *callers, struct rpc_call *call, const char *reason)
{
    double now = clock_ms();

    pthread_mutex_lock(&callers->lock);
    bool due = now - callers->logged_ms >= REFUSALS_MS;
    unsigned others = callers->unlogged;
    callers->unlogged = due ? 0 : others + 1;
    if (due) {
        callers->logged_ms = now;
    }
    pthread_mutex_unlock(&callers->lock);
    if (due) {
        log_warn("callers: refused plane=%s peer=%s caller=\"%s\" reason=\"%s\" others=%u",
                 callers->config.plane, rpc_call_peer(call), rpc_call_caller(call), reason, others);
    }
}

/* What follows "Bearer " in the metadata of the call; NULL: nothing. */
static const char *bearer(struct rpc_call *call)
{
    const char *value = rpc_call_metadata(call, "authorization");

    return value && strncasecmp(value, "Bearer ", 7) == 0 ? value + 7 : NULL;
}

static status identify_secret(struct callers *callers, struct rpc_call *call, bool *admin)
{
    const char *secret = bearer(call);
    struct keyring_owner owner;

    if (!secret) {
        return status_fail(STATUS_UNAUTHENTICATED, "%s", callers->config.needed);
    }
    if (!keyring_find(callers->secrets, secret, &owner)) {
        return status_fail(STATUS_UNAUTHENTICATED, "%s", callers->config.unknown);
    }
    rpc_call_set_caller(call, owner.name);
    *admin = owner.admin;
    return STATUS_OK;
}

static status identify_certificate(struct rpc_call *call)
{
    const char *name = rpc_call_certificate(call);

    if (!name || strlen(name) > RPC_MAX_CALLER) {
        return status_fail(STATUS_UNAUTHENTICATED,
                           "the certificate has no name of 1 to %d bytes to go by", RPC_MAX_CALLER);
    }
    rpc_call_set_caller(call, name);
    return STATUS_OK;
}

static status check(struct callers *callers, struct rpc_call *call, enum rpc_access access)
{
    bool known = callers->secrets || callers->config.certificates;
    bool admin = !known;
    status st = callers->secrets               ? identify_secret(callers, call, &admin)
                : callers->config.certificates ? identify_certificate(call)
                                               : STATUS_OK;

    if (!st && access == RPC_ACCESS_ADMIN && !admin) {
        st = status_fail(STATUS_PERMISSION,
                         "%s is no administrator: that needs a token whose line "
                         "in the server's token file ends with \"admin\"",
                         rpc_call_caller(call));
    }
    return st;
}

status callers_authorize(struct rpc_call *call, enum rpc_access access, void *context)
{
    struct callers *callers = context;

    if (access == RPC_ACCESS_OPEN) {
        return STATUS_OK;
    }
    status st = check(callers, call, access);
    if (st) {
        log_refusal(callers, call, status_text());
    }
    return st;
}

status callers_open(struct callers **out, const struct callers_config *config)
{
    struct callers *callers = calloc(1, sizeof(*callers));
    status st = STATUS_OK;

    if (!callers) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the callers");
    }
    callers->config = *config;
    callers->logged_ms = -REFUSALS_MS;
    pthread_mutex_init(&callers->lock, NULL);
    if (config->secret_file) {
        st = keyring_open(&callers->secrets, config->secret_file, config->named);
    }
    if (st) {
        callers_close(callers);
        return st;
    }
    *out = callers;
    return STATUS_OK;
}

void callers_close(struct callers *callers)
{
    if (callers) {
        keyring_close(callers->secrets);
        pthread_mutex_destroy(&callers->lock);
        free(callers);
    }
}
