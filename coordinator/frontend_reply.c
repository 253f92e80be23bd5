#include "coordinator/frontend_reply.h"

#include "common/method_wire.h"
#include "coordinator/message.h"

#include <stdlib.h>
#include <string.h>

/* protobuf-c has no const: what it packs, it only reads. */
static ProtobufCBinaryData borrow(const char *text, size_t bytes)
{
    return (ProtobufCBinaryData){.len = bytes, .data = (uint8_t *)text};
}

static ProtobufCBinaryData borrow_string(const char *text)
{
    return borrow(text, strlen(text));
}

static status pack(struct frontend_packed *out, const Winnow__V1__GenerateResponse *response)
{
    return message_pack(&out->data, &out->bytes, &response->base);
}

status frontend_reply_progress(struct frontend_packed *out, const struct request_progress *from)
{
    Winnow__V1__GenerateResponse response = WINNOW__V1__GENERATE_RESPONSE__INIT;
    Winnow__V1__Progress progress = WINNOW__V1__PROGRESS__INIT;

    progress.phase = (Winnow__V1__Phase)from->phase;
    progress.prompt_tokens = from->prompt_tokens;
    progress.tokens_done = from->tokens_done;
    progress.layer = from->layer;
    progress.layers = from->layers;
    progress.queue_position = from->queue_position;
    progress.fraction = from->fraction;
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_PROGRESS;
    response.progress = &progress;
    return pack(out, &response);
}

static void fill_logprob(Winnow__V1__Logprob *out, const struct result_token *token)
{
    const struct result_logprob *from = token->logprob;

    out->id = token->id;
    out->logprob = from->logprob;
    out->n_top_ids = from->n_top;
    out->top_ids = (uint32_t *)from->top_ids;
    out->n_top_logprobs = from->n_top;
    out->top_logprobs = (float *)from->top_logprobs;
}

status frontend_reply_token(struct frontend_packed *out, uint32_t sample,
                            const struct result_token *token, const char *text, size_t bytes)
{
    Winnow__V1__GenerateResponse response = WINNOW__V1__GENERATE_RESPONSE__INIT;
    Winnow__V1__Tokens tokens = WINNOW__V1__TOKENS__INIT;
    Winnow__V1__Logprob logprob = WINNOW__V1__LOGPROB__INIT;
    Winnow__V1__Logprob *logprobs[] = {&logprob};
    uint32_t id = token ? token->id : 0;

    tokens.index = sample;
    tokens.n_ids = token ? 1 : 0;
    tokens.ids = &id;
    tokens.text = borrow(text, bytes);
    if (token && token->logprob) {
        fill_logprob(&logprob, token);
        tokens.n_logprobs = 1;
        tokens.logprobs = logprobs;
    }
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_TOKENS;
    response.tokens = &tokens;
    return pack(out, &response);
}

/* ---- Done ---- */

/* The trace as messages: parts of one allocation each. */
struct trace_messages {
    Winnow__V1__TraceResult result;
    Winnow__V1__LayerTrace *layers;
    Winnow__V1__LayerTrace **layer_list;
    Winnow__V1__HeadTrace *heads;
    Winnow__V1__HeadTrace **head_list;
    Winnow__V1__Logits *steps;
    Winnow__V1__Logits **step_list;
};

static void trace_free(struct trace_messages *m)
{
    free(m->layers);
    free(m->layer_list);
    free(m->heads);
    free(m->head_list);
    free(m->steps);
    free(m->step_list);
}

static size_t count_heads(const struct request_trace *trace)
{
    size_t n = 0;

    for (uint32_t i = 0; i < trace->n_layers; i++) {
        n += trace->layers[i].n_heads;
    }
    return n;
}

static status trace_allocate(struct trace_messages *m, const struct request_trace *trace)
{
    size_t n_heads = count_heads(trace);

    m->layers = calloc((size_t)trace->n_layers + 1, sizeof(*m->layers));
    m->layer_list = calloc((size_t)trace->n_layers + 1, sizeof(void *));
    m->heads = calloc(n_heads + 1, sizeof(*m->heads));
    m->head_list = calloc(n_heads + 1, sizeof(void *));
    m->steps = calloc((size_t)trace->n_steps + 1, sizeof(*m->steps));
    m->step_list = calloc((size_t)trace->n_steps + 1, sizeof(void *));
    if (!m->layers || !m->layer_list || !m->heads || !m->head_list || !m->steps || !m->step_list) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a trace");
    }
    return STATUS_OK;
}

static void trace_layers(struct trace_messages *m, const struct request_trace *trace)
{
    size_t next = 0;

    for (uint32_t i = 0; i < trace->n_layers; i++) {
        const struct trace_layer *from = &trace->layers[i];
        Winnow__V1__LayerTrace *layer = &m->layers[i];
        winnow__v1__layer_trace__init(layer);
        layer->layer = from->layer;
        layer->tokens_in = from->tokens_in;
        layer->n_heads = from->n_heads;
        layer->heads = &m->head_list[next];
        m->layer_list[i] = layer;
        for (uint32_t j = 0; j < from->n_heads; j++) {
            Winnow__V1__HeadTrace *head = &m->heads[next];
            winnow__v1__head_trace__init(head);
            head->head = from->heads[j].head;
            head->n_kept = from->heads[j].n_kept;
            head->kept = (uint32_t *)from->heads[j].kept;
            head->n_kept_after_decode = from->heads[j].n_live;
            head->kept_after_decode = (uint32_t *)from->heads[j].live;
            if (from->heads[j].policy) {
                head->policy.len = strlen(from->heads[j].policy);
                head->policy.data = (uint8_t *)from->heads[j].policy;
            }
            m->head_list[next++] = head;
        }
    }
}

static void trace_fill(struct trace_messages *m, const struct request_trace *trace)
{
    winnow__v1__trace_result__init(&m->result);
    trace_layers(m, trace);
    m->result.n_layers = trace->n_layers;
    m->result.layers = m->layer_list;
    m->result.n_propagated = trace->n_propagated;
    m->result.propagated = (uint32_t *)trace->propagated;
    m->result.n_prompt_logits = trace->prompt_logits ? trace->vocab : 0;
    m->result.prompt_logits = (float *)trace->prompt_logits;
    for (uint32_t i = 0; i < trace->n_steps; i++) {
        winnow__v1__logits__init(&m->steps[i]);
        m->steps[i].n_values = trace->vocab;
        m->steps[i].values = (float *)trace->step_logits[i];
        m->step_list[i] = &m->steps[i];
    }
    m->result.n_step_logits = trace->n_steps;
    m->result.step_logits = m->step_list;
}

static void fill_usage(Winnow__V1__Usage *out, const struct request_usage *from)
{
    winnow__v1__usage__init(out);
    out->prompt_tokens = from->prompt_tokens;
    out->completion_tokens = from->completion_tokens;
    out->propagated_tokens = from->propagated_tokens;
    out->kv_tokens_kept = from->kv_tokens_kept;
    out->kv_bytes = from->kv_bytes;
    out->kv_bytes_full = from->kv_bytes_full;
}

static void fill_timing(Winnow__V1__Timing *out, const struct request_timing *from)
{
    winnow__v1__timing__init(out);
    out->queue_ms = from->queue_ms;
    out->tokenize_ms = from->tokenize_ms;
    out->prefill_ms = from->prefill_ms;
    out->ttft_ms = from->ttft_ms;
    out->decode_ms = from->decode_ms;
    out->total_ms = from->total_ms;
    out->collective_ms = from->collective_ms;
}

static status pack_checked(struct frontend_packed *out,
                           const Winnow__V1__GenerateResponse *response)
{
    size_t bytes = winnow__v1__generate_response__get_packed_size(response);

    if (bytes > FRONTEND_MAX_REPLY) {
        return status_fail(STATUS_EXHAUSTED,
                           "the trace makes a reply of %zu bytes; the limit is %d: ask for less",
                           bytes, FRONTEND_MAX_REPLY);
    }
    return pack(out, response);
}

status frontend_reply_done(struct frontend_packed *out, const struct request_done *from,
                           const struct stop_string *stop)
{
    Winnow__V1__GenerateResponse response = WINNOW__V1__GENERATE_RESPONSE__INIT;
    Winnow__V1__Done done = WINNOW__V1__DONE__INIT;
    Winnow__V1__Usage usage;
    Winnow__V1__Timing timing;
    struct trace_messages trace = {.layers = NULL};
    const struct request_trace *t = &from->trace;
    status st = STATUS_OK;

    fill_usage(&usage, &from->usage);
    fill_timing(&timing, &from->timing);
    done.index = from->sample;
    done.finish_reason = (Winnow__V1__FinishReason)from->reason;
    done.seed = from->seed;
    done.usage = &usage;
    done.timing = &timing;
    if (stop) {
        done.stop_string = borrow(stop->text, stop->bytes);
    }
    if (t->n_layers || t->prompt_logits || t->n_steps) {
        st = trace_allocate(&trace, t);
        if (!st) {
            trace_fill(&trace, t);
            done.trace = &trace.result;
        }
    }
    response.event_case = WINNOW__V1__GENERATE_RESPONSE__EVENT_DONE;
    response.done = &done;
    if (!st) {
        st = pack_checked(out, &response);
    }
    trace_free(&trace);
    return st;
}

/* ---- GetModel ---- */

static size_t fill_methods(struct method_wire *wires, Winnow__V1__Compression **list,
                           const struct frontend_rules *rules)
{
    struct method_params params;
    size_t n = 0;

    for (int method = 1; method < METHOD_COUNT; method++) {
        if (method_supported((enum method)method)) {
            method_defaults(&params, (enum method)method, rules->model);
            frontend_request_token_classes(&params, rules, NULL);
            method_to_wire(&wires[n], &params);
            list[n] = &wires[n].compression;
            n++;
        }
    }
    return n;
}

status frontend_reply_model(struct frontend_packed *out, const struct frontend_rules *rules,
                            enum dtype dtype, int tensor_parallel)
{
    const struct model_config *from = rules->model;
    struct method_wire wires[METHOD_COUNT];
    Winnow__V1__Compression *methods[METHOD_COUNT];
    Winnow__V1__Model model = WINNOW__V1__MODEL__INIT;
    uint32_t eos[MODEL_MAX_EOS];

    for (int i = 0; i < from->n_eos_ids; i++) {
        eos[i] = (uint32_t)from->eos_ids[i];
    }
    model.name = borrow_string(from->name);
    model.architecture = borrow_string(from->architecture);
    model.dtype = borrow_string(dtype_name(dtype));
    model.layers = (uint32_t)from->layers;
    model.hidden_size = (uint32_t)from->hidden;
    model.query_heads = (uint32_t)from->query_heads;
    model.kv_heads = (uint32_t)from->kv_heads;
    model.head_dim = (uint32_t)from->head_dim;
    model.vocab_size = (uint32_t)from->vocab;
    model.max_context = rules->max_context;
    model.tensor_parallel = (uint32_t)tensor_parallel;
    model.n_eos_ids = (size_t)from->n_eos_ids;
    model.eos_ids = eos;
    model.default_method = (Winnow__V1__Method)rules->default_method;
    model.n_methods = fill_methods(wires, methods, rules);
    model.methods = methods;
    return message_pack(&out->data, &out->bytes, &model.base);
}
