#include "cli/answer.h"
#include "cli/call.h"
#include "cli/commands.h"
#include "cli/generate_options.h"
#include "cli/print.h"
#include "cli/progress.h"
#include "common/clock.h"

#include <stdlib.h>
#include <string.h>

#define PROGRAM "winnow generate"

enum { TICK_MS = 1000 };

struct session {
    struct generate_options options;
    struct answer answer;
    struct progress progress;
    bool interrupted;
    bool printed;       /* text has gone to stdout */
    bool at_line_start; /* and ended with a newline */
};

static void show_text(struct session *s, const char *text, size_t bytes)
{
    if (bytes == 0) {
        return;
    }
    progress_clear(&s->progress);
    print_text(text, bytes);
    print_flush();
    s->printed = true;
    s->at_line_start = text[bytes - 1] == '\n';
}

static status take_event(struct session *s, const Winnow__V1__GenerateResponse *response)
{
    status st = STATUS_OK;

    switch (response->event_case) {
    case WINNOW__V1__GENERATE_RESPONSE__EVENT_PROGRESS:
        if (!s->printed) {
            progress_update(&s->progress, response->progress, clock_ms() / 1e3);
        }
        break;
    case WINNOW__V1__GENERATE_RESPONSE__EVENT_TOKENS:
        st = answer_tokens(&s->answer, response->tokens);
        if (!st && !s->options.json && response->tokens->index == 0) {
            show_text(s, (const char *)response->tokens->text.data, response->tokens->text.len);
        }
        break;
    case WINNOW__V1__GENERATE_RESPONSE__EVENT_DONE:
        st = answer_done(&s->answer, response->done);
        break;
    default:
        break; /* an event of a newer server */
    }
    return st;
}

static status take_message(struct session *s, const uint8_t *data, size_t bytes)
{
    Winnow__V1__GenerateResponse *response =
        winnow__v1__generate_response__unpack(NULL, bytes, data);

    if (!response) {
        return status_fail(STATUS_INTERNAL, "the server sent something that is no response");
    }
    status st = take_event(s, response);
    winnow__v1__generate_response__free_unpacked(response, NULL);
    return st;
}

/* Until the call has ended.  Our own failure cancels it and goes before what it ends with. */
static status follow(struct session *s, struct call *call)
{
    struct failure own = {.code = STATUS_OK};
    const uint8_t *data;
    size_t bytes;

    for (;;) {
        status st = STATUS_OK;
        switch (call_wait(call, TICK_MS, &data, &bytes)) {
        case CALL_MESSAGE:
            st = own.code || s->interrupted ? STATUS_OK : take_message(s, data, bytes);
            break;
        case CALL_INTERRUPT:
            s->interrupted = true;
            call_cancel(call);
            break;
        case CALL_TICK:
            break;
        case CALL_END:
            return own.code ? status_fail(own.code, "%s", own.text) : call_status(call);
        }
        if (st) {
            status_save(&own, st);
            call_cancel(call);
        }
    }
}

/* To stdout, to a file, or to both. */
static status print_json(const struct session *s)
{
    char *json;
    status st = answer_json(&s->answer, &json);

    if (!st && s->options.json) {
        print_out("%s\n", json);
    }
    if (!st && s->options.json_file) {
        st = print_file(s->options.json_file, json);
    }
    free(json);
    return st;
}

/* The first sample has been streamed; the others follow. */
static void print_other_samples(struct session *s)
{
    for (int i = 1; i < s->answer.n; i++) {
        const struct answer_output *output = &s->answer.outputs[i];
        print_out("%s\n", s->at_line_start ? "" : "\n");
        s->at_line_start = false;
        show_text(s, output->text, output->bytes);
    }
}

static status conclude(struct session *s)
{
    char *summary = NULL;
    status st = answer_check_complete(&s->answer);

    progress_clear(&s->progress);
    if (!st && (s->options.json || s->options.json_file)) {
        st = print_json(s);
    }
    if (!st && !s->options.json) {
        print_other_samples(s);
    }
    if (s->printed && !s->at_line_start) {
        print_out("\n");
    }
    print_flush();
    if (!st && !s->options.quiet) {
        st = answer_summary(&s->answer, &summary);
        if (!st) {
            print_note("%s%s", s->printed ? "\n" : "", summary);
            free(summary);
        }
    }
    return st;
}

static status run_call(struct session *s, struct rpc_client *client, const uint8_t *request,
                       size_t bytes)
{
    struct call *call;
    int64_t deadline_ms = (int64_t)(s->options.deadline_s * 1000);
    status st =
        call_open(&call, client, "/winnow.v1.Inference/Generate", deadline_ms, request, bytes);

    if (st) {
        return st;
    }
    st = follow(s, call);
    call_close(call);
    return st ? st : conclude(s);
}

static status run(struct session *s)
{
    struct rpc_client *client = NULL;
    uint8_t *request = NULL;
    size_t bytes = 0;
    status st = generate_options_pack(&s->options, &request, &bytes);

    if (!st) {
        st = call_init();
    }
    if (st) {
        free(request);
        return st;
    }
    st = rpc_client_open(&client, s->options.access.server, &s->options.access.identity);
    if (!st) {
        st = run_call(s, client, request, bytes);
        rpc_client_close(client);
    }
    free(request);
    call_fini();
    return st;
}

int generate_main(int argc, char **argv)
{
    struct session s = {.at_line_start = true};
    enum options_outcome outcome;

    if (generate_options_parse(&s.options, argc, argv, &outcome)) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    answer_init(&s.answer, (int)s.options.samples);
    progress_init(&s.progress, s.options.quiet, print_stderr_is_terminal());
    status st = run(&s);
    progress_clear(&s.progress);
    answer_fini(&s.answer);
    if (st && s.printed && !s.at_line_start) {
        print_out("\n");
    }
    int code = print_finish();
    if (s.interrupted) {
        print_note("%s: interrupted\n", PROGRAM);
        return EXIT_INTERRUPT;
    }
    if (st) {
        print_failure(PROGRAM, st);
        return EXIT_ERROR;
    }
    return code;
}
