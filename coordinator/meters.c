#include "coordinator/meters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Shares follow the last steps: a step counts half after some fifty others. */
#define FORGET 0.986

#define BOUNDS(list) .type = METRIC_HISTOGRAM, .bounds = (list), .n_bounds = N_OF(list)
#define N_OF(list) (int)(sizeof(list) / sizeof((list)[0]))

static const double ttft_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,
                                     0.25,  0.5,   0.75, 1,    2.5,  5,    7.5,  10,
                                     20,    40,    80,   160,  640,  2560};
static const double token_bounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                                      0.75, 1,     2.5,  5,     7.5, 10,   20,  40,  80};
static const double request_bounds[] = {0.3, 0.5, 0.8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30,  40,  50,  60, 120, 240, 480, 960, 1920, 7680};
static const double length_bounds[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                       1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
static const double batch_bounds[] = {0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64};
static const double ratio_bounds[] = {0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3,
                                      0.4,  0.5,  0.6,  0.7, 0.8,  0.9, 1};
static const double skew_bounds[] = {0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3};

/* Series with no label but the model's name. */
enum plain {
    RUNNING,
    WAITING,
    WAITING_TOKENS,
    KV_USAGE,
    KV_PROMISED,
    READY_GROUPS,
    DRAINING,
    RERUNS,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    TTFT,
    ITL,
    E2E,
    QUEUE_TIME,
    PREFILL_TIME,
    DECODE_TIME,
    INFERENCE_TIME,
    LENGTH_PROMPT,
    LENGTH_GENERATION,
    PARAMS_MAX_TOKENS,
    PARAMS_N,
    ITERATION_TOKENS,
    STEP_SKEW,
    N_PLAIN,
};

static const struct metric_family plain_families[N_PLAIN] = {
    [RUNNING] = {"winnow:num_requests_running", "Requests admitted to a worker group.",
                 METRIC_GAUGE, NULL, 0},
    [WAITING] = {"winnow:num_requests_waiting", "Requests in the queue.", METRIC_GAUGE, NULL, 0},
    [WAITING_TOKENS] = {"winnow:num_prompt_tokens_waiting", "Prompt tokens in the queue.",
                        METRIC_GAUGE, NULL, 0},
    [KV_USAGE] = {"winnow:kv_cache_usage_perc",
                  "KV bytes in use, of those that the ready workers have: 0 to 1.", METRIC_GAUGE,
                  NULL, 0},
    [KV_PROMISED] = {"winnow:kv_cache_promised_perc",
                     "KV pages that running requests may come to need, of all, in the group that "
                     "has least left: 0 to 1.",
                     METRIC_GAUGE, NULL, 0},
    [READY_GROUPS] = {"winnow:groups_ready", "Worker groups that serve.", METRIC_GAUGE, NULL, 0},
    [DRAINING] = {"winnow:draining", "1 while new requests are refused for good.", METRIC_GAUGE,
                  NULL, 0},
    [RERUNS] = {"winnow:request_reruns_total",
                "Requests computed again because their group was lost.", METRIC_COUNTER, NULL, 0},
    [PROMPT_TOKENS] = {"winnow:prompt_tokens_total", "Prompt tokens read to the end.",
                       METRIC_COUNTER, NULL, 0},
    [GENERATION_TOKENS] = {"winnow:generation_tokens_total", "Tokens generated.", METRIC_COUNTER,
                           NULL, 0},
    [TTFT] = {"winnow:time_to_first_token_seconds", "From a request's arrival to its first token.",
              BOUNDS(ttft_bounds)},
    [ITL] = {"winnow:inter_token_latency_seconds", "Between two tokens of one sample.",
             BOUNDS(token_bounds)},
    [E2E] = {"winnow:e2e_request_latency_seconds", "From a request's arrival to a sample's end.",
             BOUNDS(request_bounds)},
    [QUEUE_TIME] = {"winnow:request_queue_time_seconds", "In the queue.", BOUNDS(request_bounds)},
    [PREFILL_TIME] = {"winnow:request_prefill_time_seconds", "From admission to the first token.",
                      BOUNDS(request_bounds)},
    [DECODE_TIME] = {"winnow:request_decode_time_seconds", "From the first token to the last.",
                     BOUNDS(request_bounds)},
    [INFERENCE_TIME] = {"winnow:request_inference_time_seconds",
                        "From admission to a sample's end.", BOUNDS(request_bounds)},
    [LENGTH_PROMPT] = {"winnow:request_prompt_tokens", "Prompt tokens of a sample that ended.",
                       BOUNDS(length_bounds)},
    [LENGTH_GENERATION] = {"winnow:request_generation_tokens",
                           "Tokens generated for a sample that ended.", BOUNDS(length_bounds)},
    [PARAMS_MAX_TOKENS] = {"winnow:request_params_max_tokens", "max_tokens of a sample that ended.",
                           BOUNDS(length_bounds)},
    [PARAMS_N] = {"winnow:request_params_n", "n of the request of a sample that ended.",
                  BOUNDS(batch_bounds)},
    [ITERATION_TOKENS] = {"winnow:iteration_tokens_total", "Tokens chosen in one step.",
                          BOUNDS(batch_bounds)},
    [STEP_SKEW] = {"winnow:step_skew_seconds",
                   "Slowest rank's own work in a step less the quickest's.", BOUNDS(skew_bounds)},
};

static const struct metric_family success_family = {
    "winnow:request_success_total", "Samples that ended with a Done, by finished_reason.",
    METRIC_COUNTER, NULL, 0};
static const struct metric_family outcome_family = {"winnow:request_outcomes_total",
                                                    "Generate calls that are over, by gRPC status.",
                                                    METRIC_COUNTER, NULL, 0};
static const struct metric_family propagated_family = {
    "winnow:propagated_token_ratio", "Tokens that enter the last layer, of the prompt's.",
    BOUNDS(ratio_bounds)};
static const struct metric_family kept_family = {
    "winnow:kept_kv_ratio", "KV bytes stored after the prompt, of what FULL would store.",
    BOUNDS(ratio_bounds)};
static const struct metric_family cache_family = {"winnow:cache_config_info",
                                                  "The KV cache of a group's rank 0; always 1.",
                                                  METRIC_GAUGE, NULL, 0};

/* Series of one rank of one group. */
enum of_rank {
    RANK_STEP,
    RANK_COLLECTIVE,
    RANK_SCORING,
    RANK_COLLECTIVE_SHARE,
    RANK_SCORING_SHARE,
    RANK_SKEW,
    RANK_HEARTBEAT,
    RANK_READY,
    RANK_KV_USED,
    RANK_KV_TOTAL,
    N_RANK,
};

static const struct metric_family rank_families[N_RANK] = {
    [RANK_STEP] = {"winnow:rank_step_seconds_total", "Time in steps.", METRIC_COUNTER, NULL, 0},
    [RANK_COLLECTIVE] = {"winnow:rank_collective_seconds_total",
                         "Of it in collectives, waiting for other ranks included.", METRIC_COUNTER,
                         NULL, 0},
    [RANK_SCORING] = {"winnow:rank_scoring_seconds_total",
                      "Of it for the scores by which methods choose rows.", METRIC_COUNTER, NULL,
                      0},
    [RANK_COLLECTIVE_SHARE] = {"winnow:collective_time_share",
                               "Collectives' part of the last steps' time.", METRIC_GAUGE, NULL, 0},
    [RANK_SCORING_SHARE] = {"winnow:scoring_time_share", "Scores' part of the last steps' time.",
                            METRIC_GAUGE, NULL, 0},
    [RANK_SKEW] = {"winnow:rank_step_skew_seconds",
                   "Own work of this rank less that of its group's quickest, mean of the last "
                   "steps.",
                   METRIC_GAUGE, NULL, 0},
    [RANK_HEARTBEAT] = {"winnow:worker_heartbeat_age_seconds", "Since the worker was last heard.",
                        METRIC_GAUGE, NULL, 0},
    [RANK_READY] = {"winnow:worker_ready", "1 while the worker serves.", METRIC_GAUGE, NULL, 0},
    [RANK_KV_USED] = {"winnow:worker_kv_used_bytes", "KV bytes in use.", METRIC_GAUGE, NULL, 0},
    [RANK_KV_TOTAL] = {"winnow:worker_kv_total_bytes", "KV bytes that there are.", METRIC_GAUGE,
                       NULL, 0},
};

/* What the shares are made of: sums that forget. */
struct recent {
    double steps, step_ms, collective_ms, scoring_ms, skew_ms;
};

struct rank_meters {
    struct metric *metrics[N_RANK];
    struct recent recent;
};

struct group_meters {
    struct metric *cache; /* NULL: the group was never ready */
    struct rank_meters ranks[];
};

enum { N_REASONS = FINISH_ABORTED + 1, N_CODES = STATUS_UNAUTHENTICATED + 1 };

struct meters {
    struct meters_config config;
    struct metrics *metrics;
    struct metric *plain[N_PLAIN];
    struct metric *success[N_REASONS];
    struct metric *outcomes[N_CODES];
    struct metric *propagated[METHOD_COUNT];
    struct metric *kept[METHOD_COUNT];
    struct group_meters *groups[SERVICE_MAX_GROUPS];
};

static void open_labelled(struct meters *meters)
{
    static const char *const reasons[N_REASONS] = {
        [FINISH_STOP_STRING] = "stop",
        [FINISH_LENGTH] = "length",
        [FINISH_ABORTED] = "abort",
    };

    for (int i = 0; i < N_REASONS; i++) {
        if (reasons[i]) {
            meters->success[i] =
                metrics_add(meters->metrics, &success_family,
                            &(struct metric_label){"finished_reason", reasons[i]}, 1);
        }
    }
    meters->success[FINISH_STOP_TOKEN] = meters->success[FINISH_STOP_STRING];
    for (int i = 0; i < N_CODES; i++) {
        if (status_name((status)i)) {
            meters->outcomes[i] =
                metrics_add(meters->metrics, &outcome_family,
                            &(struct metric_label){"code", status_name((status)i)}, 1);
        }
    }
    for (int i = METHOD_UNSPECIFIED + 1; i < METHOD_COUNT; i++) {
        const struct metric_label method = {"method", method_name((enum method)i)};
        if (method_supported((enum method)i)) {
            meters->propagated[i] = metrics_add(meters->metrics, &propagated_family, &method, 1);
            meters->kept[i] = metrics_add(meters->metrics, &kept_family, &method, 1);
        }
    }
}

status meters_open(struct meters **out, const struct meters_config *config)
{
    struct meters *meters = calloc(1, sizeof(*meters));

    if (!meters) {
        return status_fail(STATUS_EXHAUSTED, "no memory for meters");
    }
    status st = metrics_open(&meters->metrics, config->model_name);
    if (st) {
        free(meters);
        return st;
    }
    meters->config = *config;
    for (int i = 0; i < N_PLAIN; i++) {
        meters->plain[i] = metrics_add(meters->metrics, &plain_families[i], NULL, 0);
    }
    open_labelled(meters);
    *out = meters;
    return STATUS_OK;
}

void meters_close(struct meters *meters)
{
    if (!meters) {
        return;
    }
    for (int i = 0; i < SERVICE_MAX_GROUPS; i++) {
        free(meters->groups[i]);
    }
    metrics_close(meters->metrics);
    free(meters);
}

struct metrics *meters_metrics(struct meters *meters)
{
    return meters->metrics;
}

/* ---- requests ---- */

void meters_outcome(struct meters *meters, status code)
{
    if (meters && (int)code >= 0 && (int)code < N_CODES) {
        metric_add(meters->outcomes[code], 1);
    }
}

void meters_first_token(struct meters *meters, uint32_t n_prompt, double ttft_ms)
{
    if (meters) {
        metric_add(meters->plain[PROMPT_TOKENS], n_prompt);
        metric_observe(meters->plain[TTFT], ttft_ms / 1000);
    }
}

void meters_token(struct meters *meters, double since_last_ms)
{
    if (!meters) {
        return;
    }
    metric_add(meters->plain[GENERATION_TOKENS], 1);
    if (since_last_ms >= 0) {
        metric_observe(meters->plain[ITL], since_last_ms / 1000);
    }
}

void meters_sample(struct meters *meters, const struct request *request,
                   const struct request_done *done)
{
    const struct request_usage *usage = &done->usage;
    const struct request_timing *timing = &done->timing;
    enum method method = request->params.method;

    if (!meters) {
        return;
    }
    metric_add(meters->success[done->reason], 1);
    metric_observe(meters->plain[E2E], timing->total_ms / 1000);
    metric_observe(meters->plain[QUEUE_TIME], timing->queue_ms / 1000);
    metric_observe(meters->plain[LENGTH_PROMPT], usage->prompt_tokens);
    metric_observe(meters->plain[LENGTH_GENERATION], usage->completion_tokens);
    metric_observe(meters->plain[PARAMS_MAX_TOKENS], request->sampling.max_tokens);
    metric_observe(meters->plain[PARAMS_N], request->n_samples);
    if (usage->completion_tokens == 0) {
        return; /* aborted before its prompt was read: it has no such times and shares */
    }
    metric_observe(meters->plain[PREFILL_TIME], timing->prefill_ms / 1000);
    metric_observe(meters->plain[DECODE_TIME], timing->decode_ms / 1000);
    metric_observe(meters->plain[INFERENCE_TIME], (timing->prefill_ms + timing->decode_ms) / 1000);
    metric_observe(meters->propagated[method],
                   (double)usage->propagated_tokens / usage->prompt_tokens);
    if (usage->kv_bytes_full) {
        metric_observe(meters->kept[method],
                       (double)usage->kv_bytes / (double)usage->kv_bytes_full);
    }
}

/* ---- the core ---- */

void meters_rerun(struct meters *meters)
{
    if (meters) {
        metric_add(meters->plain[RERUNS], 1);
    }
}

void meters_queue(struct meters *meters, const struct meters_queue *queue)
{
    if (!meters) {
        return;
    }
    metric_set(meters->plain[RUNNING], queue->running);
    metric_set(meters->plain[WAITING], queue->queued);
    metric_set(meters->plain[WAITING_TOKENS], (double)queue->queued_tokens);
    metric_set(meters->plain[READY_GROUPS], queue->ready_groups);
    metric_set(meters->plain[DRAINING], queue->draining);
}

/* Made when the group is met first; NULL: no memory, and nothing of it is counted. */
static struct group_meters *group_meters(struct meters *meters, uint32_t index)
{
    int ranks = meters->config.ranks;
    char group[16];
    char rank[16];

    if (meters->groups[index]) {
        return meters->groups[index];
    }
    struct group_meters *made = calloc(1, sizeof(*made) + (size_t)ranks * sizeof(made->ranks[0]));
    snprintf(group, sizeof(group), "%u", index);
    for (int r = 0; made && r < ranks; r++) {
        snprintf(rank, sizeof(rank), "%d", r);
        const struct metric_label labels[] = {{"group", group}, {"rank", rank}};
        for (int i = 0; i < N_RANK; i++) {
            made->ranks[r].metrics[i] = metrics_add(meters->metrics, &rank_families[i], labels, 2);
        }
    }
    meters->groups[index] = made;
    return made;
}

static double own_ms(const struct step_result *result)
{
    return result->compute_ms - result->collective_ms;
}

static void count_rank(struct rank_meters *rank, const struct step_result *result, double skew_ms)
{
    struct recent *recent = &rank->recent;

    metric_add(rank->metrics[RANK_STEP], result->compute_ms / 1000);
    metric_add(rank->metrics[RANK_COLLECTIVE], result->collective_ms / 1000);
    metric_add(rank->metrics[RANK_SCORING], result->scoring_ms / 1000);
    recent->steps = FORGET * recent->steps + 1;
    recent->step_ms = FORGET * recent->step_ms + result->compute_ms;
    recent->collective_ms = FORGET * recent->collective_ms + result->collective_ms;
    recent->scoring_ms = FORGET * recent->scoring_ms + result->scoring_ms;
    recent->skew_ms = FORGET * recent->skew_ms + skew_ms;
    if (recent->step_ms > 0) {
        metric_set(rank->metrics[RANK_COLLECTIVE_SHARE], recent->collective_ms / recent->step_ms);
        metric_set(rank->metrics[RANK_SCORING_SHARE], recent->scoring_ms / recent->step_ms);
    }
    metric_set(rank->metrics[RANK_SKEW], recent->skew_ms / recent->steps / 1000);
}

void meters_step(struct meters *meters, uint32_t index, const struct step_result *ranks)
{
    struct group_meters *group = meters ? group_meters(meters, index) : NULL;

    if (!group) {
        return;
    }
    double least = own_ms(&ranks[0]);
    double most = least;
    for (int rank = 1; rank < meters->config.ranks; rank++) {
        least = fmin(least, own_ms(&ranks[rank]));
        most = fmax(most, own_ms(&ranks[rank]));
    }
    for (int rank = 0; rank < meters->config.ranks; rank++) {
        count_rank(&group->ranks[rank], &ranks[rank], own_ms(&ranks[rank]) - least);
    }
    metric_observe(meters->plain[ITERATION_TOKENS], ranks[0].n_tokens);
    metric_observe(meters->plain[STEP_SKEW], (most - least) / 1000);
}

void meters_capacity(struct meters *meters, uint32_t index, uint32_t pages, uint32_t page_rows)
{
    struct group_meters *group = meters ? group_meters(meters, index) : NULL;
    char numbers[5][16];

    if (!group) {
        return;
    }
    snprintf(numbers[0], sizeof(numbers[0]), "%u", index);
    snprintf(numbers[1], sizeof(numbers[1]), "%u", page_rows);
    snprintf(numbers[2], sizeof(numbers[2]), "%u", pages);
    snprintf(numbers[3], sizeof(numbers[3]), "%d", meters->config.ranks);
    snprintf(numbers[4], sizeof(numbers[4]), "%u", meters->config.max_context);
    const struct metric_label labels[] = {
        {"group", numbers[0]},         {"block_size", numbers[1]},
        {"num_blocks", numbers[2]},    {"tensor_parallel_size", numbers[3]},
        {"max_model_len", numbers[4]}, {"cache_dtype", dtype_name(meters->config.dtype)},
    };
    if (group->cache) {
        metrics_relabel(meters->metrics, group->cache, labels, N_OF(labels));
    } else {
        group->cache = metrics_add(meters->metrics, &cache_family, labels, N_OF(labels));
        metric_set(group->cache, 1);
    }
}

static void tell_worker(struct rank_meters *rank, const struct worker_status *worker)
{
    bool lost = worker->state == WORKER_STATE_LOST;

    metric_set(rank->metrics[RANK_HEARTBEAT], lost ? NAN : worker->heartbeat_age_s);
    metric_set(rank->metrics[RANK_READY], worker->state == WORKER_STATE_READY);
    metric_set(rank->metrics[RANK_KV_USED], (double)worker->kv_bytes_used);
    metric_set(rank->metrics[RANK_KV_TOTAL], (double)worker->kv_bytes_total);
}

void meters_groups(struct meters *meters, const struct group_status *groups, uint32_t n_groups,
                   const double *promised)
{
    double used = 0;
    double total = 0;
    double most = 0;

    for (uint32_t i = 0; meters && i < n_groups; i++) {
        struct group_meters *group = group_meters(meters, groups[i].group);
        for (uint32_t w = 0; group && w < groups[i].n_workers; w++) {
            const struct worker_status *worker = &groups[i].workers[w];
            tell_worker(&group->ranks[worker->rank], worker);
            used += (double)worker->kv_bytes_used;
            total += (double)worker->kv_bytes_total;
        }
        most = fmax(most, promised[i]);
    }
    if (meters) {
        metric_set(meters->plain[KV_USAGE], total > 0 ? used / total : 0);
        metric_set(meters->plain[KV_PROMISED], most);
    }
}
