/* evict.cu - which row leaves a cache head after a decode step: a block for each head.  Of two rows
 * that may go one is first, whatever their places, so the reduction needs no order. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gpu.h"

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

/* A thread's rows: what the step gave them joins their masses. */
static __device__ struct candidate look_at(const struct evict_rule *rule, const float *mass)
{
    struct candidate found = {{0.0f, 0, 0}, -1, 0};

    for (int i = (int)threadIdx.x; i < rule->rows; i += BLOCK) {
        struct candidate here = {rule->notes[i], i, 1};

        if (i == rule->rows - 1) {
            here.note = {0.0f, rule->position, rule->new_marks};
        }
        if (mass) {
            here.note.mass += mass[i];
        }
        rule->notes[i] = here.note;
        if (!stays(rule, &here.note)) {
            join(&found, &here);
        }
    }
    return found;
}

/* The notes of the rows that are left. */
static __device__ void remove_note(const struct evict_rule *rule, int row, bool ordered)
{
    struct kv_note *notes = rule->notes;
    int last = rule->rows - 1;

    if (!ordered) {
        if (threadIdx.x == 0) {
            notes[row] = notes[last];
        }
        return;
    }
    for (int begin = row; begin < last; begin += BLOCK) {
        int i = begin + (int)threadIdx.x;
        struct kv_note next = {0.0f, 0, 0};

        if (i < last) {
            next = notes[i + 1];
        }
        __syncthreads();
        if (i < last) {
            notes[i] = next;
        }
        __syncthreads();
    }
}

static __global__ void __launch_bounds__(BLOCK) evict_kernel(struct evict args)
{
    auto *shared = gpu_shared<struct evict_shared>();
    const struct evict_rule rule = args.rules[blockIdx.x];
    const float *mass = args.mass ? args.mass + (size_t)blockIdx.x * args.stride : nullptr;

    shared->of_thread[threadIdx.x] = look_at(&rule, mass);
    for (unsigned by = BLOCK / 2; by > 0; by /= 2) {
        __syncthreads();
        if (threadIdx.x < by) {
            join(&shared->of_thread[threadIdx.x], &shared->of_thread[threadIdx.x + by]);
        }
    }
    __syncthreads();
    bool goes = shared->of_thread[0].count > rule.n_others;
    int row = shared->of_thread[0].row;

    if (threadIdx.x == 0) {
        args.out[blockIdx.x] = goes ? row : -1;
    }
    if (goes) {
        remove_note(&rule, row, args.ordered);
    }
}

status cuda_evict(struct device *dev, const struct evict *args)
{
    GPU_LAUNCH(evict_kernel, (unsigned)args->heads, BLOCK, sizeof(struct evict_shared),
               cuda_stream(dev), *args);
    return cuda_launched("evict");
}
