#include "worker/sequence.h"

#include <stdlib.h>
#include <string.h>

/* *list = a copy of the n elements that it points to; NULL stays NULL. */
static status own(const void **list, int n, size_t element_bytes)
{
    size_t bytes = (size_t)n * element_bytes;
    void *copy = *list && n > 0 ? malloc(bytes) : NULL;

    if (copy) {
        memcpy(copy, *list, bytes);
    }
    bool failed = !copy && *list && n > 0;
    *list = copy;
    return failed ? status_fail(STATUS_EXHAUSTED, "a sequence's lists: out of memory") : STATUS_OK;
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static void sort(const void *ids, int n)
{
    if (ids) {
        qsort((void *)ids, (size_t)n, sizeof(uint32_t), ascending);
    }
}

status sequence_own_lists(struct sequence *sequence)
{
    struct method_params *params = &sequence->params;
    const void *lists[] = {params->head_scores, params->fg_special_ids, params->fg_punct_ids};
    status st[] = {
        own(&lists[0], params->n_head_scores, sizeof(*params->head_scores)),
        own(&lists[1], params->n_fg_special_ids, sizeof(*params->fg_special_ids)),
        own(&lists[2], params->n_fg_punct_ids, sizeof(*params->fg_punct_ids)),
    };

    sort(lists[1], params->n_fg_special_ids);
    sort(lists[2], params->n_fg_punct_ids);
    params->head_scores = lists[0];
    params->fg_special_ids = lists[1];
    params->fg_punct_ids = lists[2];
    return st[0] ? st[0] : st[1] ? st[1] : st[2];
}

void sequence_fini(struct sequence *sequence)
{
    free(sequence->prompt);
    free((void *)sequence->params.head_scores);
    free((void *)sequence->params.fg_special_ids);
    free((void *)sequence->params.fg_punct_ids);
    free(sequence->policies);
    trace_destroy(sequence->selected);
    *sequence = (struct sequence){0};
}
