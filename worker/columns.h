/*
 * columns.h - how much attention each row of a layer got from all rows: for the methods that choose
 * by it.
 *
 * Chunk by chunk: a causal row sees no later key, so the sums of a chunk are final for its own
 * part as soon as it ran.  When a layer has its last chunk, they are whole.
 */
#ifndef WORKER_COLUMNS_H
#define WORKER_COLUMNS_H

#include "worker/member.h"
#include "worker/sequence.h"

struct columns {
    float *all;  /* (query heads, rows of the layer) */
    float *near; /* likewise, of pairs less than n_near apart; or of columns_score() */
    bool wanted;
    int n_near; /* 0: near is not wanted */
};

/* Bytes of device memory for prompts that share so many rows. */
uint64_t columns_bytes(const struct model *model, int prompt_rows);

/* The memory of all prompts. */
status columns_create(struct columns *memory, const struct member *member);
void columns_destroy(struct columns *memory, struct device *dev);

/* What the method needs for a prompt of this length, in the part of `memory` that is its. */
void columns_begin(struct columns *columns, const struct columns *memory,
                   const struct member *member, const struct sequence *sequence);

/* Query rows in scratch, rotated: rows first_row.. of a layer of `rows_in_layer`, whose keys up to
 * theirs are there. */
struct columns_chunk {
    const void *k;
    size_t kv_stride;
    const int32_t *positions;
    const float *lse; /* of their attention, or NULL */
    int first_row, rows, rows_in_layer;
};
status columns_add(const struct columns *columns, const struct member *member,
                   const struct columns_chunk *chunk);

/* A chunk of the last rows of a layer, whose keys are all there, scores it: columns->near (query
 * heads, rows of the layer) += its weights.  Rows before open_rows see all keys of the layer; with
 * 0 every row sees those up to its own, as in its attention. */
status columns_score(const struct columns *columns, const struct member *member,
                     const struct columns_chunk *chunk, bool first, int open_rows);

#endif
