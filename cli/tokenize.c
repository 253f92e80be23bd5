#include "cli/commands.h"
#include "cli/input.h"
#include "cli/json_text.h"
#include "cli/print.h"
#include "cli/service.h"
#include "common/options.h"
#include "common/utf8.h"
#include "winnow/v1/inference.pb-c.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "winnow tokenize"

enum { MAX_ARGUMENTS = 4096 };

struct tokenize_options {
    struct service_access access;
    const char *file;
    bool detokenize, special, skip_special, json;
    double deadline_s;
    const char *arguments[MAX_ARGUMENTS];
    int n_arguments;
};

static status parse(struct tokenize_options *o, int argc, char **argv,
                    enum options_outcome *outcome)
{
    const struct option own[] = {
        {"file", OPTION_STRING, &o->file, "FILE", "text (or ids) to turn; - is stdin", 0, 0},
        {"detokenize", OPTION_FLAG, &o->detokenize, NULL, "ids to text", 0, 0},
        {"special", OPTION_FLAG, &o->special, NULL, "begin text as the tokenizer says", 0, 0},
        {"skip-special", OPTION_FLAG, &o->skip_special, NULL, "leave special tokens out", 0, 0},
        {"json", OPTION_FLAG, &o->json, NULL, "a JSON object instead of plain text", 0, 0},
        {"deadline", OPTION_DOUBLE, &o->deadline_s, "SECONDS", "give up then", 0.001, 1e9},
    };
    enum { N_OWN = sizeof(own) / sizeof(own[0]) };
    struct option table[N_OWN + SERVICE_ACCESS_OPTIONS];

    memcpy(table, own, sizeof(own));
    service_access_rows(table + N_OWN, &o->access);
    struct options options = {
        .program = PROGRAM,
        .synopsis = "Turn text into token ids, or with --detokenize ids into text.",
        .epilog = "Text (or ids) are the arguments, joined by spaces, or the file; without "
                  "either, stdin.",
        .table = table,
        .n = N_OWN + SERVICE_ACCESS_OPTIONS,
        .positional = o->arguments,
        .max_positional = MAX_ARGUMENTS,
    };

    status st = options_parse(&options, argc, argv, outcome);
    o->n_arguments = options.n_positional;
    if (!st && *outcome == OPTIONS_RUN && o->file && o->n_arguments) {
        st = status_fail(STATUS_INVALID, "give --file or arguments, not both");
    }
    return st;
}

static status read_input(const struct tokenize_options *o, struct input_text *out)
{
    size_t bytes = 1;

    if (o->n_arguments == 0) {
        return input_read(out, o->file ? o->file : "-");
    }
    for (int i = 0; i < o->n_arguments; i++) {
        bytes += strlen(o->arguments[i]) + 1;
    }
    out->data = calloc(bytes, 1);
    if (!out->data) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the input");
    }
    for (int i = 0; i < o->n_arguments; i++) {
        size_t n = strlen(o->arguments[i]);
        if (i) {
            out->data[out->bytes++] = ' ';
        }
        memcpy(out->data + out->bytes, o->arguments[i], n);
        out->bytes += n;
    }
    return STATUS_OK;
}

static void print_ids(const Winnow__V1__TokenizeResponse *response, bool json)
{
    print_out("%s", json ? "{\"ids\":[" : "");
    for (size_t i = 0; i < response->n_ids; i++) {
        print_out("%s%" PRIu32, i == 0 ? "" : json ? "," : " ", response->ids[i]);
    }
    print_out("%s\n", json ? "]}" : "");
}

static status tokenize(const struct tokenize_options *o, const struct service *service,
                       const struct input_text *text)
{
    Winnow__V1__TokenizeRequest request = WINNOW__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *reply;

    request.text.data = (uint8_t *)text->data;
    request.text.len = text->bytes;
    request._add_special_tokens_case =
        WINNOW__V1__TOKENIZE_REQUEST___ADD_SPECIAL_TOKENS_ADD_SPECIAL_TOKENS;
    request.add_special_tokens = o->special;
    status st = service_call(service, "/winnow.v1.Inference/Tokenize", &request.base,
                             &winnow__v1__tokenize_response__descriptor, &reply);
    if (!st) {
        print_ids((const Winnow__V1__TokenizeResponse *)reply, o->json);
        protobuf_c_message_free_unpacked(reply, NULL);
    }
    return st;
}

static status print_decoded(const Winnow__V1__DetokenizeResponse *response, bool json)
{
    const char *text = (const char *)response->text.data;
    size_t bytes = response->text.len;

    if (!utf8_is_text(text, bytes)) {
        return status_fail(STATUS_INTERNAL, "the server sent text that is not UTF-8");
    }
    if (!json) {
        print_text(text, bytes);
        print_out("\n");
        return STATUS_OK;
    }
    char *quoted = json_text_quoted(text, bytes);
    if (!quoted) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the text");
    }
    print_out("{\"text\":%s}\n", quoted);
    free(quoted);
    return STATUS_OK;
}

static status detokenize(const struct tokenize_options *o, const struct service *service,
                         const struct input_text *text)
{
    Winnow__V1__DetokenizeRequest request = WINNOW__V1__DETOKENIZE_REQUEST__INIT;
    struct input_ids ids = {0};
    ProtobufCMessage *reply;
    status st = input_ids_parse(&ids, "input", text->data);

    request.n_ids = ids.n;
    request.ids = ids.ids;
    request.skip_special_tokens = o->skip_special;
    if (!st) {
        st = service_call(service, "/winnow.v1.Inference/Detokenize", &request.base,
                          &winnow__v1__detokenize_response__descriptor, &reply);
    }
    free(ids.ids);
    if (!st) {
        st = print_decoded((const Winnow__V1__DetokenizeResponse *)reply, o->json);
        protobuf_c_message_free_unpacked(reply, NULL);
    }
    return st;
}

static status run(const struct tokenize_options *o)
{
    struct service service;
    struct input_text text = {0};
    status st = read_input(o, &text);

    if (!st) {
        st = service_open(&service, &o->access, o->deadline_s);
    }
    if (!st) {
        st = o->detokenize ? detokenize(o, &service, &text) : tokenize(o, &service, &text);
        service_close(&service);
    }
    free(text.data);
    return st;
}

int tokenize_main(int argc, char **argv)
{
    static struct tokenize_options options = {
        .access.server = "127.0.0.1:8600", .special = true, .deadline_s = 60};
    enum options_outcome outcome;

    if (parse(&options, argc, argv, &outcome)) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    status st = run(&options);
    if (st) {
        print_failure(PROGRAM, st);
        return EXIT_ERROR;
    }
    return print_finish();
}
