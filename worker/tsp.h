/*
 * tsp.h - token-selective propagation: the group chooses, together, the tokens that go on.
 *
 * Every rank sums the scores of its own cache heads, one all-reduce in rank order gives all ranks
 * the same bits, and each takes the same top-k.  A head that several ranks hold counts once.
 */
#ifndef WORKER_TSP_H
#define WORKER_TSP_H

#include "worker/member.h"

struct tsp_choice {
    struct cache_heads heads;
    int rows;
    int window;   /* the last rows, always chosen; scores cover those before */
    int n_chosen; /* window included; >= window */
};

/* index (n_chosen) = the chosen rows, ascending; scores (heads.n, rows - window). */
status tsp_choose(struct member *member, int32_t *index, const float *scores,
                  const struct tsp_choice *choice);

#endif
