/* gemfilter.h - the choice between the two passes of GEMFILTER. */
#ifndef WORKER_POLICY_GEMFILTER_H
#define WORKER_POLICY_GEMFILTER_H

#include "worker/policy.h"

/* layer->propagated (n_chosen) = the chosen rows of the prompt, ascending, the same on every
 * rank.  `layer` is the filter layer: it reads the keys and, in window_q, the last row's query. */
status gemfilter_choose(struct member *member, const struct policy_layer *layer, int n_chosen);

#endif
