/* draw.c - choosing tokens: perturbed maxima, block by block of the vocabulary. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/philox.h"

#include <math.h>

enum { DRAW_BLOCK = 1 << 14 };

/* Noise of bits b, see philox.h. */
static double gumbel(uint64_t bits)
{
    double u = ((double)bits + 0.5) * 0x1p-52;

    return -log(-log(u));
}

/*
 * At least gumbel(bits), without a logarithm: -log(u) >= 1 - u = (rest + 1/2) 2^-52, and the
 * leading zeros of rest bound the logarithm of that.
 */
static double gumbel_bound(uint64_t bits)
{
    uint64_t rest = ((uint64_t)1 << 52) - 1 - bits;
    int zeros = rest ? __builtin_clzll(rest) - 12 : 52;

    return 0.69315 * (zeros + 1);
}

static const double gumbel_most = 0.69315 * 53;

/* NaN, whose key is 0, never does. */
static bool takes_part(const struct draw *draw, float logit, int32_t id)
{
    uint32_t key = op_key(logit);

    return key != 0 && (key > draw->floor_key || (key == draw->floor_key && id <= draw->tie_id));
}

/* The largest of n logits; -inf if all are NaN. */
static float highest(const float *logits, int n)
{
    enum { LANES = 16 };
    float top[LANES], most = -INFINITY;
    int i = 0;

    for (int j = 0; j < LANES; j++) {
        top[j] = -INFINITY;
    }
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            top[j] = logits[i + j] > top[j] ? logits[i + j] : top[j];
        }
    }
    for (; i < n; i++) {
        most = logits[i] > most ? logits[i] : most;
    }
    for (int j = 0; j < LANES; j++) {
        most = top[j] > most ? top[j] : most;
    }
    return most;
}

/* The largest logit that takes part, the first of equal ones. */
static struct drawn largest(const float *logits, int n, int32_t first_id, const struct draw *draw)
{
    struct drawn best = {.value = -INFINITY, .id = -1};

    if (draw->floor_key == 0) {
        float most = highest(logits, n);

        for (int i = 0; i < n; i++) {
            if (logits[i] == most) {
                return (struct drawn){.value = most, .id = first_id + i};
            }
        }
        return best;
    }
    for (int i = 0; i < n; i++) {
        if (takes_part(draw, logits[i], first_id + i) && (best.id < 0 || logits[i] > best.value)) {
            best = (struct drawn){.value = logits[i], .id = first_id + i};
        }
    }
    return best;
}

/* Bits of one token; the pair it belongs to is kept. */
static uint64_t noise_bits(uint64_t pair[2], const struct draw *draw, int32_t id, bool fresh)
{
    uint32_t number = (uint32_t)id;

    if (fresh || number % 2 == 0) {
        philox_noise_bits(pair, draw->seed, draw->sample, draw->step, number & ~1u);
    }
    return pair[number % 2];
}

/*
 * The largest perturbed value of a block.  The token with the largest logit sets a bar; a token
 * whose logit with the most noise its bits allow stays below is out without a logarithm.
 */
static struct drawn perturbed(const float *logits, int n, int32_t first_id, const struct draw *draw)
{
    struct drawn top = largest(logits, n, first_id, draw);
    struct drawn best = {.value = -INFINITY, .id = -1};
    double temperature = draw->temperature, bar;
    uint64_t pair[2];
    bool fresh = true;

    if (top.id < 0) {
        return best;
    }
    bar = (float)(top.value / temperature + gumbel(noise_bits(pair, draw, top.id, true)));
    for (int i = 0; i < n; i++) {
        int32_t id = first_id + i;
        double z = logits[i] / temperature;

        if (!(z + gumbel_most >= bar) || !takes_part(draw, logits[i], id)) {
            fresh = true;
            continue;
        }
        uint64_t bits = noise_bits(pair, draw, id, fresh);

        fresh = false;
        if (z + gumbel_bound(bits) < bar) {
            continue;
        }
        float value = (float)(z + gumbel(bits));
        if (best.id < 0 || value > best.value) {
            best = (struct drawn){.value = value, .id = id};
        }
    }
    return best;
}

static size_t blocks_of(int n)
{
    return ((size_t)n + DRAW_BLOCK - 1) / DRAW_BLOCK;
}

size_t cpu_draw_workspace(int rows, int n)
{
    return ((size_t)rows * blocks_of(n) + 1) * sizeof(struct drawn);
}

status cpu_draw(struct device *dev, struct drawn *out, const float *logits, int rows, int n,
                int first_id, const struct draw *draws)
{
    size_t blocks = blocks_of(n);
    struct drawn *parts;
    void *memory;
    status st = cpu_workspace(dev, &memory, cpu_draw_workspace(rows, n));

    if (st) {
        return st;
    }
    parts = memory;
#pragma omp parallel for schedule(dynamic, 1) collapse(2) \
    num_threads(cpu_threads(dev, (size_t)rows *(size_t)n, DRAW_BLOCK))
    for (int r = 0; r < rows; r++) {
        for (size_t b = 0; b < blocks; b++) {
            int begin = (int)b * DRAW_BLOCK;
            int width = n - begin < DRAW_BLOCK ? n - begin : DRAW_BLOCK;
            const float *from = logits + (size_t)r * (size_t)n + (size_t)begin;
            struct drawn *part = &parts[(size_t)r * blocks + b];

            *part = draws[r].temperature > 0.0f
                        ? perturbed(from, width, first_id + begin, &draws[r])
                        : largest(from, width, first_id + begin, &draws[r]);
        }
    }
    for (int r = 0; r < rows; r++) {
        out[r] = (struct drawn){.value = -INFINITY, .id = -1};
        for (size_t b = 0; b < blocks; b++) {
            const struct drawn *part = &parts[(size_t)r * blocks + b];

            if (part->id >= 0 && (out[r].id < 0 || part->value > out[r].value)) {
                out[r] = *part;
            }
        }
    }
    return STATUS_OK;
}

status cpu_best_drawn(struct device *dev, struct drawn *out, const struct drawn *drawn, int rows,
                      int ranks)
{
    (void)dev;
    for (int i = 0; i < rows; i++) {
        out[i] = drawn[i];
        for (int r = 1; r < ranks; r++) {
            const struct drawn *other = &drawn[r * rows + i];

            if (other->id >= 0 && (out[i].id < 0 || other->value > out[i].value)) {
                out[i] = *other;
            }
        }
    }
    return STATUS_OK;
}

status cpu_logits_of(struct device *dev, float *out, const float *logits, int rows, int n,
                     int first_id, const struct drawn *chosen)
{
    (void)dev;
    for (int i = 0; i < rows; i++) {
        int id = chosen[i].id - first_id;

        out[i] = id >= 0 && id < n ? logits[(size_t)i * (size_t)n + (size_t)id] : 0.0f;
    }
    return STATUS_OK;
}
