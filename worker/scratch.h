/*
 * scratch.h - every temporary tensor of a step, allocated once.
 *
 * One step uses them at a time: a chunk of prompt rows, then the rows of a decode step.  What a
 * prompt needs between its slices is in struct prompt_phase (prefill.h).
 */
#ifndef WORKER_SCRATCH_H
#define WORKER_SCRATCH_H

#include "common/plan.h"
#include "common/slices.h"
#include "worker/model.h"

enum {
    SCRATCH_BUFFERS = 40,
    SCRATCH_DECODE_ROWS = OP_MAX_DECODE_ROWS, /* a decode step runs in batches of so many */
};

struct scratch {
    /* Rows of a chunk or of a decode step: (SLICE_ROWS, ...). */
    void *normed;    /* hidden, act */
    void *q;         /* query heads * head_dim, act */
    void *k, *v;     /* kv heads * head_dim, act */
    void *attended;  /* query heads * head_dim, act */
    float *lse;      /* (SLICE_ROWS, query heads): of the rows' attention */
    void *gate, *up; /* MLP columns, act */
    float *partial;  /* hidden: this rank's summand of a projection */
    float *residual; /* hidden: chosen rows of a chunk, or the rows of a decode step */
    float *logits;   /* (SCRATCH_DECODE_ROWS, vocabulary rows) */

    /* Queries of a decode step: (SCRATCH_DECODE_ROWS, ...). */
    void *q_sinks;    /* query heads, head_dim: as attention sinks see them */
    void *group_q;    /* group heads, head_dim: of all ranks of a KV head (group_queries.h) */
    void *q_of_ranks; /* (ranks, SCRATCH_DECODE_ROWS, most heads of a rank, head_dim) */

    /* Choosing rows of one layer. */
    float *scores;      /* (query heads, max_context) */
    float *pooled;      /* likewise */
    float *total;       /* (max_context): sums over all heads of all ranks */
    int32_t *kept;      /* (query heads, max_context), by cache head */
    int32_t *chosen;    /* (max_context) */
    int32_t *in_order;  /* (SLICE_ROWS): 0, 1, 2, ... */
    float *row_weights; /* (SLICE_ROWS): of scoring rows of a chunk */

    char *step; /* struct step_lists */

    /* Rows that leave the cache after a decode step: (cells of struct step_lists). */
    struct evict_rule *rules;
    int32_t *evicted;

    struct kv_note *notes; /* (max_context): of the rows of one head, to their places */

    /* The k-th largest score of all heads of all ranks, found by key. */
    int32_t *key_counts;      /* (query heads, OP_KEY_BINS), by cache head */
    int64_t *key_sums;        /* (OP_KEY_BINS) of this rank's heads */
    int64_t *key_sums_of_all; /* (ranks, OP_KEY_BINS) */

    uint64_t *hashes;        /* (2) of this rank */
    uint64_t *hashes_of_all; /* (ranks, 2) */

    /* Mirrors on the host. */
    int32_t *host_rows;  /* (query heads, max_context) */
    float *host_mass;    /* likewise: attention that rows got */
    float *host_other;   /* (max_context): the same, for choosing */
    uint8_t *host_marks; /* (max_context) */
    float *host_near;    /* likewise, from near rows alone */
    float *host_zeros;   /* (max_context) */
    char *host_step;     /* struct step_lists */
    struct evict_rule *host_rules;
    int32_t *host_evicted;
    struct kv_note *host_notes; /* (max_context) */
    int32_t *host_key_counts;   /* as above */
    int64_t *host_key_sums;
    uint64_t *host_hashes; /* (ranks, 2) */

    struct device *dev;
    void *device_memory[SCRATCH_BUFFERS];
    int n_device_memory;
};

/* What changes from one batch of a decode step to the next, in one piece, so that one upload brings
 * it to the device.  `cells`: layers * rows * cache heads of a row. */
struct step_lists {
    const int32_t **tables;         /* (cells): page tables */
    int32_t *first, *length, *slot; /* (cells): rows that are seen, and where the new one goes */
    int32_t *ids;                   /* (rows) */
    int32_t *positions;             /* (rows) */
    int32_t *sinks;                 /* (rows): struct decode_attention */
    int32_t *sink_positions;        /* (rows): of queries as these see them */
    int32_t *order;                 /* (rows): where the rows are whose logits come in this order */
    int32_t *group_rows;            /* (rows, group heads) of group_queries.h; none if not apart */
};
/* Where the lists lie in memory at `base`, and their bytes. */
size_t step_lists_lay_out(struct step_lists *lists, char *base, const struct model *model,
                          size_t rows, size_t cells);

/* Bytes of device memory that scratch_create() takes. */
uint64_t scratch_bytes(const struct model *model, enum dtype dtype, int max_context, int ranks);

status scratch_create(struct scratch **out, struct device *dev, const struct model *model,
                      int max_context, int ranks);
void scratch_destroy(struct scratch *scratch); /* NULL is fine */

#endif
