/* method_rows.c - how many rows each method keeps and propagates; the other half of method.h. */
#include "common/method.h"

#include <assert.h>
#include <limits.h>
#include <math.h>

static const double pi = 3.14159265358979323846;

/* trunc(rows * rate), the product formed in double: the published budget. */
static int budget(const struct method_params *params, int rows, double rate)
{
    if (params->absolute) {
        return params->capacity;
    }
    double product = (double)rows * rate;
    return product < INT_MAX ? (int)product : INT_MAX; /* the quotient of rates may be huge */
}

int method_budget(const struct method_params *params, int rows)
{
    return budget(params, rows, params->retain_rate);
}

static int at_least(int value, int least)
{
    return value > least ? value : least;
}

static int at_most(int value, int most)
{
    return value < most ? value : most;
}

static struct layer_rows keep_all(int rows)
{
    return (struct layer_rows){.kept = rows, .propagated = rows};
}

/* The window, and `chosen` of the rows before it. */
static struct layer_rows keep_chosen(const struct method_params *params, int rows, int chosen)
{
    chosen = at_most(at_least(chosen, 0), rows - params->window);
    return (struct layer_rows){
        .kept = chosen + params->window, .propagated = rows, .selects = true};
}

static bool fits(const struct method_params *params, int rows, int capacity)
{
    return rows < capacity || rows <= params->window;
}

/* SNAPKV and H2O: the same number for every head. */
static struct layer_rows uniform_rows(const struct method_params *params, int rows)
{
    int capacity = method_budget(params, rows);

    return fits(params, rows, capacity) ? keep_all(rows)
                                        : keep_chosen(params, rows, capacity - params->window);
}

static struct layer_rows fastkv_rows(const struct method_params *params, int layer, int rows)
{
    double rate =
        layer <= params->tsp_layer ? params->retain_rate : params->retain_rate / params->tsp_rate;
    int capacity = budget(params, rows, rate);

    if (fits(params, rows, capacity)) {
        return keep_all(rows);
    }
    struct layer_rows out = keep_chosen(params, rows, capacity - params->window);
    if (layer == params->tsp_layer) {
        int tsp = budget(params, rows, params->tsp_rate);
        if (params->absolute) {
            tsp = params->tsp_len;
        }
        if (rows > tsp) {
            out.propagated = at_least(tsp, params->window);
        }
    }
    return out;
}

/* Rows before the window that the budget has for each head. */
static int base_rows(const struct method_params *params, int rows)
{
    return at_least(method_budget(params, rows) - params->window, 0);
}

int64_t method_adakv_places(const struct method_params *params, const struct model_config *config,
                            int rows)
{
    return (int64_t)base_rows(params, rows) * method_cache_heads(params, config);
}

int method_adakv_rows(const struct method_params *params, int rows, int won)
{
    double floor_rows = trunc(base_rows(params, rows) * params->floor_alpha);
    double chosen = rint(won * (1.0 - params->floor_alpha) + floor_rows);

    return keep_chosen(params, rows, (int)chosen).kept;
}

/* A head may win every place of the layer-wide choice; the floor comes on top. */
static struct layer_rows adakv_rows(const struct method_params *params,
                                    const struct model_config *config, int rows)
{
    int64_t places = method_adakv_places(params, config, rows);
    int most = places < rows - params->window ? (int)places : rows - params->window;

    if (fits(params, rows, method_budget(params, rows))) {
        return keep_all(rows);
    }
    return (struct layer_rows){
        .kept = method_adakv_rows(params, rows, most), .propagated = rows, .selects = true};
}

/* Floor division of doubles as the published Python code computes it. */
static double floor_divide(double a, double b)
{
    double rest = fmod(a, b);
    double quotient = (a - rest) / b;
    double down = floor(quotient);

    return quotient - down > 0.5 ? down + 1.0 : down;
}

/* s = (importance / total) ^ temperature, before it is normalised again. */
static double tempered(const struct method_params *params, double total, int i)
{
    double share = (double)params->head_scores[i] / total;

    return params->headkv_temp == 1.0 ? share : pow(share, params->headkv_temp);
}

/* The sums of the importance and of its tempered shares. */
static void headkv_totals(const struct method_params *params, double *total, double *total_tempered)
{
    *total = 0;
    *total_tempered = 0;
    for (int i = 0; i < params->n_head_scores; i++) {
        *total += (double)params->head_scores[i];
    }
    for (int i = 0; i < params->n_head_scores; i++) {
        *total_tempered += tempered(params, *total, i);
    }
}

bool method_headkv_normalises(const struct method_params *params)
{
    double total;
    double total_tempered;

    headkv_totals(params, &total, &total_tempered);
    return isnormal(total) && isnormal(total_tempered);
}

/* A head's places as a number of rows to choose, of `rows` at most. */
static int rows_of_places(double places, int rows)
{
    return places < rows ? (int)places : rows;
}

void method_headkv_rows(const struct method_params *params, const struct model_config *config,
                        int layer, int rows, int *kept)
{
    int heads = config->query_heads;
    int group = config->query_heads / config->kv_heads;
    int base = base_rows(params, rows);
    double pool = floor_divide(base, params->headkv_beta);
    double total;
    double total_tempered;

    assert(params->n_head_scores == config->layers * heads);
    headkv_totals(params, &total, &total_tempered);
    bool by_query = method_caches_by_query(params);
    double sum = 0;
    for (int h = 0; h < heads; h++) {
        double share = tempered(params, total, layer * heads + h) / total_tempered;
        double places = rint(share * (pool * params->n_head_scores) + (base - pool));
        sum += places;
        if (by_query) {
            kept[h] = keep_chosen(params, rows, rows_of_places(places, rows)).kept;
        } else if (h % group == group - 1) {
            int chosen = rows_of_places(rint(sum / group), rows);
            kept[h / group] = keep_chosen(params, rows, chosen).kept;
            sum = 0;
        }
    }
}

static struct layer_rows headkv_rows(const struct method_params *params,
                                     const struct model_config *config, int layer, int rows)
{
    int kept[MODEL_MAX_HEADS] = {0};
    struct layer_rows out = {.propagated = rows, .selects = true};

    if (fits(params, rows, method_budget(params, rows))) {
        return keep_all(rows);
    }
    method_headkv_rows(params, config, layer, rows, kept);
    for (int h = 0; h < method_cache_heads(params, config); h++) {
        out.kept = at_least(out.kept, kept[h]);
    }
    return out;
}

static int floor_quotient(int a, int b)
{
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static struct layer_rows pyramidkv_rows(const struct method_params *params,
                                        const struct model_config *config, int layer, int rows)
{
    int capacity = method_budget(params, rows);
    int base = capacity - params->window;
    int64_t low = floor_quotient(base, params->pyramid_beta);
    int64_t high = 2 * (int64_t)base - low;

    if (fits(params, rows, capacity)) {
        return keep_all(rows);
    }
    if (rows < 2 * (int64_t)base || config->layers == 1) {
        return keep_chosen(params, rows, base);
    }
    if (high >= rows - params->window) {
        high = rows - params->window;
        low = 2 * (int64_t)base - high;
    }
    int step = floor_quotient((int)(high - low), config->layers - 1);
    return keep_chosen(params, rows, (int)(high - (int64_t)layer * step));
}

static struct layer_rows streamingllm_rows(const struct method_params *params, int rows)
{
    int capacity = method_budget(params, rows);

    if (rows < capacity || rows <= params->sinks) {
        return keep_all(rows);
    }
    int recent = at_least(capacity - params->sinks, 1);
    int first = at_least(rows - recent, params->sinks);
    return (struct layer_rows){
        .kept = params->sinks + rows - first, .propagated = rows, .selects = true};
}

static int pyramidinfer_recent(const struct method_params *params, int n_prompt)
{
    return (int)((double)n_prompt * params->pi_recent_ratio);
}

static struct layer_rows pyramidinfer_rows(const struct method_params *params,
                                           const struct model_config *config, int n_prompt,
                                           int layer, int rows)
{
    int recent = pyramidinfer_recent(params, n_prompt);
    int context = rows - (1 + recent);
    int least = at_most(params->pi_min_context, n_prompt - 1 - recent);
    double decay = params->pi_decay_ratio;
    double ratio = (1.0 - decay) * (cos(pi * layer / config->layers) + 1) / 2 + decay;
    struct layer_rows out = keep_all(rows);

    if (context > least && ratio < 1.0 && (int)(context * ratio) > least) {
        int sinks = at_most(params->pi_sinks, context);
        out.propagated = at_least((int)(context * ratio), sinks) + 1 + recent;
    }
    return out;
}

int method_first_rows(const struct method_params *params, int n_prompt)
{
    if (params->method != METHOD_GEMFILTER) {
        return n_prompt;
    }
    return at_least(at_most(method_budget(params, n_prompt), n_prompt), 1);
}

bool method_filters(const struct method_params *params, int n_prompt)
{
    return method_first_rows(params, n_prompt) < n_prompt;
}

struct layer_rows method_layer_rows(const struct method_params *params,
                                    const struct model_config *config, int n_prompt, int layer,
                                    int rows)
{
    assert(layer >= 0 && layer < config->layers && rows > 0);
    switch (params->method) {
    case METHOD_FASTKV:
        return fastkv_rows(params, layer, rows);
    case METHOD_SNAPKV:
    case METHOD_H2O:
        return uniform_rows(params, rows);
    case METHOD_ADAKV:
        return adakv_rows(params, config, rows);
    case METHOD_HEADKV:
        return headkv_rows(params, config, layer, rows);
    case METHOD_PYRAMIDKV:
        return pyramidkv_rows(params, config, layer, rows);
    case METHOD_STREAMINGLLM:
        return streamingllm_rows(params, rows);
    case METHOD_PYRAMIDINFER:
        return pyramidinfer_rows(params, config, n_prompt, layer, rows);
    case METHOD_FASTGEN:
        return (struct layer_rows){.kept = rows, .propagated = rows, .selects = true};
    default: /* FULL; GEMFILTER chooses between its passes */
        return keep_all(rows);
    }
}

int method_peak_rows(const struct method_params *params, int n_prompt, int kept, int appended)
{
    int capacity = method_budget(params, n_prompt);
    int sum = kept + appended;

    if (params->method == METHOD_STREAMINGLLM && params->rolling) {
        /* one goes before one comes, but the sinks stay */
        return at_most(sum, at_least(at_least(kept, capacity), params->sinks + 1));
    }
    if (params->method == METHOD_H2O && params->h2o_dynamic) {
        /* one goes after one came, but the window stays */
        int64_t most = (int64_t)at_least(at_least(kept, capacity), params->window) + 1;
        return most < sum ? (int)most : sum; /* a capacity may be INT_MAX */
    }
    return sum;
}

bool method_heads_differ(const struct method_params *params)
{
    return params->method == METHOD_ADAKV || params->method == METHOD_HEADKV;
}

static uint64_t pages_of(int64_t rows, int page_rows)
{
    return (uint64_t)((rows + page_rows - 1) / page_rows);
}

/* ADAKV: rows that the heads of a range hold when they win every place they can. */
static int64_t adakv_most(const struct method_params *params, const struct model_config *config,
                          const struct layer_load *load, int n_heads)
{
    int64_t places = method_adakv_places(params, config, load->rows);
    int64_t there = (int64_t)n_heads * (load->rows - params->window);
    double floor_rows = trunc(base_rows(params, load->rows) * params->floor_alpha);
    double won = (double)(places < there ? places : there) * (1.0 - params->floor_alpha);

    /* Each head's share may be rounded up by a half. */
    return (int64_t)ceil(won + n_heads * (floor_rows + 0.5)) + (int64_t)n_heads * params->window;
}

void method_add_pages(const struct method_params *params, const struct model_config *config,
                      const struct layer_load *load, const struct head_range *ranges, int n,
                      uint64_t *pages)
{
    struct layer_rows counts =
        method_layer_rows(params, config, load->n_prompt, load->layer, load->rows);
    int most = method_peak_rows(params, load->n_prompt, counts.kept, load->appended);
    int kept[MODEL_MAX_HEADS] = {0};

    if (counts.selects && params->method == METHOD_HEADKV) {
        method_headkv_rows(params, config, load->layer, load->rows, kept);
    }
    for (int i = 0; i < n; i++) {
        int heads = ranges[i].n;
        uint64_t all = (uint64_t)heads * pages_of(most, load->page_rows);
        if (counts.selects && params->method == METHOD_HEADKV) {
            all = 0;
            for (int h = ranges[i].first; h < ranges[i].first + heads; h++) {
                all += pages_of(kept[h] + load->appended, load->page_rows);
            }
        } else if (counts.selects && params->method == METHOD_ADAKV) {
            /* Of each head's last page all rows but one may be empty. */
            int64_t rows = adakv_most(params, config, load, heads) +
                           (int64_t)heads * (load->appended + load->page_rows - 1);
            uint64_t shared = (uint64_t)(rows / load->page_rows);
            all = shared < all ? shared : all;
        }
        pages[i] += all;
    }
}

bool method_caches_by_query(const struct method_params *params)
{
    switch (params->method) {
    case METHOD_FULL:
    case METHOD_GEMFILTER:
    case METHOD_PYRAMIDINFER: /* these keep every row that is in a layer */
        return false;
    default:
        return params->granularity == GRANULARITY_Q;
    }
}

int method_cache_heads(const struct method_params *params, const struct model_config *config)
{
    return method_caches_by_query(params) ? config->query_heads : config->kv_heads;
}

int method_score_rows(const struct method_params *params, int n_prompt)
{
    switch (params->method) {
    case METHOD_FASTKV:
    case METHOD_SNAPKV:
    case METHOD_ADAKV:
    case METHOD_HEADKV:
    case METHOD_PYRAMIDKV:
        return params->window;
    case METHOD_GEMFILTER:
        return 1;
    case METHOD_PYRAMIDINFER:
        return 1 + pyramidinfer_recent(params, n_prompt);
    case METHOD_H2O:
        return method_scores_open(params) ? n_prompt : 0;
    default:
        return 0;
    }
}

bool method_scores_all_rows(const struct method_params *params)
{
    return params->method == METHOD_H2O || params->method == METHOD_FASTGEN;
}

bool method_evicts(const struct method_params *params)
{
    return (params->method == METHOD_STREAMINGLLM && params->rolling) ||
           (params->method == METHOD_H2O && params->h2o_dynamic) ||
           params->method == METHOD_FASTGEN;
}

bool method_scores_open(const struct method_params *params)
{
    return params->method == METHOD_H2O && !params->h2o_causal;
}

bool method_sums_columns(const struct method_params *params, int n_prompt)
{
    if (params->method == METHOD_H2O && !params->h2o_dynamic) {
        return params->h2o_causal && !fits(params, n_prompt, method_budget(params, n_prompt));
    }
    return params->method == METHOD_H2O || params->method == METHOD_FASTGEN;
}

int method_fastgen_local(const struct method_params *params, int n_prompt)
{
    return at_least((int)(params->fg_local_ratio * n_prompt), 1);
}

int method_fastgen_frequent(const struct method_params *params, int n_prompt)
{
    return at_least((int)(params->fg_freq_ratio * n_prompt), 1);
}

int method_propagated(const struct method_params *params, const struct model_config *config,
                      int n_prompt)
{
    int rows = method_first_rows(params, n_prompt);

    for (int layer = 0; layer + 1 < config->layers; layer++) {
        rows = method_layer_rows(params, config, n_prompt, layer, rows).propagated;
    }
    return rows;
}
