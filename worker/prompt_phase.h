/*
 * prompt_phase.h - what prompts need between their slices; private to prefill*.c and
 * prompt_phase.c.
 *
 * prompt_phase.c owns the memory, prefill.c runs the slices, prefill_queries.c has the queries
 * that score a layer, prefill_choice.c does what the policy chose, prefill_flight.c has the sums
 * over ranks that are on their way.
 */
#ifndef WORKER_PROMPT_PHASE_H
#define WORKER_PROMPT_PHASE_H

#include "worker/columns.h"
#include "worker/forward.h"
#include "worker/policy.h"
#include "worker/prefill.h"

enum { FLIGHT_CHUNKS = 3 };

/* Device memory that prompts share by rows; `rows` is member.prompt_rows.  Allocated once. */
struct prompt_memory {
    float *residual;         /* (rows, hidden) */
    void *k, *v;             /* (kv heads, rows, head_dim) */
    float *sums;             /* (rows) */
    int32_t *ids;            /* (rows) */
    int32_t *positions;      /* (rows) */
    int32_t *next_positions; /* (rows) */
    int32_t *chosen;         /* (rows) */
    void *window_q;          /* (PLAN_MAX_PROMPTS, SLICE_WINDOW_ROWS, query heads, head_dim) */
    float *window_lse;       /* (PLAN_MAX_PROMPTS, SLICE_WINDOW_ROWS, query heads) */
    struct columns columns;
    int32_t *host_positions; /* (rows) */
    int32_t *host_list;      /* (rows) */
    uint8_t *host_marks;     /* (rows) */
};

/* A chunk whose layer is not complete yet: what it waits for. */
struct chunk_flight {
    enum { FLIGHT_NONE, FLIGHT_OUTPUT, FLIGHT_MLP } waits_for;
    int layer;
    int begin, end; /* rows of the layer */
    struct forward_sum sum;
};

/* The newest chunks of one prompt (prefill_flight.c). */
struct flight {
    struct prompt_phase *phase;                /* whose; NULL: none is on its way */
    struct chunk_flight chunks[FLIGHT_CHUNKS]; /* number i is at i % FLIGHT_CHUNKS */
    int taken_off;
    float *partial; /* (FLIGHT_CHUNKS, SLICE_ROWS, hidden); NULL: one rank, nothing is summed */
};

/* One prompt; its tensors are n_prompt rows of the memory, and heads lie phase_kv_stride() apart.
 */
struct prompt_phase {
    struct member *member;
    struct kvcache *cache;
    struct sequence *sequence; /* NULL: idle */
    struct slices cursor;
    struct layer_rows counts; /* of the current layer */
    const struct policy *policy;
    struct flight *flight; /* shared by all prompts */
    uint64_t embed_ticket; /* of the embeddings that were begun last */

    float *residual;         /* (rows, hidden); after a choice its rows are the chosen ones */
    void *k, *v;             /* (kv heads, rows, head_dim): the layer's, rotated */
    float *sums;             /* (rows): scores of a layer's rows, added up chunk by chunk */
    int32_t *ids;            /* (rows): of the rows that enter layer 0 */
    int32_t *positions;      /* (rows): original positions of the rows */
    int32_t *next_positions; /* (rows): those of the chosen rows */
    int32_t *chosen;         /* (rows): rows that go on from a layer that drops some */
    void *window_q;          /* (SLICE_WINDOW_ROWS, query heads, head_dim), its own */
    float *window_lse;       /* (SLICE_WINDOW_ROWS, query heads) of their attention, if it ran */
    struct columns columns;  /* for methods that choose by all rows */
    int32_t *host_positions; /* (rows): mirror of positions */
    int32_t *host_list;      /* (rows): a list of rows, then of their positions */
    uint8_t *host_marks;     /* (rows): evict_mark() of the tokens */
    struct trace *trace;     /* NULL: not asked for */
};

struct prompt_phases {
    struct member *member;
    struct prompt_memory memory;
    struct flight flight;
    struct prompt_phase phases[PLAN_MAX_PROMPTS];
};

/* Sizes: bytes of an activation, elements of a row's keys and queries, elements between heads. */
static inline size_t phase_act_bytes(const struct member *member)
{
    return dtype_bytes(device_dtype(member->dev));
}

static inline size_t phase_key_elements(const struct model *model)
{
    return (size_t)model->split.kv_heads * (size_t)model->config.head_dim;
}

static inline size_t phase_query_elements(const struct model *model)
{
    return (size_t)model->split.query_heads * (size_t)model->config.head_dim;
}

static inline size_t phase_kv_stride(const struct member *member)
{
    return (size_t)member->prompt_rows * (size_t)member->model->config.head_dim;
}

static inline const struct layer_weights *phase_weights(const struct prompt_phase *phase, int layer)
{
    return &phase->member->model->layers[layer];
}

/* prefill_queries.c */

/* What a policy is told about the layer of a slice. */
struct policy_layer prefill_describe_layer(const struct prompt_phase *phase,
                                           const struct slice *slice);

/* Queries of the normed rows in scratch, rotated. */
status prefill_project_queries(const struct prompt_phase *phase, int layer,
                               const int32_t *positions, int rows);

/* SLICE_KEYS: of the normed chunk only the queries of a window that scores with the last keys are
 * needed now. */
status prefill_window_of_keys(const struct prompt_phase *phase, const struct slice *slice);

/* SLICE_WHOLE: the window's queries are among those of the chunk, whose attention is done. */
status prefill_window_of_chunk(const struct prompt_phase *phase, const struct slice *slice);

/* SLICE_KEYS: column sums need the queries of rows that nothing else needs. */
status prefill_columns_of_keys(const struct prompt_phase *phase, const struct slice *slice);

/* SLICE_SCORES: the chunk's queries in scratch add to the scores of the layer; `open`: as
 * method_scores_open() says. */
status prefill_score_columns(const struct prompt_phase *phase, const struct slice *slice,
                             bool open);

/* The chunk's queries in scratch join the column sums; lse may be NULL. */
status prefill_add_to_columns(const struct prompt_phase *phase, const struct slice *slice,
                              const float *lse);

/* prefill_flight.c */

/* Bytes of device memory. */
uint64_t flight_bytes(const struct model *model);

status flight_create(struct flight *flight, const struct member *member);
void flight_destroy(struct flight *flight, const struct member *member);

/* What scratch->attended of the chunk still needs to complete its layer takes off; chunks before it
 * go on or arrive. */
status flight_take_off(struct prompt_phase *phase, const struct slice *slice);

/* All chunks arrive that a slice of `phase` cannot do without; NULL: all. */
status flight_land_for(struct flight *flight, const struct prompt_phase *phase,
                       const struct slice *slice);

/* What is on its way for this phase arrives in memory that nobody reads. */
void flight_forget(struct prompt_phase *phase);

/* prefill_choice.c */

/* All keys of the layer are there: the policy chooses, what is kept goes to the cache. */
status prefill_choose(struct prompt_phase *phase, const struct slice *slice);

/* The filter pass is over: the chosen tokens are the rows of the second one. */
status prefill_filter(struct prompt_phase *phase, const struct slice *slice);

#endif
