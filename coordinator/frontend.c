#include "coordinator/frontend.h"

#include "common/log.h"
#include "coordinator/exchange.h"
#include "coordinator/message.h"
#include "winnow/v1/inference.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- exchanges ---- */

void exchange_unref(struct exchange *exchange)
{
    if (atomic_fetch_sub(&exchange->refs, 1) != 1) {
        return;
    }
    exchange_close(exchange, STATUS_CANCELLED, "the client went away");
    generate_free_samples(exchange);
    rpc_call_unref(exchange->call);
    free(exchange->data);
    free(exchange);
}

void exchange_close(struct exchange *exchange, status code, const char *why)
{
    if (!exchange->handle) {
        return;
    }
    /* A client whose time is up cancels; its time began before ours by the way to here. */
    if (code == STATUS_CANCELLED && rpc_call_time_left_ms(exchange->call) <= FRONTEND_LATE_MS) {
        code = STATUS_DEADLINE;
    }
    account_close(&exchange->account, code, why, service_now());
}

void exchange_fail(struct exchange *exchange, status st, int64_t retry_after_ms)
{
    char value[32];
    const char *const trailing[] = {"retry-after-ms", value};

    snprintf(value, sizeof(value), "%lld", (long long)retry_after_ms);
    exchange_close(exchange, st, status_text());
    rpc_call_finish(exchange->call, st, status_text(), trailing, retry_after_ms > 0 ? 1 : 0);
}

bool exchange_send_take(struct exchange *exchange, struct frontend_packed *packed)
{
    bool sent = rpc_call_send(exchange->call, packed->data, packed->bytes);

    free(packed->data);
    packed->data = NULL;
    return sent;
}

static void run_job(struct job *job)
{
    struct exchange *exchange = (struct exchange *)job; /* its first member */

    if (!atomic_load(&exchange->gone)) {
        exchange->work(exchange);
    }
    free(exchange->data);
    exchange->data = NULL;
    exchange_unref(exchange);
}

/* ---- the methods, on a thread of the pool ---- */

static void reply(struct exchange *exchange, status st, struct frontend_packed *packed)
{
    if (st) {
        exchange_fail(exchange, st, 0);
        return;
    }
    exchange_send_take(exchange, packed);
    rpc_call_finish(exchange->call, STATUS_OK, NULL, NULL, 0);
}

static status tokenize(struct frontend *frontend, const Winnow__V1__TokenizeRequest *request,
                       struct frontend_packed *out)
{
    const struct frontend_rules *rules = &frontend->config.rules;
    Winnow__V1__TokenizeResponse response = WINNOW__V1__TOKENIZE_RESPONSE__INIT;
    bool add_special = request->_add_special_tokens_case ? request->add_special_tokens : true;
    struct token_ids ids = {NULL, 0};
    status st = frontend_request_needs_text(rules, "text");

    if (!st) {
        st = frontend_request_text(&request->text, "text");
    }
    if (!st) {
        const char *text = request->text.len ? (const char *)request->text.data : "";
        st = tokenizer_encode(rules->tokenizer, text, request->text.len, add_special, &ids);
    }
    if (!st) {
        response.ids = ids.ids;
        response.n_ids = ids.n;
        st = message_pack(&out->data, &out->bytes, &response.base);
    }
    free(ids.ids);
    return st;
}

static void tokenize_work(struct exchange *exchange)
{
    ProtobufCMessage *message = NULL;
    struct frontend_packed packed;
    status st = message_unpack(&message, &winnow__v1__tokenize_request__descriptor, exchange->data,
                               exchange->bytes);

    if (!st) {
        st = tokenize(exchange->frontend, (const Winnow__V1__TokenizeRequest *)message, &packed);
    }
    message_free(message);
    reply(exchange, st, &packed);
}

static status detokenize(struct frontend *frontend, const Winnow__V1__DetokenizeRequest *request,
                         struct frontend_packed *out)
{
    const struct frontend_rules *rules = &frontend->config.rules;
    Winnow__V1__DetokenizeResponse response = WINNOW__V1__DETOKENIZE_RESPONSE__INIT;
    char *text = NULL;
    size_t bytes = 0;
    status st = frontend_request_needs_text(rules, "ids");

    if (!st) {
        st = frontend_request_ids(rules, request->ids, request->n_ids, "ids");
    }
    if (!st) {
        st = tokenizer_decode(rules->tokenizer, request->ids, request->n_ids,
                              request->skip_special_tokens, &text, &bytes);
    }
    if (!st && bytes > FRONTEND_MAX_REPLY) {
        st = status_fail(STATUS_EXHAUSTED, "the text has %zu bytes; the limit is %d", bytes,
                         FRONTEND_MAX_REPLY);
    }
    if (!st) {
        response.text.data = (uint8_t *)text;
        response.text.len = bytes;
        st = message_pack(&out->data, &out->bytes, &response.base);
    }
    free(text);
    return st;
}

static void detokenize_work(struct exchange *exchange)
{
    ProtobufCMessage *message = NULL;
    struct frontend_packed packed;
    status st = message_unpack(&message, &winnow__v1__detokenize_request__descriptor,
                               exchange->data, exchange->bytes);

    if (!st) {
        st =
            detokenize(exchange->frontend, (const Winnow__V1__DetokenizeRequest *)message, &packed);
    }
    message_free(message);
    reply(exchange, st, &packed);
}

/* ---- on completion threads: take the bytes and go ---- */

static struct exchange *exchange_create(struct frontend *frontend, struct rpc_call *call,
                                        const uint8_t *data, size_t bytes)
{
    struct exchange *exchange = calloc(1, sizeof(*exchange));
    uint8_t *copy = malloc(bytes + 1);

    if (!exchange || !copy) {
        free(exchange);
        free(copy);
        return NULL;
    }
    if (bytes) {
        memcpy(copy, data, bytes);
    }
    exchange->job.run = run_job;
    exchange->job.bytes = bytes;
    exchange->refs = 2; /* the call's and the job's */
    exchange->frontend = frontend;
    exchange->call = call;
    exchange->data = copy;
    exchange->bytes = bytes;
    exchange->arrived_ms = service_now();
    rpc_call_ref(call);
    return exchange;
}

static void start(struct frontend *frontend, struct rpc_call *call, const uint8_t *data,
                  size_t bytes, void (*work)(struct exchange *exchange))
{
    struct exchange *exchange = exchange_create(frontend, call, data, bytes);

    if (!exchange) {
        rpc_call_finish(call, STATUS_EXHAUSTED, "out of memory for a request", NULL, 0);
        return;
    }
    exchange->work = work;
    if (work == generate_work) {
        exchange->handle = service_next_handle(frontend->config.service);
        generate_open_account(exchange);
    }
    rpc_call_set_user(call, exchange);
    if (!jobs_put(frontend->jobs, &exchange->job)) {
        status st = status_fail(STATUS_EXHAUSTED, "%d requests wait to be read; try again",
                                JOBS_MAX_WAITING);
        exchange_fail(exchange, st, FRONTEND_RETRY_MS);
        exchange_unref(exchange); /* the job's */
    }
}

static void on_generate(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    start(context, call, data, bytes, generate_work);
}

static void on_tokenize(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    start(context, call, data, bytes, tokenize_work);
}

static void on_detokenize(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    start(context, call, data, bytes, detokenize_work);
}

static void on_get_model(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    const struct frontend *frontend = context;

    (void)data; /* the request has no fields */
    (void)bytes;
    if (rpc_call_send(call, frontend->model.data, frontend->model.bytes)) {
        rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
    }
}

static void on_call_done(struct rpc_call *call, bool cancelled, void *context)
{
    struct exchange *exchange = rpc_call_user(call);

    (void)context;
    if (!exchange) {
        return;
    }
    atomic_store(&exchange->gone, true);
    if (cancelled && exchange->handle) {
        generate_cancel(exchange);
    }
    exchange_unref(exchange); /* the call's */
}

/* ---- the service ---- */

status frontend_open(struct frontend **out, const struct frontend_config *config)
{
    struct frontend *frontend = calloc(1, sizeof(*frontend));

    if (!frontend) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the front end");
    }
    frontend->config = *config;
    status st = frontend_reply_model(&frontend->model, &config->rules, config->dtype,
                                     config->tensor_parallel);
    if (!st) {
        st = jobs_open(&frontend->jobs, FRONTEND_THREADS);
    }
    if (st) {
        frontend_close(frontend);
        return st;
    }
    *out = frontend;
    return STATUS_OK;
}

void frontend_stop(struct frontend *frontend)
{
    if (frontend) {
        jobs_stop(frontend->jobs);
    }
}

void frontend_close(struct frontend *frontend)
{
    if (!frontend) {
        return;
    }
    jobs_close(frontend->jobs);
    free(frontend->model.data);
    free(frontend);
}

void frontend_handlers(struct frontend *frontend, struct rpc_handler *out)
{
    static const struct {
        const char *path;
        void (*on_message)(struct rpc_call *, const uint8_t *, size_t, void *);
    } methods[FRONTEND_HANDLERS] = {
        {"/winnow.v1.Inference/Generate", on_generate},
        {"/winnow.v1.Inference/Tokenize", on_tokenize},
        {"/winnow.v1.Inference/Detokenize", on_detokenize},
        {"/winnow.v1.Inference/GetModel", on_get_model},
    };

    for (int i = 0; i < FRONTEND_HANDLERS; i++) {
        out[i] = (struct rpc_handler){
            .path = methods[i].path,
            .on_message = methods[i].on_message,
            .on_done = on_call_done,
            .max_message = FRONTEND_MAX_MESSAGE,
            .context = frontend,
        };
    }
}
