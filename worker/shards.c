#include "worker/shards.h"

#include <stdlib.h>

enum { MAX_ROWS = SHARDS_MAX_ROWS, BINS = OP_HISTOGRAM_BINS };

/* Of one rank. */
struct found {
    struct drawn drawn[MAX_ROWS];
    struct logit_bin bins[MAX_ROWS][BINS];
};

/* On the device. */
struct shards_memory {
    struct draw greedy[MAX_ROWS]; /* the largest logit */
    struct found here;
    struct found of_all[]; /* (ranks) bytes; each list is used without gaps between ranks */
};

struct shards {
    struct member *member;
    struct shards_memory *memory;
};

uint64_t shards_bytes(int ranks)
{
    return sizeof(struct shards_memory) + (uint64_t)ranks * sizeof(struct found);
}

status shards_create(struct shards **out, struct member *member)
{
    struct shards *shards = calloc(1, sizeof(*shards));
    struct draw greedy[MAX_ROWS];
    void *memory;

    if (!shards) {
        return status_fail(STATUS_EXHAUSTED, "shards: out of memory");
    }
    shards->member = member;
    status st = device_alloc(member->dev, &memory, shards_bytes(comm_size(member->comm)),
                             "answers of all vocabulary shards");
    if (!st) {
        shards->memory = memory;
        for (int i = 0; i < MAX_ROWS; i++) {
            greedy[i] = (struct draw){.tie_id = OP_ANY_ID};
        }
        st = device_upload(member->dev, shards->memory->greedy, greedy, sizeof(greedy));
    }
    if (st) {
        shards_destroy(shards);
        return st;
    }
    *out = shards;
    return STATUS_OK;
}

void shards_destroy(struct shards *shards)
{
    if (shards) {
        device_free(shards->member->dev, shards->memory);
        free(shards);
    }
}

status shards_draw(struct shards *shards, struct drawn *best, const float *logits,
                   const struct draw *draws, int n)
{
    const struct member *member = shards->member;
    const struct split *split = &member->model->split;
    struct shards_memory *memory = shards->memory;
    struct drawn *of_all = (struct drawn *)(void *)memory->of_all;
    status st = op_draw(member->dev, memory->here.drawn, logits, n, split->vocab_rows,
                        split->vocab_first, draws ? draws : memory->greedy);

    if (!st) {
        st = comm_all_gather(member->comm, of_all, memory->here.drawn, (size_t)n * sizeof(*of_all));
    }
    return st ? st : op_best_drawn(member->dev, best, of_all, n, comm_size(member->comm));
}

status shards_narrow(struct shards *shards, const struct shards_round *round)
{
    const struct member *member = shards->member;
    struct shards_memory *memory = shards->memory;
    struct logit_bin *of_all = (struct logit_bin *)(void *)memory->of_all;
    status st = op_logit_histogram(member->dev, &(struct logit_histogram){
                                                    .out = memory->here.bins[0],
                                                    .logits = round->logits,
                                                    .filters = round->filters,
                                                    .peaks = round->peaks,
                                                    .rows = round->n,
                                                    .n = member->model->split.vocab_rows,
                                                    .shift = round->shift,
                                                });

    if (!st) {
        st = comm_all_gather(member->comm, of_all, memory->here.bins[0],
                             (size_t)round->n * sizeof(memory->here.bins[0]));
    }
    return st ? st
              : op_narrow(member->dev, &(struct narrow){
                                           .filters = round->filters,
                                           .peaks = round->peaks,
                                           .bins = of_all,
                                           .rows = round->n,
                                           .ranks = comm_size(member->comm),
                                           .rank = comm_rank(member->comm),
                                           .shift = round->shift,
                                           .by_mass = round->by_mass,
                                       });
}
