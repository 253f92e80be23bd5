/* evict.cu - which row leaves a cache head after a decode step: a block for each head.  Of two rows
 * that may go one is first, whatever their places, so the reduction needs no order. */
#include "kernels/cuda/kv.h"

static constexpr int BLOCK = 256;

/* The row that goes first of those that a thread saw, and how many may go. */
struct candidate {
    struct kv_note note;
    int row; /* -1: none */
    int count;
};

struct evict_shared {
    struct candidate of_thread[BLOCK];
};

static __device__ bool stays(const struct evict_rule *rule, const struct kv_note *note)
{
    return note->position < rule->first || note->position > rule->recent ||
           (note->marks & rule->marks) != 0;
}

static __device__ bool goes_first(const struct kv_note *a, const struct kv_note *b)
{
    return a->mass < b->mass || (!(a->mass > b->mass) && a->position > b->position);
}

static __device__ void join(struct candidate *a, const struct candidate *b)
{
    int count = a->count + b->count;

    if (b->row >= 0 && (a->row < 0 || goes_first(&b->note, &a->note))) {
        *a = *b;
    }
    a->count = count;
}

/* A thread's rows. */
static __device__ struct candidate look_at(const struct kv_pool *pool,
                                           const struct evict_rule *rule)
{
    struct candidate found = {{0.0f, 0, 0}, -1, 0};

    for (int i = (int)threadIdx.x; i < rule->rows; i += BLOCK) {
        struct kv_note *note = pool->notes + kv_row_of(rule->pages, i, pool->page_rows);
        struct candidate here = {*note, i, 1};

        if (i == rule->rows - 1) { /* what cuda_join_mass() left is all that joined it */
            *note = {rule->joins ? note->mass : 0.0f, rule->position, rule->new_marks};
            here.note = *note;
        }
        if (!stays(rule, &here.note)) {
            join(&found, &here);
        }
    }
    return found;
}

static __global__ void __launch_bounds__(BLOCK, 1)
    evict_kernel(struct evict args, struct kv_pool pool)
{
    auto *shared = gpu_shared<struct evict_shared>();
    const struct evict_rule rule = args.rules[blockIdx.x];

    shared->of_thread[threadIdx.x] = look_at(&pool, &rule);
    for (unsigned by = BLOCK / 2; by > 0; by /= 2) {
        __syncthreads();
        if (threadIdx.x < by) {
            join(&shared->of_thread[threadIdx.x], &shared->of_thread[threadIdx.x + by]);
        }
    }
    if (threadIdx.x == 0) {
        const struct candidate first = shared->of_thread[0];

        args.out[blockIdx.x] = first.count > rule.n_others ? first.row : -1;
    }
}

status cuda_evict(struct device *dev, const struct evict *args)
{
    if (args->attention) {
        status st = cuda_join_mass(dev, args->attention, args->rules);
        if (st) {
            return st;
        }
    }
    GPU_LAUNCH(evict_kernel, (unsigned)args->heads, BLOCK, sizeof(struct evict_shared),
               cuda_stream(dev), *args, *args->pool);
    return cuda_launched("evict");
}
