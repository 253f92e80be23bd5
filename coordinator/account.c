#include "coordinator/account.h"

#include "common/log.h"

#include <stdio.h>

void account_request(struct account *account, const struct request *request)
{
    if (!request) {
        return;
    }
    snprintf(account->request_id, sizeof(account->request_id), "%s", request->request_id);
    account->method = request->params.method;
    account->n_samples = request->n_samples;
    account->n_prompt = request->n_prompt;
    account->tokenize_ms = request->tokenize_ms;
    const struct log_field fields[] = {
        LOG_FIELD_TEXT("id", account->request_id),
        LOG_FIELD_TEXT("trace_id", account->trace_id),
        LOG_FIELD_INTEGER("handle", account->handle),
        LOG_FIELD_INTEGER("prompt_tokens", account->n_prompt),
    };
    log_event(LOG_DEBUG, "generate: request", fields, sizeof(fields) / sizeof(fields[0]));
}

void account_progress(struct account *account, const struct request_progress *progress, double now)
{
    account->phase = progress->phase;
    if (progress->phase == PHASE_QUEUED) { /* again, maybe: its group was lost */
        account->admitted_ms = 0;
    } else if (account->admitted_ms == 0) {
        account->admitted_ms = now;
    }
}

void account_token(struct account *account, double *last_ms, double now)
{
    if (account->first_ms == 0) {
        account->first_ms = now;
        account->phase = PHASE_DECODE;
        meters_first_token(account->meters, account->n_prompt, now - account->arrived_ms);
    }
    meters_token(account->meters, *last_ms > 0 ? now - *last_ms : -1);
    *last_ms = now;
    account->n_tokens++;
}

void account_sample(struct account *account, const struct request *request,
                    const struct request_done *done)
{
    account->reason = done->reason;
    account->n_done++;
    account->usage = done->usage;
    account->collective_ms = done->timing.collective_ms;
    account->scoring_ms = done->timing.scoring_ms;
    account->beside_ms = done->timing.beside_ms;
    meters_sample(account->meters, request, done);
}

/* Phases that were not reached have no time; the one in which the call ended has it until then. */
struct phases {
    double queue_ms, prefill_ms, ttft_ms, decode_ms, total_ms;
};

static struct phases phases_of(const struct account *account, double now)
{
    double began = account->arrived_ms + account->tokenize_ms;
    double admitted = account->admitted_ms > 0 ? account->admitted_ms : now;
    double first = account->first_ms > 0 ? account->first_ms : now;
    struct phases out = {.total_ms = now - account->arrived_ms};

    if (account->phase >= PHASE_QUEUED) {
        out.queue_ms = admitted - began;
    }
    if (account->phase >= PHASE_PREFILL) {
        out.prefill_ms = first - admitted;
    }
    if (account->first_ms > 0) {
        out.ttft_ms = first - account->arrived_ms;
        out.decode_ms = now - first;
    }
    return out;
}

static const char *phase_name(enum phase phase)
{
    static const char *const names[] = {
        "intake", [PHASE_QUEUED] = "queue", [PHASE_PREFILL] = "prefill", [PHASE_DECODE] = "decode"};

    return names[phase];
}

static const char *finish_name(enum finish reason)
{
    static const char *const names[] = {"", "stop_token", "stop_string", "length", "aborted"};

    return names[reason];
}

void account_close(struct account *account, status code, const char *why, double now)
{
    if (atomic_exchange(&account->closed, true)) {
        return;
    }
    const struct phases phases = phases_of(account, now);
    const char *method = account->method ? method_name(account->method) : "";
    const struct log_field fields[] = {
        LOG_FIELD_TEXT("id", account->request_id),
        LOG_FIELD_TEXT("trace_id", account->trace_id),
        LOG_FIELD_INTEGER("handle", account->handle),
        LOG_FIELD_TEXT("caller", account->caller),
        LOG_FIELD_TEXT("status", status_name(code)),
        LOG_FIELD_TEXT("finish", finish_name(account->reason)),
        LOG_FIELD_TEXT("phase", phase_name(account->phase)),
        LOG_FIELD_TEXT("method", method),
        LOG_FIELD_INTEGER("samples", account->n_samples),
        LOG_FIELD_INTEGER("prompt_tokens", account->n_prompt),
        LOG_FIELD_INTEGER("tokens", account->n_tokens),
        LOG_FIELD_INTEGER("propagated_tokens", account->usage.propagated_tokens),
        LOG_FIELD_INTEGER("kv_bytes", account->usage.kv_bytes),
        LOG_FIELD_INTEGER("kv_bytes_full", account->usage.kv_bytes_full),
        LOG_FIELD_NUMBER("tokenize_ms", account->tokenize_ms),
        LOG_FIELD_NUMBER("queue_ms", phases.queue_ms),
        LOG_FIELD_NUMBER("prefill_ms", phases.prefill_ms),
        LOG_FIELD_NUMBER("ttft_ms", phases.ttft_ms),
        LOG_FIELD_NUMBER("decode_ms", phases.decode_ms),
        LOG_FIELD_NUMBER("total_ms", phases.total_ms),
        LOG_FIELD_NUMBER("collective_ms", account->collective_ms),
        LOG_FIELD_NUMBER("scoring_ms", account->scoring_ms),
        LOG_FIELD_NUMBER("beside_ms", account->beside_ms),
        LOG_FIELD_TEXT("reason", code ? why : ""),
    };
    log_event(LOG_INFO, "generate: closed", fields, sizeof(fields) / sizeof(fields[0]));
    meters_outcome(account->meters, code);
}
