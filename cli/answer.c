#include "cli/answer.h"

#include "cli/json_text.h"
#include "common/utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ANSWER_MAX_TEXT = 1 << 30, /* bytes of one output */
    ANSWER_MAX_IDS = 1 << 27,
};

static const char *const reasons[] = {"UNSPECIFIED", "STOP_TOKEN", "STOP_STRING", "LENGTH",
                                      "ABORTED"};

static const char *reason_name(Winnow__V1__FinishReason reason)
{
    return (unsigned)reason < sizeof(reasons) / sizeof(reasons[0]) ? reasons[reason]
                                                                   : "UNSPECIFIED";
}

void answer_init(struct answer *answer, int n)
{
    memset(answer, 0, sizeof(*answer));
    answer->n = n;
    winnow__v1__usage__init(&answer->usage);
    winnow__v1__timing__init(&answer->timing);
}

void answer_fini(struct answer *answer)
{
    for (int i = 0; i < answer->n; i++) {
        free(answer->outputs[i].text);
        free(answer->outputs[i].ids);
        free(answer->outputs[i].logprobs);
        free(answer->outputs[i].stop_string);
    }
}

static status make_room(void **array, size_t *capacity, size_t need, size_t limit, size_t size)
{
    if (need > limit) {
        return status_fail(STATUS_EXHAUSTED, "the answer is longer than %zu", limit);
    }
    if (need <= *capacity) {
        return STATUS_OK;
    }
    size_t target = *capacity * 2 > need ? *capacity * 2 : need + 64;
    void *bigger = realloc(*array, target * size);
    if (!bigger) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the answer");
    }
    *array = bigger;
    *capacity = target;
    return STATUS_OK;
}

static status output_at(struct answer *answer, uint32_t index, struct answer_output **out)
{
    if (index >= (uint32_t)answer->n) {
        return status_fail(STATUS_INTERNAL, "the server sent sample %u of %d", index, answer->n);
    }
    *out = &answer->outputs[index];
    return STATUS_OK;
}

static status take_logprobs(struct answer_output *output, const Winnow__V1__Tokens *tokens)
{
    void *logprobs = output->logprobs;
    status st =
        make_room(&logprobs, &output->logprob_capacity, output->n_logprobs + tokens->n_logprobs,
                  ANSWER_MAX_IDS, sizeof(*output->logprobs));

    output->logprobs = logprobs;
    for (size_t i = 0; !st && i < tokens->n_logprobs; i++) {
        const Winnow__V1__Logprob *from = tokens->logprobs[i];
        struct answer_logprob *to = &output->logprobs[output->n_logprobs];
        if (from->n_top_ids > ANSWER_MAX_TOP || from->n_top_ids != from->n_top_logprobs) {
            return status_fail(STATUS_INTERNAL, "the server sent %zu ids of %zu logprobs",
                               from->n_top_ids, from->n_top_logprobs);
        }
        *to = (struct answer_logprob){from->id, from->logprob, (uint32_t)from->n_top_ids, {0}, {0}};
        for (uint32_t j = 0; j < to->n_top; j++) {
            to->top_ids[j] = from->top_ids[j];
            to->top_logprobs[j] = from->top_logprobs[j];
        }
        output->n_logprobs++;
    }
    return st;
}

status answer_tokens(struct answer *answer, const Winnow__V1__Tokens *tokens)
{
    struct answer_output *output = &answer->outputs[0];
    status st = output_at(answer, tokens->index, &output);

    if (!st && !utf8_is_text((const char *)tokens->text.data, tokens->text.len)) {
        st = status_fail(STATUS_INTERNAL, "the server sent text that is not UTF-8");
    }
    if (st) {
        return st;
    }
    void *text = output->text;
    void *ids = output->ids;
    st = make_room(&text, &output->text_capacity, output->bytes + tokens->text.len, ANSWER_MAX_TEXT,
                   1);
    output->text = text;
    if (!st) {
        st = make_room(&ids, &output->id_capacity, output->n_ids + tokens->n_ids, ANSWER_MAX_IDS,
                       sizeof(*output->ids));
        output->ids = ids;
    }
    if (!st && tokens->text.len) {
        memcpy(output->text + output->bytes, tokens->text.data, tokens->text.len);
        output->bytes += tokens->text.len;
    }
    if (!st && tokens->n_ids) {
        memcpy(output->ids + output->n_ids, tokens->ids, tokens->n_ids * sizeof(*tokens->ids));
        output->n_ids += tokens->n_ids;
    }
    return st || !tokens->n_logprobs ? st : take_logprobs(output, tokens);
}

status answer_done(struct answer *answer, const Winnow__V1__Done *done)
{
    struct answer_output *output = &answer->outputs[0];
    status st = output_at(answer, done->index, &output);

    if (!st && output->done) {
        st = status_fail(STATUS_INTERNAL, "the server ended sample %u twice", done->index);
    }
    if (st) {
        return st;
    }
    output->done = true;
    output->reason = done->finish_reason;
    output->seed = done->seed;
    if (done->stop_string.len) {
        output->stop_string = strndup((const char *)done->stop_string.data, done->stop_string.len);
    }
    if (done->usage) {
        uint32_t before = answer->usage.completion_tokens;
        answer->usage = *done->usage;
        answer->usage.completion_tokens += before;
    }
    if (done->timing) {
        answer->timing = *done->timing;
    }
    return STATUS_OK;
}

status answer_check_complete(const struct answer *answer)
{
    for (int i = 0; i < answer->n; i++) {
        if (!answer->outputs[i].done) {
            return status_fail(STATUS_INTERNAL, "the server ended the call without an end of "
                                                "the answer");
        }
    }
    return STATUS_OK;
}

/* ---- JSON ---- */

static bool add_logprob(cJSON *list, const struct answer_logprob *from)
{
    cJSON *object = cJSON_CreateObject();
    bool ok = object && cJSON_AddItemToArray(list, object) &&
              cJSON_AddNumberToObject(object, "id", from->id) &&
              cJSON_AddNumberToObject(object, "logprob", (double)from->logprob);
    cJSON *ids = ok ? cJSON_AddArrayToObject(object, "top_ids") : NULL;
    cJSON *values = ids ? cJSON_AddArrayToObject(object, "top_logprobs") : NULL;

    ok = values != NULL;
    for (uint32_t i = 0; ok && i < from->n_top; i++) {
        cJSON *id = cJSON_CreateNumber(from->top_ids[i]);
        ok = id && cJSON_AddItemToArray(ids, id);
        cJSON *value = ok ? cJSON_CreateNumber((double)from->top_logprobs[i]) : NULL;
        ok = value && cJSON_AddItemToArray(values, value);
    }
    return ok;
}

static bool add_logprobs(cJSON *object, const struct answer_output *output)
{
    cJSON *list = output->n_logprobs ? cJSON_AddArrayToObject(object, "logprobs") : NULL;
    bool ok = list || !output->n_logprobs;

    for (size_t i = 0; ok && i < output->n_logprobs; i++) {
        ok = add_logprob(list, &output->logprobs[i]);
    }
    return ok;
}

static bool add_output(cJSON *object, const struct answer_output *output)
{
    cJSON *ids = cJSON_AddArrayToObject(object, "ids");
    bool ok = ids && json_text_add(object, "text", output->text ? output->text : "", output->bytes);

    for (size_t i = 0; ok && i < output->n_ids; i++) {
        cJSON *id = cJSON_CreateNumber(output->ids[i]);
        ok = id && cJSON_AddItemToArray(ids, id);
    }
    const char *stop = output->stop_string ? output->stop_string : "";
    return ok && cJSON_AddStringToObject(object, "finish_reason", reason_name(output->reason)) &&
           json_text_add(object, "stop_string", stop, strlen(stop)) &&
           json_text_add_whole(object, "seed", output->seed) && add_logprobs(object, output);
}

static bool add_usage(cJSON *object, const Winnow__V1__Usage *u)
{
    cJSON *usage = cJSON_AddObjectToObject(object, "usage");

    return usage && json_text_add_whole(usage, "prompt_tokens", u->prompt_tokens) &&
           json_text_add_whole(usage, "completion_tokens", u->completion_tokens) &&
           json_text_add_whole(usage, "propagated_tokens", u->propagated_tokens) &&
           cJSON_AddNumberToObject(usage, "kv_tokens_kept", u->kv_tokens_kept) &&
           json_text_add_whole(usage, "kv_bytes", u->kv_bytes) &&
           json_text_add_whole(usage, "kv_bytes_full", u->kv_bytes_full);
}

static bool add_timing(cJSON *object, const Winnow__V1__Timing *t)
{
    cJSON *timing = cJSON_AddObjectToObject(object, "timing");

    return timing && cJSON_AddNumberToObject(timing, "queue_ms", t->queue_ms) &&
           cJSON_AddNumberToObject(timing, "tokenize_ms", t->tokenize_ms) &&
           cJSON_AddNumberToObject(timing, "prefill_ms", t->prefill_ms) &&
           cJSON_AddNumberToObject(timing, "ttft_ms", t->ttft_ms) &&
           cJSON_AddNumberToObject(timing, "decode_ms", t->decode_ms) &&
           cJSON_AddNumberToObject(timing, "total_ms", t->total_ms) &&
           cJSON_AddNumberToObject(timing, "collective_ms", t->collective_ms);
}

/* One output stands in the object itself, several in a list. */
static bool add_outputs(cJSON *object, const struct answer *answer)
{
    if (answer->n == 1) {
        return add_output(object, &answer->outputs[0]);
    }
    cJSON *list = cJSON_AddArrayToObject(object, "samples");
    bool ok = list != NULL;
    for (int i = 0; ok && i < answer->n; i++) {
        cJSON *sample = cJSON_CreateObject();
        ok =
            sample && cJSON_AddItemToArray(list, sample) && add_output(sample, &answer->outputs[i]);
    }
    return ok;
}

status answer_json(const struct answer *answer, char **out)
{
    cJSON *object = cJSON_CreateObject();

    *out = NULL;
    if (object && add_outputs(object, answer) && add_usage(object, &answer->usage) &&
        add_timing(object, &answer->timing)) {
        *out = cJSON_PrintUnformatted(object);
    }
    cJSON_Delete(object);
    return *out ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "out of memory for the answer");
}

/* ---- summary ---- */

static void format_bytes(char *out, size_t out_size, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;

    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(out, out_size, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
}

static double tokens_per_second(const struct answer *answer)
{
    uint32_t n = answer->usage.completion_tokens;

    return n > 1 && answer->timing.decode_ms > 0 ? (n - 1) * 1000.0 / answer->timing.decode_ms : 0;
}

status answer_summary(const struct answer *answer, char **out)
{
    enum { SUMMARY_SIZE = 1024 };
    const Winnow__V1__Usage *u = &answer->usage;
    const Winnow__V1__Timing *t = &answer->timing;
    char kept[32];
    char full[32];

    *out = malloc(SUMMARY_SIZE);
    if (!*out) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the summary");
    }
    format_bytes(kept, sizeof(kept), u->kv_bytes);
    format_bytes(full, sizeof(full), u->kv_bytes_full);
    double share = u->kv_bytes_full ? 100.0 * (double)u->kv_bytes / (double)u->kv_bytes_full : 100;
    snprintf(*out, SUMMARY_SIZE,
             "prompt: %u tokens, %u propagated; KV kept: %s of %s (%.1f %%)\n"
             "answer: %u tokens (%s), the first after %.2f s, then %.1f tokens/s; total %.2f s\n",
             u->prompt_tokens, u->propagated_tokens, kept, full, share, u->completion_tokens,
             reason_name(answer->outputs[0].reason), t->ttft_ms / 1000, tokens_per_second(answer),
             t->total_ms / 1000);
    return STATUS_OK;
}
