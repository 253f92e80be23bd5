#include "worker/tsp.h"

#include "worker/policy/score.h"

status tsp_choose(struct member *member, int32_t *index, const float *scores,
                  const struct tsp_choice *choice)
{
    struct scratch *s = member->scratch;
    int n = choice->rows - choice->window;
    status st;

    if (choice->heads.speaks) {
        st = op_group_reduce(member->dev, s->total, scores, 1, choice->heads.n, n, GROUP_SUM);
    } else {
        st = device_upload(member->dev, s->total, s->host_zeros, (size_t)n * sizeof(*s->total));
    }
    /* Summed in rank order on every rank: another order could round differently and pick other
     * tokens. */
    if (!st) {
        st = comm_all_reduce(member->comm, s->total, (size_t)n);
    }
    if (!st) {
        st = score_keep(member, index, s->total, choice->rows, choice->window, choice->n_chosen);
    }
    return st;
}
