#include "tests/coordinator/helpers_traffic.h"

#include <math.h>

uint64_t traffic_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

double traffic_chance(struct traffic *traffic)
{
    traffic->random = traffic_mix(traffic->random);
    return (double)(traffic->random >> 11) / 9007199254740992.0;
}

uint32_t traffic_below(struct traffic *traffic, uint32_t n)
{
    return (uint32_t)(traffic_chance(traffic) * n);
}

double traffic_wait_ms(struct traffic *traffic, double per_ms)
{
    return -log(1 - traffic_chance(traffic)) / per_ms;
}

static uint32_t log_normal(struct traffic *traffic, double median, double sigma, uint32_t most)
{
    static const double two_pi = 6.28318530717958647692;
    double radius = sqrt(-2 * log(1 - traffic_chance(traffic)));
    double value = median * exp(sigma * radius * cos(two_pi * traffic_chance(traffic)));

    return value < 1 ? 1 : value < most ? (uint32_t)value : most;
}

static void draw_method(struct traffic *traffic, const struct traffic_kind *kind,
                        const struct model_config *model, struct method_params *params)
{
    static const float head_scores[24] = {3, 1, 2, 5, 1, 1, 4, 1, 0.5F, 2, 2, 1};
    double share = traffic_chance(traffic);
    enum method method = share < 0.5 ? METHOD_FASTKV : METHOD_FULL;

    if (kind->real && share >= 0.75) {
        method = (enum method)(METHOD_FULL + traffic_below(traffic, METHOD_COUNT - METHOD_FULL));
    }
    method_defaults(params, method, model);
    if (method == METHOD_HEADKV) {
        params->head_scores = head_scores;
        params->n_head_scores = model->layers * model->query_heads;
    }
    params->rolling = kind->real && traffic_chance(traffic) < 0.5;
    params->h2o_dynamic = params->rolling;
}

static void draw_lengths(struct traffic *traffic, const struct traffic_kind *kind,
                         struct request *request)
{
    uint32_t most = kind->max_context - 4096;
    bool is_document = kind->real && traffic_chance(traffic) < 0.05;

    if (!kind->real) {
        request->n_prompt = 1 + (uint32_t)(pow(traffic_chance(traffic), 4) * kind->max_prompt);
        request->sampling.max_tokens = 1 + traffic_below(traffic, 100);
        return;
    }
    request->n_prompt =
        is_document ? log_normal(traffic, 24000, 0.8, most) : log_normal(traffic, 1020, 1.0, most);
    request->sampling.max_tokens = log_normal(traffic, 129, 1.0, 4096);
}

void traffic_make_request(struct traffic *traffic, const struct traffic_kind *kind,
                          const struct model_config *model, double now, struct request *request)
{
    request->sampling = (struct sampling){.top_p = 1};
    draw_lengths(traffic, kind, request);
    draw_method(traffic, kind, model, &request->params);
    request->sampling.min_tokens = traffic_chance(traffic) < 0.2 ? traffic_below(traffic, 20) : 0;
    request->n_samples =
        traffic_chance(traffic) < 0.1 ? 1 + traffic_below(traffic, TRAFFIC_MAX_SAMPLES) : 1;
    request->ignore_eos = traffic_chance(traffic) < 0.3;
    if (kind->real && traffic_chance(traffic) < 0.2) {
        request->priority = (int32_t)traffic_below(traffic, 5) - 2;
    }
    request->arrived_ms = now;
    request->deadline_ms = INT64_MAX;
    if (traffic_chance(traffic) < kind->deadline_share) {
        request->deadline_ms = (int64_t)(now + traffic_wait_ms(traffic, 1.0 / 500));
    }
}
