/* A recorded load: when each request came, how long it was, and what it shared with others. */
#include "cli/bench/dataset.h"
#include "common/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* hash_ids: any whole numbers; equal ones stand for equal blocks of the prompt. */
static status read_blocks(struct dataset_item *item, struct json_reader *reader)
{
    const cJSON *list = json_find(reader, "hash_ids");
    const cJSON *id;
    int n = cJSON_GetArraySize(list);

    if (!list) {
        return STATUS_OK;
    }
    if (!cJSON_IsArray(list)) {
        json_fail(reader, STATUS_INVALID, "hash_ids", "not a list");
        return reader->st;
    }
    item->blocks = calloc((size_t)n + 1, sizeof(*item->blocks));
    if (!item->blocks) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the data set");
    }
    cJSON_ArrayForEach(id, list)
    {
        if (!json_get_size(id, &item->blocks[item->n_blocks])) {
            json_fail(reader, STATUS_INVALID, "hash_ids", "holds what is no whole number");
            return reader->st;
        }
        item->n_blocks++;
    }
    return STATUS_OK;
}

/* A text of its own, or a length. */
static status read_prompt(struct dataset *dataset, struct dataset_item *item,
                          struct json_reader *reader)
{
    const char *prompt = json_string_or_null(reader, "prompt");

    if (!prompt) {
        item->n_input = (uint32_t)json_int(reader, "input_length", 1, DATASET_MAX_TOKENS);
        return reader->st ? reader->st : read_blocks(item, reader);
    }
    if (!*prompt || !utf8_is_valid(prompt, strlen(prompt))) {
        json_fail(reader, STATUS_INVALID, "prompt", "not a text");
        return reader->st;
    }
    char *text = strdup(prompt);
    status st = text ? dataset_keep_text(dataset, text)
                     : status_fail(STATUS_EXHAUSTED, "out of memory for the data set");
    item->text = st ? NULL : text;
    item->bytes = strlen(prompt);
    return st;
}

static status read_request(struct dataset *dataset, struct json_reader *reader)
{
    const struct dataset_config *c = &dataset->config;
    double before_s = dataset->n ? dataset->items[dataset->n - 1].due_s : 0;
    double timestamp_ms = json_number(reader, "timestamp", 0, 1e15);
    int output_len =
        json_int_or(reader, "output_length", 1, DATASET_MAX_TOKENS, (int)c->output_len);
    const char *method = json_string_or_null(reader, "method");
    struct dataset_item *item = NULL;
    status st = reader->st ? reader->st : dataset_add(dataset, &item);

    if (st) {
        return st;
    }
    item->due_s = timestamp_ms / 1000 / c->trace_speed;
    item->n_output = (uint32_t)(c->fixed_output ? c->output_len : output_len);
    item->method = method ? method_by_name(method) : METHOD_UNSPECIFIED;
    if (method && !item->method) {
        json_fail(reader, STATUS_INVALID, "method", "there is no method of this name");
    } else if (item->due_s < before_s) {
        json_fail(reader, STATUS_INVALID, "timestamp", "earlier than that of the line before");
    }
    return reader->st ? reader->st : read_prompt(dataset, item, reader);
}

status dataset_read_trace(struct dataset *dataset)
{
    status st = dataset_each_line(dataset, read_request);

    /* A trace may begin at any moment of its day. */
    for (size_t i = dataset->n; !st && i-- > 0;) {
        dataset->items[i].due_s -= dataset->items[0].due_s;
    }
    return st;
}
