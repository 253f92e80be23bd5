/*
 * wgmma.cc - products of warp groups, as the PTX manual describes wgmma.mma_async.
 *
 * A product is computed when it is issued, kept apart until it is waited for, and its operands are
 * looked at again then: a GPU may read them at any time in between.
 */
#include <cstdio>
#include <cstdlib>
#include <gpu_platform.h>
#include <vector>

namespace
{

constexpr int WARP = CUDA_HOST_WARP, STEP = 16, MOST_COLUMNS = 128;

/* What a descriptor says, in bytes. */
struct operand {
    unsigned start, leading, stride;
};

struct issued {
    cuda_host_product product;
    unsigned a[4]; /* what its registers held */
    int columns;
    uint64_t sum; /* of its operands in shared memory */
    unsigned long group;
};

struct accumulator {
    float *d;
    std::vector<float> value;
    unsigned long group; /* of the last product */
};

struct thread {
    std::vector<issued> products;
    std::vector<accumulator> pending;
    unsigned long groups = 0; /* committed */
    bool fenced = false;
};

thread_local std::vector<thread> threads(1024);

thread &self()
{
    return threads[cuda_host_self->thread.x];
}

operand decode(uint64_t descriptor)
{
    constexpr unsigned most = 0x3fff;
    constexpr uint64_t reserved =
        UINT64_C(0x3ffe) << 48 | UINT64_C(7) << 46 | UINT64_C(3) << 30 | UINT64_C(3) << 14;
    auto field = [&](int at) { return (unsigned)(descriptor >> at & most) << 4; };

    if (descriptor & reserved || descriptor >> 62 != 1) {
        cuda_host_broken("descriptor %#llx is not of a 128-byte swizzle with base offset 0",
                         (unsigned long long)descriptor);
    }
    return {field(0), field(16), field(32)};
}

/* The address of an element, `along` in the direction in which elements are neighbours. */
uint16_t element(const operand &from, int along, int across)
{
    constexpr int slab = 64;
    unsigned at = from.start + (unsigned)(along / slab) * from.leading +
                  (unsigned)(along % slab) * 2 + (unsigned)(across / 8) * from.stride +
                  (unsigned)(across % 8) * 128;
    uint16_t value;

    if (from.start % 128 + (unsigned)(along % slab) * 2 >= 128) {
        cuda_host_broken("a row of an operand leaves its slab");
    }
    at ^= (at >> 7 & 7) << 4;
    memcpy(&value, cuda_host_shared_at(at, sizeof(value)), sizeof(value));
    return value;
}

/* Columns of b, or of 16 rows of a: bits[i][k]. */
void read_operand(uint16_t (*bits)[STEP], uint64_t descriptor, int first, int n, bool k_major)
{
    operand from = decode(descriptor);

    for (int i = 0; i < n; i++) {
        for (int k = 0; k < STEP; k++) {
            bits[i][k] = k_major ? element(from, k, first + i) : element(from, first + i, k);
        }
    }
}

float to_float(uint16_t bits, bool is_bf16)
{
    return is_bf16 ? __uint_as_float((unsigned)bits << 16) : gpu_f16_low(bits);
}

/* Both operands of a warp, where they are in shared memory. */
struct tile {
    uint16_t a[16][STEP];
    uint16_t b[MOST_COLUMNS][STEP];
};

tile read_shared(const cuda_host_product &product, int columns)
{
    int warp = (int)cuda_host_self->thread.x / WARP;
    tile out = {};

    if (!product.a_registers) {
        read_operand(out.a, product.a, warp % 4 * 16, 16, true);
    }
    read_operand(out.b, product.b, 0, columns, !product.a_registers);
    return out;
}

uint64_t sum_of(const tile &tile)
{
    const auto *words = reinterpret_cast<const uint16_t *>(&tile);
    uint64_t sum = 0;

    for (size_t i = 0; i < sizeof(tile) / sizeof(*words); i++) {
        sum = sum * 0x100000001b3u + words[i] + 1;
    }
    return sum;
}

struct lane {
    cuda_host_product product;
    int columns;
    unsigned a[4];
    float *value;
    uint64_t sum;
};
static_assert(sizeof(lane) <= 2 * CUDA_HOST_LANE_BYTES);

/* The lanes bring the address of theirs. */
lane *lane_at(char *lanes, int i)
{
    lane *out;

    memcpy(&out, lanes + i * CUDA_HOST_LANE_BYTES, sizeof(out));
    return out;
}

/* All lanes of a warp are there: the sums of its 16 rows. */
void complete(char *lanes)
{
    const lane *first = lane_at(lanes, 0);
    const cuda_host_product &product = first->product;
    tile tile = read_shared(product, first->columns);
    static thread_local float a[16][STEP], b[STEP][MOST_COLUMNS], d[16][MOST_COLUMNS];

    for (int i = 0; i < WARP; i++) {
        const lane *mine = lane_at(lanes, i);
        int g = i / 4, t = i % 4;

        if (mine->product.a != product.a || mine->product.b != product.b ||
            mine->product.add != product.add || mine->columns != first->columns) {
            cuda_host_broken("lanes of a warp issue different products");
        }
        for (int k = 0; product.a_registers && k < 8; k++) {
            tile.a[g + k / 2 % 2 * 8][2 * t + k % 2 + k / 4 * 8] =
                (uint16_t)(mine->a[k / 2] >> k % 2 * 16);
        }
    }
    for (int k = 0; k < STEP; k++) {
        for (int i = 0; i < 16; i++) {
            a[i][k] = to_float(tile.a[i][k], product.is_bf16);
        }
        for (int i = 0; i < first->columns; i++) {
            b[k][i] = to_float(tile.b[i][k], product.is_bf16);
        }
    }
    memset(d, 0, sizeof(d));
    for (int i = 0; i < 16; i++) {
        for (int k = 0; k < STEP; k++) {
            for (int j = 0; j < first->columns; j++) {
                d[i][j] += a[i][k] * b[k][j];
            }
        }
    }
    for (int i = 0; i < WARP; i++) {
        lane *mine = lane_at(lanes, i);

        for (int j = 0; j < first->columns / 2; j++) {
            float sum = d[i / 4 + j % 4 / 2 * 8][j / 4 * 8 + i % 4 * 2 + j % 2];
            mine->value[j] = product.add ? mine->value[j] + sum : sum;
        }
    }
}

accumulator &accumulator_of(thread &t, float *d, int n)
{
    for (accumulator &each : t.pending) {
        if (each.d == d) {
            return each;
        }
    }
    if (!t.fenced) {
        cuda_host_broken("accumulators are used before a fence");
    }
    t.pending.push_back({d, std::vector<float>(d, d + n), 0});
    memset(d, 0xff, (size_t)n * sizeof(float));
    return t.pending.back();
}

/* Nothing that the product reads has changed.  One lane looks at shared memory for all. */
void check_operands(const issued &was)
{
    if (was.product.a_registers && memcmp(was.product.a_registers, was.a, sizeof(was.a)) != 0) {
        cuda_host_broken("registers of a product have changed before it was waited for");
    }
    if (cuda_host_lane() == 0 && sum_of(read_shared(was.product, was.columns)) != was.sum) {
        cuda_host_broken("shared memory of a product has changed before it was waited for");
    }
}

} // namespace

uint64_t cuda_host_wgmma_operand(const void *shared, int next_columns)
{
    constexpr unsigned rows = 8 * 128;
    unsigned at = cuda_host_shared_address(shared);

    if (at % 16 || next_columns % 16) {
        cuda_host_broken("an operand of a product at %u, slabs %d apart", at, next_columns);
    }
    return at / 16 | (uint64_t)(next_columns / 16) << 16 | (uint64_t)(rows / 16) << 32 |
           UINT64_C(1) << 62;
}

void cuda_host_wgmma_fence()
{
    cuda_host_warp_exchange(nullptr, 0, CUDA_HOST_WGMMA_FENCE, nullptr);
    self().fenced = true;
}

void cuda_host_wgmma(float *d, int n, const cuda_host_product &product)
{
    thread &t = self();
    accumulator &into = accumulator_of(t, d, n);
    lane mine = {product, 2 * n, {}, into.value.data(), 0};
    lane *address = &mine;

    if (product.a_registers) {
        memcpy(mine.a, product.a_registers, sizeof(mine.a));
    }
    cuda_host_warp_exchange(&address, sizeof(address), CUDA_HOST_WGMMA, complete);
    into.group = t.groups;
    issued record = {product, {}, 2 * n, 0, t.groups};
    memcpy(record.a, mine.a, sizeof(record.a));
    if (cuda_host_lane() == 0) {
        record.sum = sum_of(read_shared(product, 2 * n));
    }
    t.products.push_back(record);
    cuda_host_self->products_pending++;
    cuda_host_self->products = cuda_host_self->products * 31 + product.a * 7 + product.b;
}

void cuda_host_wgmma_commit()
{
    cuda_host_warp_exchange(nullptr, 0, CUDA_HOST_WGMMA_COMMIT, nullptr);
    self().groups++;
}

void cuda_host_wgmma_wait(unsigned left)
{
    thread &t = self();
    auto done = [&](unsigned long group) { return group + left < t.groups; };

    cuda_host_warp_exchange(nullptr, 0, CUDA_HOST_WGMMA_WAIT, nullptr);
    for (const issued &each : t.products) {
        if (done(each.group)) {
            check_operands(each);
            cuda_host_self->products_pending--;
        }
    }
    std::erase_if(t.products, [&](const issued &each) { return done(each.group); });
    for (const accumulator &each : t.pending) {
        if (done(each.group)) {
            memcpy(each.d, each.value.data(), each.value.size() * sizeof(float));
        }
    }
    std::erase_if(t.pending, [&](const accumulator &each) { return done(each.group); });
    t.fenced = false;
}
