/* main.c - winnow-coordinator: options, model, core, services; then everything closed in reverse.
 */
#include "common/file.h"
#include "common/health.h"
#include "common/log.h"
#include "common/rpc.h"
#include "common/web.h"
#include "coordinator/callers.h"
#include "coordinator/config.h"
#include "coordinator/control.h"
#include "coordinator/ending.h"
#include "coordinator/frontend.h"
#include "coordinator/meters.h"
#include "coordinator/own_secret.h"
#include "coordinator/reflection.h"

#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    COMPLETION_THREADS = 2,
    LAST_WORDS_MS = 1000, /* for what they are told to reach their clients */
    MAX_PATH = 4096,
    MAX_HANDLERS = FRONTEND_HANDLERS + CONTROL_HANDLERS + HEALTH_HANDLERS + REFLECTION_HANDLERS,
};

struct coordinator {
    struct config config;
    struct tokenizer *tokenizer; /* NULL: the model has none, and no chat */
    struct chat *chat;
    struct token_ids special_ids;
    struct token_ids punct_ids;
    struct profiles *profiles; /* NULL: none */
    struct health *health;
    struct meters *meters; /* NULL, and web as well: no --http */
    struct web *web;
    struct health_port *health_port; /* NULL: none of its own */
    struct service *service;
    struct frontend *frontend;
    struct callers *callers;
    char own_secret[OWN_SECRET_PATH]; /* "": none */
    struct reflection *reflection;    /* NULL: switched off */
    struct rpc_handler handlers[MAX_HANDLERS];
    struct rpc_server *server;
};

static status load_tokenizer(struct coordinator *it)
{
    char path[MAX_PATH];
    status st = file_join(path, sizeof(path), it->config.model_dir, "tokenizer.json");

    if (st) {
        return st;
    }
    if (access(path, F_OK) != 0 && errno == ENOENT) {
        log_warn("coordinator: no tokenizer file=%s serving=\"tokens prompts only\"", path);
        return STATUS_OK;
    }
    st = tokenizer_load(&it->tokenizer, path);
    if (!st) {
        st = chat_load(&it->chat, it->config.model_dir);
    }
    if (!st && chat_name(it->chat)) {
        log_info("coordinator: chat template=%s", chat_name(it->chat));
    } else if (!st) {
        log_info("coordinator: no chat cause=\"%s\"", chat_refusal(it->chat));
    }
    return st;
}

/* A tokenizer may have more ids than the model has rows; lists ascend. */
static void cut_ids(struct token_ids *list, const struct model_config *model)
{
    while (list->n > 0 && list->ids[list->n - 1] >= (uint32_t)model->vocab) {
        list->n--;
    }
}

static status find_token_classes(struct coordinator *it)
{
    status st = STATUS_OK;

    if (it->tokenizer) {
        st = tokenizer_specials(it->tokenizer, &it->special_ids);
    }
    if (!st && it->tokenizer) {
        st = tokenizer_punctuation(it->tokenizer, &it->punct_ids);
    }
    cut_ids(&it->special_ids, &it->config.model);
    cut_ids(&it->punct_ids, &it->config.model);
    return st;
}

static status load_profiles(struct coordinator *it)
{
    const char *dir = it->config.head_profiles;
    status st = dir ? profiles_open(&it->profiles, dir, &it->config.model) : STATUS_OK;

    return st ? status_note(st, "--head-profiles") : STATUS_OK;
}

static status open_service(struct coordinator *it)
{
    const struct config *config = &it->config;
    status st = config->own_workers_only ? own_secret_make(it->own_secret) : STATUS_OK;
    const char *secret_file = it->own_secret[0] ? it->own_secret : config->secret_file;
    const struct service_config service = {
        .model = &config->model,
        .tensor_parallel = config->tensor_parallel,
        .dtype = config->dtype,
        .max_context = config->max_context,
        .queue_requests = config->queue_requests,
        .queue_tokens = config->queue_tokens,
        .itl_target_ms = config->itl_target_ms,
        .heartbeat_timeout_ms = config->heartbeat_timeout_ms,
        .reform_timeout_ms = config->reform_timeout_ms,
        .check_selection = config->check_selection,
        .worker_listen = config->worker_listen,
        .local =
            {
                .n = config->local_workers,
                .model = config->model_dir,
                .device = config->device,
                .threads = config->threads,
                .kv_memory = config->kv_memory,
                .weights = config->weights,
                .kv = config->kv,
                .secret_file = secret_file,
                .log_json = config->log_json,
            },
        .worker_tls = config->worker_tls,
        .secret_file = secret_file,
        .meters = it->meters,
        .on_ready = health_set_ready,
        .on_hopeless = ending_give_up,
        .context = it->health,
    };

    return st ? st : service_open(&it->service, &service);
}

static status open_frontend(struct coordinator *it)
{
    const struct config *config = &it->config;
    const struct frontend_config frontend = {
        .rules =
            {
                .model = &config->model,
                .tokenizer = it->tokenizer,
                .chat = it->chat,
                .max_context = config->max_context,
                .default_method = config->method,
                .enable_trace = config->enable_trace,
                .profiles = it->profiles,
                .special_ids = it->special_ids,
                .punct_ids = it->punct_ids,
            },
        .service = it->service,
        .meters = it->meters,
        .dtype = config->dtype,
        .tensor_parallel = config->tensor_parallel,
    };

    return frontend_open(&it->frontend, &frontend);
}

static status start_server(struct coordinator *it)
{
    size_t n = 0;

    frontend_handlers(it->frontend, it->handlers);
    n += FRONTEND_HANDLERS;
    control_handlers(it->service, it->handlers + n);
    n += CONTROL_HANDLERS;
    health_handlers(it->health, it->handlers + n);
    n += HEALTH_HANDLERS;
    if (it->reflection) {
        reflection_handlers(it->reflection, it->handlers + n);
        n += REFLECTION_HANDLERS;
    }
    const struct rpc_server_config server = {
        .listen = it->config.listen,
        .handlers = it->handlers,
        .n_handlers = n,
        .completion_threads = COMPLETION_THREADS,
        .send_timeout_ms = (int)it->config.send_timeout_ms,
        .max_message = FRONTEND_MAX_MESSAGE,
        .tls = it->config.tls,
        .authorize = callers_authorize,
        .context = it->callers,
    };
    return rpc_server_start(&it->server, &server);
}

static status open_views(struct coordinator *it)
{
    const struct config *config = &it->config;
    const struct meters_config meters = {
        .model_name = config->model.name,
        .ranks = config->tensor_parallel,
        .dtype = config->dtype,
        .max_context = config->max_context,
    };
    status st = STATUS_OK;

    if (*config->http) {
        st = meters_open(&it->meters, &meters);
    }
    if (*config->http && !st) {
        st = web_open(&it->web, config->http, meters_metrics(it->meters), it->health);
    }
    if (*config->health_listen && !st) {
        st = health_serve(&it->health_port, it->health, config->health_listen);
    }
    return st;
}

static status open_callers(struct coordinator *it)
{
    const struct config *config = &it->config;
    bool private = config_is_loopback(config->listen);
    const struct callers_config callers = {
        .plane = "client",
        .secret_file = config->token_file,
        .named = true,
        .certificates = config->tls.ca != NULL,
        .needed = "a token is needed: metadata \"authorization: Bearer TOKEN\"",
        .unknown = "the token is not known here",
    };

    if (!private && !config->token_file && !config->tls.ca) {
        log_warn("coordinator: whoever reaches this address may use it listen=%s", config->listen);
    } else if (!private && !config->tls.cert) {
        log_warn("coordinator: tokens and texts cross the network unencrypted listen=%s",
                 config->listen);
    }
    return callers_open(&it->callers, &callers);
}

static bool is_alive(const void *service)
{
    return service_is_alive(service);
}

static status open_all(struct coordinator *it)
{
    status st = load_tokenizer(it);

    if (!st) {
        st = find_token_classes(it);
    }
    if (!st) {
        st = load_profiles(it);
    }
    if (!st) {
        st = health_open(&it->health);
    }
    if (!st) {
        st = open_views(it);
    }
    if (!st) {
        st = open_service(it);
    }
    if (!st) {
        st = health_watch_liveness(it->health, is_alive, it->service);
    }
    if (!st) {
        st = open_frontend(it);
    }
    if (!st) {
        st = open_callers(it);
    }
    if (!st && it->config.reflection) {
        st = reflection_open(&it->reflection);
    }
    return st ? st : start_server(it);
}

static void close_all(struct coordinator *it)
{
    const struct ending ending = {.health = it->health,
                                  .service = it->service,
                                  .window_ms = it->config.drain_window_ms,
                                  .drain_ms = it->config.drain_timeout_ms};

    if (it->server) {
        ending_drain(&ending);
    }
    health_stop(it->health);
    rpc_server_stop(it->server, LAST_WORDS_MS);
    frontend_stop(it->frontend); /* nothing reaches the service any more */
    service_close(it->service);
    frontend_close(it->frontend);
    callers_close(it->callers);
    reflection_close(it->reflection);
    web_close(it->web);
    health_port_close(it->health_port);
    meters_close(it->meters);
    health_close(it->health);
    profiles_close(it->profiles);
    chat_free(it->chat);
    tokenizer_free(it->tokenizer);
    free(it->special_ids.ids);
    free(it->punct_ids.ids);
}

/* The one line on stdout: whoever started us with port 0 reads it. */
static status say_where(const struct coordinator *it)
{
    const char *listen = it->config.listen;
    int host = (int)(strrchr(listen, ':') - listen);

    if (printf("winnow-coordinator: listening on %.*s:%d\n", host, listen,
               rpc_server_port(it->server)) < 0 ||
        fflush(stdout) != 0) {
        return status_fail(STATUS_INTERNAL, "cannot write to stdout: %s", strerror(errno));
    }
    return STATUS_OK;
}

static status run(struct coordinator *it)
{
    status st = config_load_model(&it->config);

    if (!st) {
        st = open_all(it);
    }
    if (!st) {
        st = say_where(it);
    }
    if (!st) {
        st = ending_await();
    }
    struct failure failure;
    status_save(&failure, st);
    close_all(it);
    return st ? status_fail(failure.code, "%s", failure.text) : STATUS_OK;
}

/* Arenas of the allocator.  With one for each of many threads, every arena grows to the largest
 * crowd of requests that its thread ever met, and the process for hours. */
enum { ARENAS = 2 };

int main(int argc, char **argv)
{
    static struct coordinator it;
    enum options_outcome outcome;

    if (config_parse(&it.config, argc, argv, &outcome)) {
        fprintf(stderr, "winnow-coordinator: %s\n", status_text());
        return 2;
    }
    if (outcome != OPTIONS_RUN) {
        return 0;
    }
    (void)mallopt(M_ARENA_MAX, ARENAS);
    log_init("winnow-coordinator", it.config.log_level, it.config.log_json);
    ending_watch_signals();
    rpc_init();
    status st = run(&it);
    rpc_fini();
    if (st) {
        fprintf(stderr, "winnow-coordinator: %s\n", status_text());
        return 1;
    }
    return 0;
}
