#include "cli/bench/sweep.h"
#include "cli/bench/words.h"

#include <string.h>

struct raw {
    const char *methods, *lengths;
};

static const struct {
    const char *name, *program, *synopsis;
    int64_t output_len, n_warmups, n_runs;
    bool drop_extremes;
} protocols[] = {
    {"prefill", "winnow bench prefill", "Time to the first token, by method and length.", 1, 1, 5,
     false},
    {"e2e", "winnow bench e2e", "Time of a whole answer, by method and length.", 256, 1, 5, false},
    {"throughput", "winnow bench throughput", "Speed of decoding, by method and length.", 128, 2,
     10, true},
};

const char *sweep_name(enum sweep_kind kind)
{
    return protocols[kind].name;
}

static status add_method(struct sweep_options *o, const struct word *word)
{
    char name[32];
    enum method method = METHOD_UNSPECIFIED;

    if (word->bytes < sizeof(name)) {
        memcpy(name, word->text, word->bytes);
        name[word->bytes] = '\0';
        method = method_by_name(name);
    }
    if (!method) {
        return status_fail(STATUS_INVALID, "--methods: there is no method \"%.*s\"",
                           (int)word->bytes, word->text);
    }
    if (o->n_methods == METHOD_COUNT) {
        return status_fail(STATUS_INVALID, "--methods: more than there are");
    }
    o->methods[o->n_methods++] = method;
    return STATUS_OK;
}

/* "8192" or "8k". */
static status add_length(struct sweep_options *o, const struct word *word)
{
    struct word number = *word;
    bool kilo = number.bytes > 1 && strchr("kK", number.text[number.bytes - 1]);
    double value;

    number.bytes -= kilo ? 1 : 0;
    status st = word_number(&number, 1, kilo ? SWEEP_MAX_LENGTH / 1024 : SWEEP_MAX_LENGTH, &value);
    if (!st && o->n_lengths == SWEEP_MAX_LENGTHS) {
        st = status_fail(STATUS_INVALID, "more than %d", SWEEP_MAX_LENGTHS);
    }
    if (st) {
        return status_note(st, "--lengths");
    }
    o->lengths[o->n_lengths++] = (uint32_t)(kilo ? value * 1024 : value);
    return STATUS_OK;
}

static status check(struct sweep_options *o, const struct raw *raw)
{
    const char *methods = raw->methods;
    const char *lengths = raw->lengths;
    struct word word;
    status st = STATUS_OK;

    while (!st && words_next(&methods, &word)) {
        st = add_method(o, &word);
    }
    while (!st && words_next(&lengths, &word)) {
        st = add_length(o, &word);
    }
    if (!st && (o->n_methods == 0 || o->n_lengths == 0)) {
        st = status_fail(STATUS_INVALID, "give methods and lengths");
    }
    if (!st && o->kind != SWEEP_PREFILL && o->output_len < 2) {
        st = status_fail(STATUS_INVALID, "--output-len is 2 or more: one token is no decoding");
    }
    st = st ? st : compression_options_check(&o->compression);
    return st ? st : result_options_check(&o->result);
}

static int fill_rows(struct option *rows, struct sweep_options *o, struct raw *raw)
{
    const struct option own[] = {
        {"methods", OPTION_STRING, &raw->methods, "NAMES", "compare these", 0, 0},
        {"lengths", OPTION_STRING, &raw->lengths, "NUMBERS", "of the prompt; 8k is 8192", 0, 0},
        {"output-len", OPTION_INT, &o->output_len, "N", "tokens of an answer", 1, SWEEP_MAX_LENGTH},
        {"num-warmups", OPTION_INT, &o->n_warmups, "N", "runs before those that count", 0,
         SWEEP_MAX_RUNS},
        {"num-runs", OPTION_INT, &o->n_runs, "N", "runs that count", 1, SWEEP_MAX_RUNS},
        {"drop-extremes", OPTION_FLAG, &o->drop_extremes, NULL,
         "without the smallest and the largest of the runs", 0, 0},
        {"token-id", OPTION_INT, &o->token_id, "ID", "the prompt is this token, repeated", 0,
         UINT32_MAX},
        {"ready-check-timeout-sec", OPTION_DOUBLE, &o->ready_s, "SECONDS",
         "wait so long for a server that starts", 0, 1e6},
        {"deadline", OPTION_DOUBLE, &o->deadline_s, "SECONDS", "of a run; 0: none", 0, 1e9},
    };
    struct option compression[COMPRESSION_OPTIONS];
    int n = sizeof(own) / sizeof(own[0]);

    memcpy(rows, own, sizeof(own));
    result_options_rows(rows + n, &o->result);
    n += RESULT_OPTIONS;
    compression_options_rows(compression, &o->compression);
    for (int i = 0; i < COMPRESSION_OPTIONS; i++) {
        if (strcmp(compression[i].name, "method") != 0) { /* --methods stands for it */
            rows[n++] = compression[i];
        }
    }
    service_access_rows(rows + n, &o->access);
    return n + SERVICE_ACCESS_OPTIONS;
}

status sweep_options_parse(struct sweep_options *out, int argc, char **argv,
                           enum options_outcome *outcome)
{
    enum sweep_kind kind = out->kind;
    struct option rows[64];
    struct raw raw = {"FULL,FASTKV", "8192,32768,131072"};

    *out = (struct sweep_options){
        .kind = kind,
        .access.server = "127.0.0.1:8600",
        .output_len = protocols[kind].output_len,
        .n_warmups = protocols[kind].n_warmups,
        .n_runs = protocols[kind].n_runs,
        .drop_extremes = protocols[kind].drop_extremes,
        .token_id = 1,
    };
    compression_options_init(&out->compression);
    struct options options = {
        .program = protocols[kind].program,
        .synopsis = protocols[kind].synopsis,
        .epilog = "The defaults are the protocol of the FastKV repository.  One request runs at a "
                  "time, so an idle\nserver is needed.  Ctrl-C ends a run early and keeps what it "
                  "has.",
        .table = rows,
        .n = fill_rows(rows, out, &raw),
    };
    status st = options_parse(&options, argc, argv, outcome);
    return st || *outcome != OPTIONS_RUN ? st : check(out, &raw);
}
