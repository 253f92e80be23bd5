#include "cli/generate_options.h"

#include "common/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNSET_INT INT64_MIN
#define UNSET_DOUBLE ((double)NAN)

enum { MAX_REPEATED = OPTION_LIST_MAX };

static status check(const struct generate_options *o)
{
    if (o->tokens_file && (o->file || o->prompt)) {
        return status_fail(STATUS_INVALID, "--tokens-file goes without --file and --prompt");
    }
    if (!o->tokens_file && !o->file && !o->prompt) {
        return status_fail(STATUS_INVALID, "give --file, --prompt or --tokens-file");
    }
    if (o->chat && o->tokens_file) {
        return status_fail(STATUS_INVALID, "--chat goes without --tokens-file");
    }
    if (o->system && !o->chat) {
        return status_fail(STATUS_INVALID, "--system goes with --chat");
    }
    if (o->system && !utf8_is_valid(o->system, strlen(o->system))) {
        return status_fail(STATUS_INVALID, "--system: not UTF-8 text");
    }
    return compression_options_check(&o->compression);
}

static const struct generate_options unset = {
    .access.server = "127.0.0.1:8600",
    .special = true,
    .priority = UNSET_INT,
    .deadline_s = 0,
    .max_tokens = UNSET_INT,
    .min_tokens = UNSET_INT,
    .top_k = UNSET_INT,
    .seed = UNSET_INT,
    .samples = 1,
    .logprobs = UNSET_INT,
    .temperature = UNSET_DOUBLE,
    .top_p = UNSET_DOUBLE,
    .min_p = UNSET_DOUBLE,
    .repetition_penalty = UNSET_DOUBLE,
    .frequency_penalty = UNSET_DOUBLE,
    .presence_penalty = UNSET_DOUBLE,
};

status generate_options_parse(struct generate_options *out, int argc, char **argv,
                              enum options_outcome *outcome)
{
    const double u32 = UINT32_MAX;
    struct generate_options *o = out;
    const struct option own[] = {
        {"file", OPTION_STRING, &o->file, "FILE", "the document; - is stdin", 0, 0},
        {"prompt", OPTION_STRING, &o->prompt, "TEXT", "the question, after the document", 0, 0},
        {"tokens-file", OPTION_STRING, &o->tokens_file, "FILE", "token ids instead of text", 0, 0},
        {"special", OPTION_FLAG, &o->special, NULL, "begin text as the tokenizer says", 0, 0},
        {"chat", OPTION_FLAG, &o->chat, NULL, "as a user's message, in the model's template", 0, 0},
        {"system", OPTION_STRING, &o->system, "TEXT", "the system message of a chat", 0, 0},
        {"json", OPTION_FLAG, &o->json, NULL, "one JSON object instead of text", 0, 0},
        {"json-file", OPTION_STRING, &o->json_file, "FILE", "the JSON object goes there as well", 0,
         0},
        {"quiet", OPTION_FLAG, &o->quiet, NULL, "no progress and no summary", 0, 0},
        {"request-id", OPTION_STRING, &o->request_id, "ID", "name in logs, and for aborting", 0, 0},
        {"priority", OPTION_INT, &o->priority, "N", "higher goes first", INT32_MIN, INT32_MAX},
        {"deadline", OPTION_DOUBLE, &o->deadline_s, "SECONDS", "give up then; 0: never", 0, 1e9},
        {"max-tokens", OPTION_INT, &o->max_tokens, "N", "tokens to generate", 1, u32},
        {"min-tokens", OPTION_INT, &o->min_tokens, "N", "no end before so many", 0, u32},
        {"temperature", OPTION_DOUBLE, &o->temperature, "X", "0: the likeliest token", 0, 1e9},
        {"top-p", OPTION_DOUBLE, &o->top_p, "X", "choose from this share", 0, 1},
        {"top-k", OPTION_INT, &o->top_k, "N", "choose from so many; 0: off", 0, u32},
        {"min-p", OPTION_DOUBLE, &o->min_p, "X", "at least this share of the best", 0, 1},
        {"repetition-penalty", OPTION_DOUBLE, &o->repetition_penalty, "X", "1: off", 0, 1e9},
        {"frequency-penalty", OPTION_DOUBLE, &o->frequency_penalty, "X", "0: off", -1e9, 1e9},
        {"presence-penalty", OPTION_DOUBLE, &o->presence_penalty, "X", "0: off", -1e9, 1e9},
        {"seed", OPTION_INT, &o->seed, "N", "of the random numbers", 0, 9e18},
        {"samples", OPTION_INT, &o->samples, "N", "answers", 1, GENERATE_MAX_SAMPLES},
        {"logprobs", OPTION_INT, &o->logprobs, "N", "show the token's and N likeliest (JSON)", 0,
         20},
        {"stop", OPTION_LIST, &o->stop, "TEXT", "end before this text", 0, 0},
        {"stop-id", OPTION_LIST, &o->stop_ids, "ID", "end at this token", 0, 0},
        {"ignore-eos", OPTION_FLAG, &o->ignore_eos, NULL, "go on after the end token", 0, 0},
    };
    enum { N_OWN = sizeof(own) / sizeof(own[0]) };
    struct option table[N_OWN + COMPRESSION_OPTIONS + SERVICE_ACCESS_OPTIONS];
    struct options options = {
        .program = "winnow generate",
        .synopsis = "Send a document and a question, stream the answer.",
        .epilog = "What is not given is left to the server.  Exit status: 0 success, 1 an error "
                  "told on\nstderr, 2 wrong usage, 130 interrupted.",
        .table = table,
        .n = N_OWN + COMPRESSION_OPTIONS + SERVICE_ACCESS_OPTIONS,
    };

    *o = unset;
    compression_options_init(&o->compression);
    memcpy(table, own, sizeof(own));
    compression_options_rows(table + N_OWN, &o->compression);
    service_access_rows(table + N_OWN + COMPRESSION_OPTIONS, &o->access);
    status st = options_parse(&options, argc, argv, outcome);
    return st || *outcome != OPTIONS_RUN ? st : check(o);
}

/* A message and what it points to; not to be moved once filled. */
struct message {
    Winnow__V1__GenerateRequest request;
    Winnow__V1__Sampling sampling;
    struct compression_message compression;
    Winnow__V1__TokenIds tokens;
    Winnow__V1__Chat chat;
    Winnow__V1__ChatMessage turns[2], *turn_list[2];
    ProtobufCBinaryData stop[MAX_REPEATED];
    struct input_ids stop_ids;
    struct input_ids ids;
    struct input_text text;
};

/* Sets a field that is a one-member oneof. */
#define SET(message, field, FIELD_CASE, value)     \
    do {                                           \
        (message)->_##field##_case = (FIELD_CASE); \
        (message)->field = (value);                \
    } while (0)

static void fill_counts(Winnow__V1__Sampling *s, const struct generate_options *o)
{
    if (o->max_tokens != UNSET_INT) {
        SET(s, max_tokens, WINNOW__V1__SAMPLING___MAX_TOKENS_MAX_TOKENS, (uint32_t)o->max_tokens);
    }
    if (o->min_tokens != UNSET_INT) {
        SET(s, min_tokens, WINNOW__V1__SAMPLING___MIN_TOKENS_MIN_TOKENS, (uint32_t)o->min_tokens);
    }
    if (o->top_k != UNSET_INT) {
        SET(s, top_k, WINNOW__V1__SAMPLING___TOP_K_TOP_K, (uint32_t)o->top_k);
    }
    if (o->seed != UNSET_INT) {
        SET(s, seed, WINNOW__V1__SAMPLING___SEED_SEED, (uint64_t)o->seed);
    }
    if (o->samples != 1) {
        SET(s, n, WINNOW__V1__SAMPLING___N_N, (uint32_t)o->samples);
    }
    if (o->logprobs != UNSET_INT) {
        SET(s, logprobs, WINNOW__V1__SAMPLING___LOGPROBS_LOGPROBS, (uint32_t)o->logprobs);
    }
    if (o->ignore_eos) {
        SET(s, ignore_eos, WINNOW__V1__SAMPLING___IGNORE_EOS_IGNORE_EOS, 1);
    }
}

static void fill_shares(Winnow__V1__Sampling *s, const struct generate_options *o)
{
    if (!isnan(o->temperature)) {
        SET(s, temperature, WINNOW__V1__SAMPLING___TEMPERATURE_TEMPERATURE, (float)o->temperature);
    }
    if (!isnan(o->top_p)) {
        SET(s, top_p, WINNOW__V1__SAMPLING___TOP_P_TOP_P, (float)o->top_p);
    }
    if (!isnan(o->min_p)) {
        SET(s, min_p, WINNOW__V1__SAMPLING___MIN_P_MIN_P, (float)o->min_p);
    }
    if (!isnan(o->repetition_penalty)) {
        SET(s, repetition_penalty, WINNOW__V1__SAMPLING___REPETITION_PENALTY_REPETITION_PENALTY,
            (float)o->repetition_penalty);
    }
    if (!isnan(o->frequency_penalty)) {
        SET(s, frequency_penalty, WINNOW__V1__SAMPLING___FREQUENCY_PENALTY_FREQUENCY_PENALTY,
            (float)o->frequency_penalty);
    }
    if (!isnan(o->presence_penalty)) {
        SET(s, presence_penalty, WINNOW__V1__SAMPLING___PRESENCE_PENALTY_PRESENCE_PENALTY,
            (float)o->presence_penalty);
    }
}

static status fill_stops(struct message *m, const struct generate_options *o)
{
    status st = STATUS_OK;

    for (int i = 0; i < o->stop.n; i++) {
        m->stop[i].data = (uint8_t *)o->stop.values[i];
        m->stop[i].len = strlen(o->stop.values[i]);
    }
    m->sampling.n_stop = (size_t)o->stop.n;
    m->sampling.stop = m->stop;
    for (int i = 0; !st && i < o->stop_ids.n; i++) {
        st = input_ids_parse(&m->stop_ids, "--stop-id", o->stop_ids.values[i]);
    }
    m->sampling.n_stop_token_ids = m->stop_ids.n;
    m->sampling.stop_token_ids = m->stop_ids.ids;
    return st;
}

static void add_turn(struct message *m, const char *role, const char *content, size_t bytes)
{
    size_t i = m->chat.n_messages++;

    winnow__v1__chat_message__init(&m->turns[i]);
    m->turns[i].role.data = (uint8_t *)role;
    m->turns[i].role.len = strlen(role);
    m->turns[i].content.data = (uint8_t *)content;
    m->turns[i].content.len = bytes;
    m->turn_list[i] = &m->turns[i];
}

static void fill_chat(struct message *m, const struct generate_options *o)
{
    winnow__v1__chat__init(&m->chat);
    if (o->system) {
        add_turn(m, "system", o->system, strlen(o->system));
    }
    add_turn(m, "user", m->text.data, m->text.bytes);
    m->chat.messages = m->turn_list;
    m->request.prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_CHAT;
    m->request.chat = &m->chat;
}

static status fill_prompt(struct message *m, const struct generate_options *o)
{
    Winnow__V1__GenerateRequest *r = &m->request;
    status st = STATUS_OK;

    if (o->tokens_file) {
        st = input_ids_read(&m->ids, o->tokens_file);
        m->tokens.n_ids = m->ids.n;
        m->tokens.ids = m->ids.ids;
        r->prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_TOKENS;
        r->tokens = &m->tokens;
        return st;
    }
    st = input_prompt(&m->text, o->file, o->prompt);
    if (o->chat) {
        fill_chat(m, o);
        return st;
    }
    r->prompt_case = WINNOW__V1__GENERATE_REQUEST__PROMPT_TEXT;
    r->text.data = (uint8_t *)m->text.data;
    r->text.len = m->text.bytes;
    if (!o->special) {
        SET(r, add_special_tokens,
            WINNOW__V1__GENERATE_REQUEST___ADD_SPECIAL_TOKENS_ADD_SPECIAL_TOKENS, 0);
    }
    return st;
}

status generate_options_pack(const struct generate_options *options, uint8_t **data, size_t *bytes)
{
    const struct generate_options *o = options;
    struct message m;

    memset(&m, 0, sizeof(m));
    winnow__v1__generate_request__init(&m.request);
    winnow__v1__sampling__init(&m.sampling);
    winnow__v1__token_ids__init(&m.tokens);
    m.request.sampling = &m.sampling;
    m.request.compression = &m.compression.compression;
    if (o->request_id) {
        m.request.request_id.data = (uint8_t *)o->request_id;
        m.request.request_id.len = strlen(o->request_id);
    }
    if (o->priority != UNSET_INT) {
        SET(&m.request, priority, WINNOW__V1__GENERATE_REQUEST___PRIORITY_PRIORITY,
            (int32_t)o->priority);
    }
    fill_counts(&m.sampling, o);
    fill_shares(&m.sampling, o);
    compression_options_fill(&m.compression, &o->compression);
    status st = fill_stops(&m, o);
    if (!st) {
        st = fill_prompt(&m, o);
    }
    if (!st) {
        *bytes = winnow__v1__generate_request__get_packed_size(&m.request);
        *data = malloc(*bytes + 1);
        if (*data) {
            winnow__v1__generate_request__pack(&m.request, *data);
        } else {
            st = status_fail(STATUS_EXHAUSTED, "out of memory for the request");
        }
    }
    free(m.stop_ids.ids);
    free(m.ids.ids);
    free(m.text.data);
    return st;
}
