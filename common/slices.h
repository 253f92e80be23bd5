/*
 * slices.h - a prompt phase cut into units of scheduling.
 *
 * Prefill is layer-major: one layer for all rows, then the next.  A slice is one chunk of rows
 * of one layer.  Where a layer drops rows (the TSP layer; the last layer, of which only the
 * last row is needed) the keys of all rows come first, then the choice, then the queries of
 * the chosen rows: that is exact, and the dropped rows cost no attention, projection or MLP.
 *
 * A chunk has SLICE_ROWS rows.  Where attention over all earlier rows makes that more than
 * SLICE_MOST_WORK times what the linear layers alone need for so many rows, it has half of them,
 * a quarter, and so on, so that deep in a long prompt a slice is still a short time.
 *
 * What a method scores a layer with counts as work.  A few last rows score with the last keys;
 * where their work would make that slice long, and for scores by all rows that see later keys
 * (H2O as published), the layer is cut in three: keys, scores, queries, of all rows or the chosen.
 *
 * The chunk boundaries depend on the model, the prompt's length and its method alone, so a row is
 * computed in the same company whatever else the server is doing.  Coordinator and worker walk
 * the same sequence of slices, so a plan only says how many to advance.
 *
 * GEMFILTER goes over the layers twice.  Its filter pass computes the layers below the filter
 * layer for the whole prompt, and that layer's keys; the choice follows the last of them, and
 * the second pass starts again at layer 0 with the chosen tokens.  A prompt of which nothing
 * would be dropped has no filter pass.
 */
#ifndef COMMON_SLICES_H
#define COMMON_SLICES_H

#include "common/method.h"

enum {
    SLICE_ROWS = 512,        /* rows of a chunk at most */
    SLICE_LEAST_ROWS = 32,   /* at least, the last one excepted */
    SLICE_MOST_WORK = 8,     /* times the linear layers of SLICE_ROWS rows */
    SLICE_WINDOW_ROWS = 256, /* a longer observation window scores in slices of its own */
};

enum slice_kind {
    SLICE_WHOLE,   /* keys, values and queries of rows [begin, end) */
    SLICE_KEYS,    /* keys and values only */
    SLICE_SCORES,  /* rows [begin, end) score the layer, whose keys are all there */
    SLICE_QUERIES, /* queries of chosen rows [begin, end), numbered among the chosen */
};

struct slice {
    enum slice_kind kind;
    int layer;
    int begin, end; /* rows, of `rows` entering or (SLICE_QUERIES) chosen */
    int rows;       /* rows entering the layer */
    int chosen;     /* rows whose queries are computed; == rows for SLICE_WHOLE */
    bool chooses;   /* all keys and scores of the layer are there once this slice is done */
    bool filter;    /* of the filter pass: nothing is stored, SLICE_KEYS needs keys alone and
                     * chooses tokens, and no SLICE_QUERIES follow */
    int nth_layer;  /* of slices_layers(): counts both passes */
    int scoring;    /* last rows of the layer whose queries score it */
    bool apart;     /* they do so in SLICE_SCORES, between keys and queries */
    double pairs;   /* of a query and a key that this slice scores with, beside its attention */
};

struct slices {
    const struct method_params *params; /* borrowed, like config */
    const struct model_config *config;
    int n_prompt;
    struct slice next; /* end == 0: finished */
};

void slices_begin(struct slices *it, const struct method_params *params,
                  const struct model_config *config, int n_prompt);

/* False when the prompt phase is complete. */
bool slices_next(struct slices *it, struct slice *out);

/* Layers that a prompt goes through, in all passes together. */
int slices_layers(const struct method_params *params, const struct model_config *config,
                  int n_prompt);

/* Floating-point operations of a slice, all ranks together: linear layers, attention, scores. */
double slice_work(const struct model_config *config, const struct slice *slice);

/* The sum over all slices of a prompt phase. */
double slices_total_work(const struct method_params *params, const struct model_config *config,
                         int n_prompt);

#endif
