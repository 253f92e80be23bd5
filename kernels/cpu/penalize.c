/* penalize.c - penalties on tokens that a sequence has seen, block by block of the vocabulary. */
#include "kernels/cpu/cpu.h"

enum { PENALIZE_BLOCK = 1 << 14 };

static float penalized(float logit, uint32_t seen, const struct penalty *penalty)
{
    double x = logit, generated = seen & OP_SEEN_GENERATED;

    x = x > 0 ? x / penalty->repetition : x * penalty->repetition;
    x -= (double)penalty->frequency * generated;
    return (float)(generated > 0 ? x - penalty->presence : x);
}

/* Ids first_id .. first_id + n; `seen` is theirs. */
static void penalize_block(float *out, const float *logits, int n, int first_id,
                           const struct penalty *penalty, uint32_t *seen)
{
    if (penalty->token >= first_id && penalty->token - first_id < n) {
        seen[penalty->token - first_id]++;
    }
    for (int i = 0; i < n; i++) {
        out[i] = seen[i] ? penalized(logits[i], seen[i], penalty) : logits[i];
    }
}

status cpu_penalize(struct device *dev, float *out, const float *logits, int rows, int n,
                    int first_id, const struct penalty *penalties)
{
#pragma omp parallel for schedule(static) collapse(2) \
    num_threads(cpu_threads(dev, (size_t)rows *(size_t)n, PENALIZE_BLOCK))
    for (int r = 0; r < rows; r++) {
        for (int begin = 0; begin < n; begin += PENALIZE_BLOCK) {
            int width = n - begin < PENALIZE_BLOCK ? n - begin : PENALIZE_BLOCK;
            size_t at = (size_t)r * (size_t)n + (size_t)begin;

            if (penalties[r].seen) {
                penalize_block(out + at, logits + at, width, first_id + begin, &penalties[r],
                               penalties[r].seen + begin);
            } else {
                memcpy(out + at, logits + at, (size_t)width * sizeof(*out));
            }
        }
    }
    return STATUS_OK;
}
