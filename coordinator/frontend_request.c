#include "coordinator/frontend_request.h"

#include "common/clock.h"
#include "common/method_wire.h"
#include "coordinator/message.h"
#include "coordinator/tokenizer/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* ---- text and ids ---- */

status frontend_request_text(const ProtobufCBinaryData *text, const char *field)
{
    const uint8_t *nul = text->len ? memchr(text->data, 0, text->len) : NULL;

    if (nul) {
        return status_fail(STATUS_INVALID, "%s has a NUL at byte %zu", field,
                           (size_t)(nul - text->data));
    }
    if (text->len && !utf8_is_valid((const char *)text->data, text->len)) {
        return status_fail(STATUS_INVALID, "%s is not valid UTF-8", field);
    }
    return STATUS_OK;
}

status frontend_request_id(const ProtobufCBinaryData *id)
{
    if (id->len > REQUEST_MAX_ID) {
        return status_fail(STATUS_INVALID, "request_id has %zu bytes; the limit is %d", id->len,
                           REQUEST_MAX_ID);
    }
    for (size_t i = 0; i < id->len; i++) {
        if (id->data[i] < 0x20 || id->data[i] > 0x7E) {
            return status_fail(STATUS_INVALID,
                               "request_id has the byte 0x%02x at %zu; it must be printable ASCII",
                               id->data[i], i);
        }
    }
    return STATUS_OK;
}

status frontend_request_ids(const struct frontend_rules *rules, const uint32_t *ids, size_t n,
                            const char *field)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= (uint32_t)rules->model->vocab) {
            return status_fail(STATUS_INVALID, "%s[%zu] is %u; the vocabulary has %d", field, i,
                               ids[i], rules->model->vocab);
        }
    }
    return STATUS_OK;
}

status frontend_request_needs_text(const struct frontend_rules *rules, const char *field)
{
    if (!rules->tokenizer) {
        return status_fail(STATUS_INVALID,
                           "%s: this model has no tokenizer.json; only tokens prompts are served",
                           field);
    }
    return STATUS_OK;
}

/* ---- the prompt ---- */

static status too_long(const struct frontend_rules *rules, size_t n_prompt, uint32_t max_tokens)
{
    return status_fail(STATUS_OUT_OF_RANGE,
                       "a prompt of %zu tokens and max_tokens %u exceed the context of %u tokens",
                       n_prompt, max_tokens, rules->max_context);
}

/* Text that is checked becomes the prompt; `field` names it in errors. */
static status take_encoded(struct request *request, const struct frontend_rules *rules,
                           struct slice_of_text text, bool add_special, const char *field)
{
    struct token_ids ids = {NULL, 0};
    status st = tokenizer_encode(rules->tokenizer, text.data, text.bytes, add_special, &ids);

    if (!st && ids.n > rules->max_context) {
        st = too_long(rules, ids.n, request->sampling.max_tokens);
    }
    if (!st && !ids.n) {
        st = status_fail(STATUS_INVALID, "the prompt is empty: %s encodes to no tokens", field);
    }
    if (!st) {
        char what[32];
        snprintf(what, sizeof(what), "%s: token", field);
        st = frontend_request_ids(rules, ids.ids, ids.n, what);
    }
    if (st) {
        free(ids.ids);
        return st;
    }
    request->prompt = ids.ids;
    request->n_prompt = (uint32_t)ids.n;
    return STATUS_OK;
}

static status take_text(struct request *request, const struct frontend_rules *rules,
                        const Winnow__V1__GenerateRequest *m)
{
    bool add_special = m->_add_special_tokens_case ? m->add_special_tokens != 0 : true;
    status st = frontend_request_text(&m->text, "text");

    if (!st && !m->text.len) {
        return status_fail(STATUS_INVALID, "the prompt is empty: text has no characters");
    }
    if (!st) {
        st = frontend_request_needs_text(rules, "text");
    }
    if (st) {
        return st;
    }
    const struct slice_of_text text = {(const char *)m->text.data, m->text.len};
    double start = clock_ms();
    st = take_encoded(request, rules, text, add_special, "text");
    request->tokenize_ms = clock_ms() - start;
    return st;
}

/* A list that outlives its message. */
static status copy_list(uint32_t **out, const uint32_t *from, size_t n)
{
    *out = n ? malloc(n * sizeof(**out)) : NULL;
    if (n && !*out) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %zu ids", n);
    }
    if (n) {
        memcpy(*out, from, n * sizeof(**out));
    }
    return STATUS_OK;
}

static status take_tokens(struct request *request, const struct frontend_rules *rules,
                          const Winnow__V1__GenerateRequest *m)
{
    if (m->_add_special_tokens_case && m->add_special_tokens) {
        return status_fail(STATUS_INVALID, "add_special_tokens contradicts a tokens prompt: it is "
                                           "for text");
    }
    if (!m->tokens->n_ids) {
        return status_fail(STATUS_INVALID, "the prompt is empty: tokens has no ids");
    }
    if (m->tokens->n_ids > rules->max_context) {
        return too_long(rules, m->tokens->n_ids, request->sampling.max_tokens);
    }
    status st = frontend_request_ids(rules, m->tokens->ids, m->tokens->n_ids, "tokens.ids");
    if (!st) {
        st = copy_list(&request->prompt, m->tokens->ids, m->tokens->n_ids);
        request->n_prompt = (uint32_t)m->tokens->n_ids;
    }
    return st;
}

static status check_chat(const struct frontend_rules *rules, const Winnow__V1__Chat *chat)
{
    status st = STATUS_OK;

    if (!chat->n_messages) {
        return status_fail(STATUS_INVALID, "the prompt is empty: chat has no messages");
    }
    if (chat->n_messages > FRONTEND_MAX_CHAT) {
        return status_fail(STATUS_INVALID, "chat has %zu messages; the limit is %d",
                           chat->n_messages, FRONTEND_MAX_CHAT);
    }
    for (size_t i = 0; !st && i < chat->n_messages; i++) {
        st = frontend_request_text(&chat->messages[i]->role, "chat.messages.role");
        if (!st) {
            st = frontend_request_text(&chat->messages[i]->content, "chat.messages.content");
        }
    }
    if (!st) {
        st = frontend_request_needs_text(rules, "chat");
    }
    if (!st && !rules->chat) {
        st = status_fail(STATUS_UNIMPLEMENTED, "chat: this server has no chat templates; send text "
                                               "instead");
    }
    return st;
}

/* What the template says is all there is: it begins the text itself. */
static status take_chat(struct request *request, const struct frontend_rules *rules,
                        const Winnow__V1__GenerateRequest *m)
{
    const Winnow__V1__Chat *chat = m->chat;
    struct slice_of_text text = {NULL, 0};
    char *rendered = NULL;

    if (m->_add_special_tokens_case && m->add_special_tokens) {
        return status_fail(STATUS_INVALID, "add_special_tokens contradicts a chat prompt: the "
                                           "model's chat template adds them");
    }
    status st = check_chat(rules, chat);
    if (st) {
        return st;
    }
    struct chat_message *messages = malloc(chat->n_messages * sizeof(*messages));
    if (!messages) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for %zu messages", chat->n_messages);
    }
    for (size_t i = 0; i < chat->n_messages; i++) {
        const Winnow__V1__ChatMessage *from = chat->messages[i];
        messages[i] =
            (struct chat_message){(const char *)from->role.data, (const char *)from->content.data,
                                  from->role.len, from->content.len};
    }
    double start = clock_ms();
    st = chat_render(rules->chat, messages, chat->n_messages, &rendered, &text.bytes);
    text.data = rendered;
    if (!st && !text.bytes) {
        st = status_fail(STATUS_INVALID, "the prompt is empty: the chat renders no text");
    }
    if (!st) {
        st = take_encoded(request, rules, text, false, "chat");
    }
    request->tokenize_ms = clock_ms() - start;
    free(rendered);
    free(messages);
    return st;
}

static status take_prompt(struct request *request, const struct frontend_rules *rules,
                          const Winnow__V1__GenerateRequest *m)
{
    switch (m->prompt_case) {
    case WINNOW__V1__GENERATE_REQUEST__PROMPT_TEXT:
        return take_text(request, rules, m);
    case WINNOW__V1__GENERATE_REQUEST__PROMPT_TOKENS:
        return take_tokens(request, rules, m);
    case WINNOW__V1__GENERATE_REQUEST__PROMPT_CHAT:
        return take_chat(request, rules, m);
    default:
        return status_fail(STATUS_INVALID, "the prompt is empty: none of text, tokens, chat");
    }
}

/* ---- sampling ---- */

/* The range is min <= value <= max, or min < value <= max when `open`. */
static status take_float(float *out, bool is_set, float value, double min, double max, bool open,
                         const char *field)
{
    if (!is_set) {
        return STATUS_OK;
    }
    /* A NaN fails every comparison, so it is refused as well. */
    if (!((open ? value > min : value >= min) && value <= max)) {
        return status_fail(STATUS_INVALID, "sampling.%s is %g; it must be %s %g and at most %g",
                           field, (double)value, open ? "above" : "at least", min, max);
    }
    *out = value;
    return STATUS_OK;
}

static status take_probabilities(struct sampling *out, const Winnow__V1__Sampling *m)
{
    status st = take_float(&out->temperature, m->_temperature_case != 0, m->temperature, 0.0,
                           FRONTEND_MAX_TEMPERATURE, false, "temperature");

    if (!st) {
        st = take_float(&out->top_p, m->_top_p_case != 0, m->top_p, 0.0, 1.0, true, "top_p");
    }
    if (!st) {
        st = take_float(&out->min_p, m->_min_p_case != 0, m->min_p, 0.0, 1.0, false, "min_p");
    }
    if (!st && m->_top_k_case) {
        out->top_k = m->top_k;
    }
    return st;
}

static status take_penalties(struct sampling *out, const Winnow__V1__Sampling *m)
{
    status st = take_float(&out->repetition_penalty, m->_repetition_penalty_case != 0,
                           m->repetition_penalty, 0.0, 100.0, true, "repetition_penalty");

    if (!st) {
        st = take_float(&out->frequency_penalty, m->_frequency_penalty_case != 0,
                        m->frequency_penalty, -2.0, 2.0, false, "frequency_penalty");
    }
    if (!st) {
        st = take_float(&out->presence_penalty, m->_presence_penalty_case != 0, m->presence_penalty,
                        -2.0, 2.0, false, "presence_penalty");
    }
    return st;
}

static status take_counts(struct request *out, const Winnow__V1__Sampling *m)
{
    struct sampling *sampling = &out->sampling;

    if (m->_max_tokens_case) {
        sampling->max_tokens = m->max_tokens;
    }
    if (m->_min_tokens_case) {
        sampling->min_tokens = m->min_tokens;
    }
    if (!sampling->max_tokens) {
        return status_fail(STATUS_INVALID, "sampling.max_tokens is 0; it must be at least 1");
    }
    if (sampling->min_tokens > sampling->max_tokens) {
        return status_fail(STATUS_INVALID, "sampling.min_tokens is %u, but max_tokens is %u",
                           sampling->min_tokens, sampling->max_tokens);
    }
    if (m->_n_case && (m->n < 1 || m->n > REQUEST_MAX_SAMPLES)) {
        return status_fail(STATUS_INVALID, "sampling.n is %u; it must be 1 to %d", m->n,
                           REQUEST_MAX_SAMPLES);
    }
    if (m->_logprobs_case && m->logprobs > PLAN_MAX_LOGPROBS) {
        return status_fail(STATUS_INVALID, "sampling.logprobs is %u; it must be 0 to %d",
                           m->logprobs, PLAN_MAX_LOGPROBS);
    }
    if (m->_n_case) {
        out->n_samples = m->n;
    }
    sampling->logprobs = m->_logprobs_case ? 1 + m->logprobs : 0;
    return STATUS_OK;
}

static status take_stop_strings(const struct frontend_rules *rules, struct stop_set *stops,
                                const Winnow__V1__Sampling *m)
{
    status st = m->n_stop ? frontend_request_needs_text(rules, "sampling.stop") : STATUS_OK;

    if (!st && m->n_stop > STOP_MAX_STRINGS) {
        st = status_fail(STATUS_INVALID, "sampling.stop has %zu strings; the limit is %d",
                         m->n_stop, STOP_MAX_STRINGS);
    }
    for (size_t i = 0; !st && i < m->n_stop; i++) {
        const ProtobufCBinaryData *text = &m->stop[i];
        struct stop_string *stop = &stops->strings[i];
        st = frontend_request_text(text, "sampling.stop");
        if (!st && (!text->len || text->len > STOP_MAX_BYTES)) {
            st = status_fail(STATUS_INVALID, "sampling.stop[%zu] has %zu bytes; it must be 1 to %d",
                             i, text->len, STOP_MAX_BYTES);
        }
        if (!st) {
            memcpy(stop->text, text->data, text->len);
            stop->bytes = (unsigned short)text->len;
            stops->n++;
        }
    }
    return st;
}

static status take_stop_ids(struct request *out, const struct frontend_rules *rules,
                            const Winnow__V1__Sampling *m)
{
    if (m->n_stop_token_ids > REQUEST_MAX_STOP_IDS) {
        return status_fail(STATUS_INVALID, "sampling.stop_token_ids has %zu ids; the limit is %d",
                           m->n_stop_token_ids, REQUEST_MAX_STOP_IDS);
    }
    status st = frontend_request_ids(rules, m->stop_token_ids, m->n_stop_token_ids,
                                     "sampling.stop_token_ids");
    for (size_t i = 0; !st && i < m->n_stop_token_ids; i++) {
        out->stop_ids[out->n_stop_ids++] = m->stop_token_ids[i];
    }
    return st;
}

static status take_sampling(struct request *out, const struct frontend_rules *rules,
                            struct stop_set *stops, const Winnow__V1__Sampling *message)
{
    static const Winnow__V1__Sampling unset = WINNOW__V1__SAMPLING__INIT;
    const Winnow__V1__Sampling *m = message ? message : &unset;

    out->n_samples = 1;
    out->sampling = (struct sampling){.max_tokens = 256, .top_p = 1, .repetition_penalty = 1};
    out->ignore_eos = m->_ignore_eos_case && m->ignore_eos;
    if (m->_seed_case) {
        out->sampling.seed = m->seed;
    } else if (getrandom(&out->sampling.seed, sizeof(out->sampling.seed), 0) !=
               sizeof(out->sampling.seed)) {
        return status_fail(STATUS_INTERNAL, "the system has no random seed");
    }
    status st = take_probabilities(&out->sampling, m);
    if (!st) {
        st = take_stop_strings(rules, stops, m);
    }
    if (!st) {
        st = take_stop_ids(out, rules, m);
    }
    if (!st) {
        st = take_counts(out, m);
    }
    return st ? st : take_penalties(&out->sampling, m);
}

/* ---- compression and trace ---- */

/* The lists of the parameters, moved out of the message. */
static status own_lists(struct request *out)
{
    struct method_params *params = &out->params;
    size_t bytes = (size_t)params->n_head_scores * sizeof(*out->head_scores);

    if (params->n_head_scores > 0) {
        out->head_scores = malloc(bytes);
        if (!out->head_scores) {
            return status_fail(STATUS_EXHAUSTED, "out of memory for head scores");
        }
        memcpy(out->head_scores, params->head_scores, bytes);
    }
    status st =
        copy_list(&out->special_ids, params->fg_special_ids, (size_t)params->n_fg_special_ids);
    if (!st) {
        st = copy_list(&out->punct_ids, params->fg_punct_ids, (size_t)params->n_fg_punct_ids);
    }
    params->head_scores = out->head_scores;
    params->fg_special_ids = out->special_ids;
    params->fg_punct_ids = out->punct_ids;
    return st;
}

/* The scores that the name of a profile stands for; *headkv borrows them. */
static status take_profile(Winnow__V1__HeadKV *headkv, const struct frontend_rules *rules)
{
    const ProtobufCBinaryData *name = &headkv->profile;
    const float *scores;
    status st = frontend_request_text(name, "compression.headkv.profile");

    if (st || name->len == 0) {
        return st;
    }
    if (headkv->n_head_scores > 0) {
        return status_fail(STATUS_INVALID,
                           "compression.headkv: profile and head_scores contradict each other");
    }
    if (!rules->profiles) {
        return status_fail(STATUS_UNIMPLEMENTED,
                           "compression.headkv.profile: this server has no profiles");
    }
    st = profiles_find(rules->profiles, (const char *)name->data, name->len, &scores);
    if (!st) {
        headkv->head_scores = (float *)scores; /* only read, and copied by own_lists() */
        headkv->n_head_scores = (size_t)rules->model->layers * (size_t)rules->model->query_heads;
    }
    return st;
}

void frontend_request_token_classes(struct method_params *params,
                                    const struct frontend_rules *rules,
                                    const Winnow__V1__FastGen *message)
{
    if (params->method != METHOD_FASTGEN) {
        return;
    }
    if (!message || !message->fg_special_ids) {
        params->fg_special_ids = rules->special_ids.ids;
        params->n_fg_special_ids = (int)rules->special_ids.n;
    }
    if (!message || !message->fg_punct_ids) {
        params->fg_punct_ids = rules->punct_ids.ids;
        params->n_fg_punct_ids = (int)rules->punct_ids.n;
    }
}

static status take_compression(struct request *out, const struct frontend_rules *rules,
                               const Winnow__V1__Compression *m)
{
    Winnow__V1__Compression compression;
    Winnow__V1__HeadKV headkv;
    status st = STATUS_OK;

    if (m && m->headkv) {
        compression = *m;
        headkv = *m->headkv;
        compression.headkv = &headkv;
        m = &compression;
        st = take_profile(&headkv, rules);
    }
    if (!st) {
        st = method_from_wire(&out->params, m, rules->model, rules->default_method);
    }
    if (!st) {
        frontend_request_token_classes(&out->params, rules, m ? m->fastgen : NULL);
        st = own_lists(out);
    }
    return st;
}

static status take_trace(struct request *out, const struct frontend_rules *rules,
                         const Winnow__V1__Trace *m)
{
    if (!m) {
        return STATUS_OK;
    }
    out->trace = (m->selected_tokens ? TRACE_SELECTED : 0U) |
                 (m->prompt_logits ? TRACE_PROMPT_LOGITS : 0U) |
                 (m->step_logits ? TRACE_STEP_LOGITS : 0U);
    if (out->trace && !rules->enable_trace) {
        return status_fail(STATUS_PERMISSION,
                           "trace: this server shows neither selections nor logits; it was "
                           "started without --enable-trace");
    }
    return STATUS_OK;
}

/* ---- all of it ---- */

/* Cheap checks first, tokenizing last. */
static status take_request(struct request *out, const struct frontend_rules *rules,
                           struct stop_set *stops, const Winnow__V1__GenerateRequest *m)
{
    status st = frontend_request_id(&m->request_id);

    if (!st && m->request_id.len) {
        memcpy(out->request_id, m->request_id.data, m->request_id.len);
    }
    out->priority = m->_priority_case ? m->priority : 0;
    if (!st) {
        st = take_sampling(out, rules, stops, m->sampling);
    }
    if (!st) {
        st = take_compression(out, rules, m->compression);
    }
    if (!st) {
        st = take_trace(out, rules, m->trace);
    }
    if (!st) {
        st = take_prompt(out, rules, m);
    }
    if (!st && (uint64_t)out->n_prompt + out->sampling.max_tokens > rules->max_context) {
        st = too_long(rules, out->n_prompt, out->sampling.max_tokens);
    }
    return st;
}

status frontend_request_decode(const struct frontend_rules *rules, const uint8_t *data,
                               size_t bytes, struct request **out, struct stop_set *stops)
{
    ProtobufCMessage *message = NULL;
    struct request *request = calloc(1, sizeof(*request));

    *out = request;
    if (!request) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for a request");
    }
    request->deadline_ms = INT64_MAX;
    stops->n = 0;
    status st = message_unpack(&message, &winnow__v1__generate_request__descriptor, data, bytes);
    if (!st) {
        st = take_request(request, rules, stops, (const Winnow__V1__GenerateRequest *)message);
    }
    message_free(message);
    return st;
}
