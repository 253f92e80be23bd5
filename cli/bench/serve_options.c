#include "cli/bench/serve_options.h"

#include "cli/bench/words.h"

#include <math.h>
#include <string.h>

#define UNSET_INT INT64_MIN

/* What is parsed further before it becomes struct serve_options. */
struct raw {
    const char *dataset, *rate, *ramp, *names, *percentiles;
    struct option_list goodput;
    int64_t num_prompts, seed;
    int64_t input_len, output_len, random_input, random_output;
    const char *pairs[SERVE_MAX_PAIRS];
    int n_pairs;
};

enum { MAX_ROWS = 64 };

static int add_rows(struct option *rows, int n, const struct option *more, size_t n_more)
{
    memcpy(rows + n, more, n_more * sizeof(*more));
    return n + (int)n_more;
}

#define ADD_ROWS(rows, n, more) add_rows(rows, n, more, sizeof(more) / sizeof((more)[0]))

static int dataset_rows(struct option *rows, int n, struct serve_options *o, struct raw *raw)
{
    struct dataset_config *d = &o->dataset;
    const double most = DATASET_MAX_TOKENS;
    const struct option more[] = {
        {"dataset-name", OPTION_STRING, &raw->dataset, "NAME", "random, file or trace", 0, 0},
        {"dataset-path", OPTION_STRING, &d->path, "PATH",
         "file: a text, a folder of texts or a .jsonl; trace: a .jsonl", 0, 0},
        {"num-prompts", OPTION_INT, &raw->num_prompts, "N",
         "requests (1000; with a data set of its own: all of it)", 1, DATASET_MAX_ITEMS},
        {"random-input-len", OPTION_INT, &raw->random_input, "N", "random: prompt tokens", 1, most},
        {"random-output-len", OPTION_INT, &raw->random_output, "N", "random: answer tokens", 1,
         most},
        {"random-range-ratio", OPTION_DOUBLE, &d->range_ratio, "X",
         "random: lengths within 1 - X .. 1 + X of these", 0, 0.999},
        {"input-len", OPTION_INT, &raw->input_len, "N", "goes before --random-input-len", 1, most},
        {"output-len", OPTION_INT, &raw->output_len, "N", "goes before what the data set says", 1,
         most},
        {"prompt", OPTION_STRING, &d->prompt, "TEXT", "file: the question behind each document", 0,
         0},
        {"trace-speed", OPTION_DOUBLE, &d->trace_speed, "X", "trace: 2 plays it twice as fast",
         1e-6, 1e6},
        {"trace-block-size", OPTION_INT, &d->trace_block, "N", "trace: tokens of one hash_id", 1,
         most},
        {"seed", OPTION_INT, &raw->seed, "N", "of prompts, lengths and arrivals", 0, 9e15},
    };

    return ADD_ROWS(rows, n, more);
}

static int load_rows(struct option *rows, int n, struct serve_options *o, struct raw *raw)
{
    const struct option more[] = {
        {"request-rate", OPTION_STRING, &raw->rate, "X", "requests a second; inf: all at once", 0,
         0},
        {"burstiness", OPTION_DOUBLE, &o->arrival.burstiness, "X",
         "1: Poisson; less: bursts; more: even", 1e-3, 1e9},
        {"ramp-up-strategy", OPTION_STRING, &raw->ramp, "NAME", "linear or exponential", 0, 0},
        {"ramp-up-start-rps", OPTION_DOUBLE, &o->arrival.start_rate, "X", "the ramp's first rate",
         1e-6, 1e9},
        {"ramp-up-end-rps", OPTION_DOUBLE, &o->arrival.end_rate, "X", "and its last", 1e-6, 1e9},
        {"max-concurrency", OPTION_INT, &o->max_concurrency, "N", "requests at once; 0: no limit",
         0, DATASET_MAX_ITEMS},
        {"num-warmups", OPTION_INT, &o->n_warmups, "N", "requests before those that count", 0,
         SERVE_MAX_WARMUPS},
        {"connections", OPTION_INT, &o->n_connections, "N", "0: one for 250 requests at once", 0,
         LOAD_MAX_CONNECTIONS},
        {"ready-check-timeout-sec", OPTION_DOUBLE, &o->ready_s, "SECONDS",
         "wait so long for a server that starts", 0, 1e6},
        {"deadline", OPTION_DOUBLE, &o->deadline_s, "SECONDS", "of a request; 0: none", 0, 1e9},
        {"ignore-eos", OPTION_FLAG, &o->ignore_eos, NULL, "answers of exactly the length", 0, 0},
        {"temperature", OPTION_DOUBLE, &o->temperature, "X", "0: the likeliest token", 0, 1e9},
    };

    return ADD_ROWS(rows, n, more);
}

static int metric_rows(struct option *rows, int n, struct serve_options *o, struct raw *raw)
{
    const struct option more[] = {
        {"percentile-metrics", OPTION_STRING, &raw->names, "NAMES", "of these", 0, 0},
        {"metric-percentiles", OPTION_STRING, &raw->percentiles, "NUMBERS", "these percentiles", 0,
         0},
        {"goodput", OPTION_LIST, &raw->goodput, "NAME:MS ...", "a good request's ttft, tpot, e2el",
         0, 0},
        {"save-detailed", OPTION_FLAG, &o->result.detailed, NULL,
         "write the JSON with a list of all requests", 0, 0},
    };

    return ADD_ROWS(rows, n, more);
}

/* ---- checks ---- */

static status take_dataset(struct serve_options *o, const struct raw *raw)
{
    static const char *const kinds[] = {"random", "file", "trace"};
    struct dataset_config *d = &o->dataset;
    int kind = 0;

    while (kind < 3 && strcmp(raw->dataset, kinds[kind]) != 0) {
        kind++;
    }
    if (kind == 3) {
        return status_fail(STATUS_INVALID, "--dataset-name is random, file or trace");
    }
    d->kind = (enum dataset_kind)kind;
    if ((d->kind == DATASET_RANDOM) != !d->path) {
        return status_fail(STATUS_INVALID,
                           d->path ? "--dataset-path goes with file and trace"
                                   : "--dataset-name %s needs --dataset-path",
                           raw->dataset);
    }
    if (d->prompt && d->kind != DATASET_FILE) {
        return status_fail(STATUS_INVALID, "--prompt goes with --dataset-name file");
    }
    d->n = raw->num_prompts != UNSET_INT ? raw->num_prompts : d->kind == DATASET_RANDOM ? 1000 : 0;
    d->input_len = raw->input_len != UNSET_INT ? raw->input_len : raw->random_input;
    d->fixed_output = raw->output_len != UNSET_INT;
    d->output_len = d->fixed_output ? raw->output_len : raw->random_output;
    d->seed = (uint64_t)raw->seed;
    return STATUS_OK;
}

static status take_rate(struct serve_options *o, const struct raw *raw)
{
    struct arrival *a = &o->arrival;
    struct word rate = {raw->rate, strlen(raw->rate)};
    status st = word_number(&rate, 1e-6, (double)INFINITY, &a->rate);

    a->seed = o->dataset.seed;
    if (st) {
        return status_note(st, "--request-rate");
    }
    if (o->dataset.kind == DATASET_TRACE && (raw->ramp || !isinf(a->rate))) {
        return status_fail(STATUS_INVALID, "a trace says itself when requests come");
    }
    if (raw->ramp) {
        a->ramp = strcmp(raw->ramp, "linear") == 0        ? ARRIVAL_LINEAR
                  : strcmp(raw->ramp, "exponential") == 0 ? ARRIVAL_EXPONENTIAL
                                                          : ARRIVAL_STEADY;
        if (a->ramp == ARRIVAL_STEADY) {
            return status_fail(STATUS_INVALID, "--ramp-up-strategy is linear or exponential");
        }
    }
    if (raw->ramp ? isnan(a->start_rate) || isnan(a->end_rate) || !isinf(a->rate)
                  : !isnan(a->start_rate) || !isnan(a->end_rate)) {
        return status_fail(STATUS_INVALID, "a ramp is --ramp-up-strategy, --ramp-up-start-rps and "
                                           "--ramp-up-end-rps without --request-rate");
    }
    o->open_loop = raw->ramp || !isinf(a->rate) || o->dataset.kind == DATASET_TRACE;
    return STATUS_OK;
}

/* "--goodput ttft:200 tpot:50": the words after the first stand alone. */
static status take_pairs(struct serve_options *o, const struct raw *raw)
{
    status st = STATUS_OK;

    for (int i = 0; !st && i < raw->goodput.n; i++) {
        st = metrics_parse_goodput(&o->metrics, raw->goodput.values[i]);
    }
    for (int i = 0; !st && i < raw->n_pairs; i++) {
        if (o->result.n_metadata && strchr(raw->pairs[i], '=')) {
            st = result_options_add_metadata(&o->result, raw->pairs[i]);
        } else if (raw->goodput.n) {
            st = metrics_parse_goodput(&o->metrics, raw->pairs[i]);
        } else {
            st = status_fail(STATUS_INVALID, "unexpected argument \"%s\"", raw->pairs[i]);
        }
    }
    return st;
}

static status check(struct serve_options *o, const struct raw *raw)
{
    status st = take_dataset(o, raw);

    st = st ? st : take_rate(o, raw);
    st = st ? st : metrics_parse_names(&o->metrics, raw->names);
    st = st ? st : metrics_parse_percentiles(&o->metrics, raw->percentiles);
    st = st ? st : result_options_check(&o->result);
    st = st ? st : take_pairs(o, raw);
    st = st ? st : compression_options_check(&o->compression);
    return st;
}

status serve_options_parse(struct serve_options *out, int argc, char **argv,
                           enum options_outcome *outcome)
{
    struct option rows[MAX_ROWS];
    struct raw raw = {
        .dataset = "random",
        .rate = "inf",
        .names = "ttft,tpot,itl,e2el",
        .percentiles = "90,99",
        .num_prompts = UNSET_INT,
        .input_len = UNSET_INT,
        .output_len = UNSET_INT,
        .random_input = 1024,
        .random_output = 128,
    };

    *out = (struct serve_options){
        .access.server = "127.0.0.1:8600",
        .dataset = {.trace_speed = 1, .trace_block = 512},
        .arrival = {.burstiness = 1, .start_rate = (double)NAN, .end_rate = (double)NAN},
        .temperature = (double)NAN,
    };
    compression_options_init(&out->compression);
    int n = dataset_rows(rows, 0, out, &raw);
    n = load_rows(rows, n, out, &raw);
    n = metric_rows(rows, n, out, &raw);
    result_options_rows(rows + n, &out->result);
    n += RESULT_OPTIONS;
    compression_options_rows(rows + n, &out->compression);
    service_access_rows(rows + n + COMPRESSION_OPTIONS, &out->access);
    struct options options = {
        .program = "winnow bench serve",
        .synopsis = "Send requests as users would, and say how fast they were answered.",
        .epilog = "Without a rate all requests are sent at once, or as --max-concurrency lets "
                  "them; with one they\nare sent when they are due.  docs/benchmarking.md explains "
                  "every figure.  Ctrl-C ends a run early\nand keeps what it has.",
        .table = rows,
        .n = n + COMPRESSION_OPTIONS + SERVICE_ACCESS_OPTIONS,
        .positional = raw.pairs,
        .max_positional = SERVE_MAX_PAIRS,
    };
    status st = options_parse(&options, argc, argv, outcome);
    raw.n_pairs = options.n_positional;
    return st || *outcome != OPTIONS_RUN ? st : check(out, &raw);
}
