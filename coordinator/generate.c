/* Generate: a request goes to the core, its tokens come back as text. */
#include "coordinator/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void take_own_failure(struct exchange *exchange, status st)
{
    if (!exchange->failure.code) {
        status_save(&exchange->failure, st);
        service_cancel(exchange->frontend->config.service, exchange->handle);
    }
}

/* Nothing is added behind `most` bytes that the client has left unread. */
static void send_or_fail(struct exchange *exchange, status st, struct frontend_packed *packed,
                         size_t most)
{
    if (st) {
        take_own_failure(exchange, st);
        return;
    }
    if (rpc_call_unsent_bytes(exchange->call) > most) {
        free(packed->data);
        take_own_failure(exchange, status_fail(STATUS_EXHAUSTED,
                                               "the client left more than %zu bytes unread", most));
        return;
    }
    exchange_send_take(exchange, packed); /* false: on_done cancels the request */
}

/* ---- the core's callbacks, on its thread ---- */

static void on_progress(struct request *request, const struct request_progress *progress)
{
    struct exchange *exchange = request->context;
    struct frontend_packed packed;

    account_progress(&exchange->account, progress, service_now());
    if (rpc_call_unsent_bytes(exchange->call)) {
        return; /* the client is behind: older news would only pile up */
    }
    send_or_fail(exchange, frontend_reply_progress(&packed, progress), &packed,
                 FRONTEND_MAX_BEHIND);
}

/* The text that id `id` makes whole and that no stop string can still claim. */
static status next_text(struct exchange *exchange, struct sample *sample, bool watch, uint32_t id,
                        const char **out, size_t *out_bytes)
{
    const char *piece = "";
    size_t bytes = 0;
    status st = token_stream_push(sample->tokens, id, &piece, &bytes);

    if (st) {
        return st;
    }
    return stop_text_push(&sample->text, &exchange->stops, watch, piece, bytes, out, out_bytes);
}

static bool on_token(struct request *request, uint32_t index, const struct result_token *token,
                     bool stop)
{
    struct exchange *exchange = request->context;
    struct sample *sample = &exchange->samples[index];
    struct frontend_packed packed;
    const char *text = "";
    size_t bytes = 0;
    status st = STATUS_OK;

    sample->n_tokens++;
    account_token(&exchange->account, &sample->last_ms, service_now());
    if (sample->tokens && !stop) {
        bool watch = sample->n_tokens >= request->sampling.min_tokens;
        st = next_text(exchange, sample, watch, token->id, &text, &bytes);
    }
    if (!st) {
        st = frontend_reply_token(&packed, index, token, text, bytes);
    }
    send_or_fail(exchange, st, &packed, FRONTEND_MAX_BEHIND);
    return sample->text.found >= 0;
}

/* What the decoder and the stop strings held back comes out now that no more follows. */
static status flush_text(struct exchange *exchange, uint32_t index)
{
    struct sample *sample = &exchange->samples[index];
    struct frontend_packed packed;
    const char *parts[2] = {"", ""};
    size_t bytes[2] = {0, 0};
    const char *piece = "";
    size_t piece_bytes = 0;
    status st = token_stream_finish(sample->tokens, &piece, &piece_bytes);

    for (int i = 0; i < 2 && !st; i++) {
        if (i == 0) {
            st = stop_text_push(&sample->text, &exchange->stops, true, piece, piece_bytes,
                                &parts[0], &bytes[0]);
        } else if (sample->text.found < 0) {
            stop_text_finish(&sample->text, &parts[1], &bytes[1]);
        }
        if (!st && bytes[i]) {
            st = frontend_reply_token(&packed, index, NULL, parts[i], bytes[i]);
            send_or_fail(exchange, st, &packed, FRONTEND_MAX_BEHIND);
        }
    }
    return st;
}

static void on_done(struct request *request, const struct request_done *done)
{
    struct exchange *exchange = request->context;
    struct sample *sample = &exchange->samples[done->sample];
    const struct stop_string *stop = NULL;
    struct request_done final = *done;
    struct frontend_packed packed;
    status st = STATUS_OK;

    if (sample->tokens && sample->text.found < 0) {
        st = flush_text(exchange, done->sample);
    }
    if (sample->text.found >= 0) {
        stop = &exchange->stops.strings[sample->text.found];
        final.reason = FINISH_STOP_STRING;
    }
    if (!st) {
        st = frontend_reply_done(&packed, &final, stop);
    }
    send_or_fail(exchange, st, &packed, FRONTEND_MAX_UNSENT);
    account_sample(&exchange->account, request, &final);
}

static void on_ended(struct request *request, const struct failure *failure, int64_t retry_after_ms)
{
    struct exchange *exchange = request->context;
    const struct failure *why = exchange->failure.code ? &exchange->failure : failure;

    if (why) {
        exchange_fail(exchange, status_fail(why->code, "%s", why->text), retry_after_ms);
    } else {
        exchange_close(exchange, STATUS_OK, "");
        rpc_call_finish(exchange->call, STATUS_OK, NULL, NULL, 0);
    }
    request_free(request);
    exchange_unref(exchange);
}

static const struct request_sink sink = {on_progress, on_token, on_done, on_ended};

/* ---- submission, on a thread of the pool ---- */

void generate_free_samples(struct exchange *exchange)
{
    for (uint32_t i = 0; i < exchange->n_samples; i++) {
        token_stream_close(exchange->samples[i].tokens);
        stop_text_fini(&exchange->samples[i].text);
    }
    free(exchange->samples);
    exchange->samples = NULL;
    exchange->n_samples = 0;
}

static status open_samples(struct exchange *exchange, uint32_t n)
{
    const struct tokenizer *tokenizer = exchange->frontend->config.rules.tokenizer;
    status st = STATUS_OK;

    exchange->samples = calloc(n, sizeof(*exchange->samples));
    if (!exchange->samples) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %u samples", n);
    }
    for (uint32_t i = 0; !st && i < n; i++) {
        exchange->n_samples++;
        stop_text_init(&exchange->samples[i].text);
        if (tokenizer) {
            st = token_stream_open(&exchange->samples[i].tokens, tokenizer, true);
        }
    }
    return st;
}

static int64_t deadline_of(struct exchange *exchange)
{
    int64_t left = rpc_call_time_left_ms(exchange->call);
    int64_t now = service_now_ms();

    return left > INT64_MAX - now ? INT64_MAX : now + left;
}

void generate_cancel(struct exchange *exchange)
{
    service_cancel(exchange->frontend->config.service, exchange->handle);
}

void generate_open_account(struct exchange *exchange)
{
    struct account *account = &exchange->account;

    account->meters = exchange->frontend->config.meters;
    account->handle = exchange->handle;
    account->arrived_ms = exchange->arrived_ms;
    snprintf(account->caller, sizeof(account->caller), "%s", rpc_call_caller(exchange->call));
    trace_context_id(account->trace_id, rpc_call_metadata(exchange->call, "traceparent"));
}

void generate_work(struct exchange *exchange)
{
    struct frontend *frontend = exchange->frontend;
    struct request *request = NULL;
    status st = frontend_request_decode(&frontend->config.rules, exchange->data, exchange->bytes,
                                        &request, &exchange->stops);

    account_request(&exchange->account, request);
    if (!st) {
        st = open_samples(exchange, request->n_samples);
    }
    if (st) {
        exchange_fail(exchange, st, 0);
        request_free(request);
        return;
    }
    request->handle = exchange->handle;
    snprintf(request->caller, sizeof(request->caller), "%s", rpc_call_caller(exchange->call));
    request->arrived_ms = exchange->arrived_ms;
    memcpy(request->trace_id, exchange->account.trace_id, sizeof(request->trace_id));
    request->deadline_ms = deadline_of(exchange);
    request->sink = &sink;
    request->context = exchange;
    atomic_fetch_add(&exchange->refs, 1); /* the request's, given back in on_ended() */
    st = service_submit_take(frontend->config.service, request);
    if (st) {
        exchange_fail(exchange, st, st == STATUS_EXHAUSTED ? FRONTEND_RETRY_MS : 0);
        request_free(request);
        exchange_unref(exchange);
        return;
    }
    if (atomic_load(&exchange->gone)) {
        generate_cancel(exchange);
    }
}
