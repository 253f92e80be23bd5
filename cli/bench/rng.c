#include "cli/bench/rng.h"

#include <assert.h>
#include <math.h>

static uint64_t splitmix(uint64_t *x)
{
    uint64_t z = (*x += 0x9E3779B97F4A7C15u);

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static uint64_t rotate(uint64_t x, int by)
{
    return (x << by) | (x >> (64 - by));
}

void rng_init(struct rng *rng, uint64_t seed, uint64_t key)
{
    uint64_t x = seed;

    x = splitmix(&x) ^ key;
    for (int i = 0; i < 4; i++) {
        rng->state[i] = splitmix(&x);
    }
}

uint64_t rng_next(struct rng *rng)
{
    uint64_t *s = rng->state;
    uint64_t result = rotate(s[1] * 5, 7) * 9;
    uint64_t t = s[1] << 17;

    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}

uint32_t rng_below(struct rng *rng, uint32_t n)
{
    assert(n >= 1);
    /* Lemire's multiplication; what would make some values likelier is drawn again. */
    uint64_t product = (rng_next(rng) >> 32) * n;
    uint32_t threshold = (uint32_t)(-n) % n;
    while ((uint32_t)product < threshold) {
        product = (rng_next(rng) >> 32) * n;
    }
    return (uint32_t)(product >> 32);
}

double rng_unit(struct rng *rng)
{
    return ((double)(rng_next(rng) >> 12) + 0.5) * 0x1p-52;
}

double rng_normal(struct rng *rng)
{
    for (;;) { /* Marsaglia's polar method: 1.27 rounds on average */
        double u = 2 * rng_unit(rng) - 1;
        double v = 2 * rng_unit(rng) - 1;
        double s = u * u + v * v;
        if (s > 0 && s < 1) {
            return u * sqrt(-2 * log(s) / s);
        }
    }
}

double rng_gamma(struct rng *rng, double shape)
{
    if (shape < 1) {
        double boost = pow(rng_unit(rng), 1 / shape);
        return rng_gamma(rng, shape + 1) * boost;
    }
    double d = shape - 1.0 / 3;
    double c = 1 / sqrt(9 * d);
    for (;;) { /* Marsaglia and Tsang, 2000 */
        double x = rng_normal(rng);
        double v = 1 + c * x;
        if (v <= 0) {
            continue;
        }
        v = v * v * v;
        if (log(rng_unit(rng)) < 0.5 * x * x + d - d * v + d * log(v)) {
            return d * v;
        }
    }
}
