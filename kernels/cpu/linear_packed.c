#include "kernels/cpu/linear_packed.h"

#include "kernels/cpu/cpu.h"

#include <omp.h>

enum {
    RUNS = 2,            /* a thread takes one of this many for each thread of what is left */
    MIN_BYTES = 1 << 16, /* of weights that are worth a second thread */
    LINE_WORDS = 16,
};

/* One of the matrices that x is multiplied with; panels count through all of them. */
struct target {
    void *out;
    const struct matrix *w;
    int first_panel;
};

struct packed_job {
    const struct linear_packed_kernels *kernels;
    const bf16 *x;
    struct target targets[OP_MAX_PRODUCTS];
    int n_targets, cols;
    bool wide, add;
    int rows, blocks, pairs, panels, threads;
    const uint32_t *packed_x; /* (pairs, rows), block after block */
    int next;                 /* panel that no thread has taken */
};

/* Panels that a thread works on one after the other. */
struct run {
    int first, n;
};

static size_t panel_words(size_t pairs)
{
    return pairs * PACKED_FEATURES;
}

static size_t pairs_of(int cols)
{
    return ((size_t)cols + 1) / 2;
}

static int panels_of(int rows)
{
    return (rows + PACKED_FEATURES - 1) / PACKED_FEATURES;
}

size_t cpu_packed_bytes(const struct device *dev, int rows, int cols)
{
    if (dev->dtype != DTYPE_BF16 || !cpu_device_const(dev)->isa->linear_packed) {
        return 0;
    }
    return (size_t)panels_of(rows) * panel_words(pairs_of(cols)) * sizeof(uint32_t);
}

status cpu_pack(struct device *dev, void *out, const struct matrix *w)
{
    const struct linear_packed_kernels *kernels = cpu_device(dev)->isa->linear_packed;
    size_t words = panel_words(pairs_of(w->cols));
    int threads = cpu_threads(dev, (size_t)w->rows * (size_t)w->cols, MIN_BYTES);
    int panels = panels_of(w->rows);

#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int panel = 0; panel < panels; panel++) {
        int first = panel * PACKED_FEATURES, rest = w->rows - first;

        kernels->pack_panel((uint32_t *)out + (size_t)panel * words,
                            (const bf16 *)w->data + (size_t)first * w->stride, w->stride,
                            rest < PACKED_FEATURES ? rest : PACKED_FEATURES, w->cols);
    }
    return STATUS_OK;
}

void linear_packed_row(float *out, const struct matrix *w, size_t row)
{
    const uint32_t *word = (const uint32_t *)w->data +
                           row / PACKED_FEATURES * panel_words(pairs_of(w->cols)) +
                           row % PACKED_FEATURES;

    for (int col = 0; col < w->cols; col += 2) {
        out[col] = bf16_to_float((bf16)(*word & 0xffff));
        if (col + 1 < w->cols) {
            out[col + 1] = bf16_to_float((bf16)(*word >> 16));
        }
        word += PACKED_FEATURES;
    }
}

/* Rows before a block; blocks differ by one step at most. */
static int block_first(const struct packed_job *job, int block)
{
    int steps = (job->rows + PACKED_ROWS_STEP - 1) / PACKED_ROWS_STEP;

    return (int)((int64_t)steps * block / job->blocks) * PACKED_ROWS_STEP;
}

/* One row needs no others beside it, and is packed as it lies. */
static int packed_rows_of_block(const struct packed_job *job, int block)
{
    return job->rows == 1 ? 1 : block_first(job, block + 1) - block_first(job, block);
}

static int rows_of_block(const struct packed_job *job, int block)
{
    int rest = job->rows - block_first(job, block), rows = packed_rows_of_block(job, block);

    return rest < rows ? rest : rows;
}

static const uint32_t *packed_block(const struct packed_job *job, int block)
{
    return job->packed_x + (size_t)block_first(job, block) * (size_t)job->pairs;
}

static void pack_block(const struct packed_job *job, uint32_t *packed_x, int block)
{
    size_t cols = (size_t)job->cols, first = (size_t)block_first(job, block);

    job->kernels->pack_rows(packed_x + first * (size_t)job->pairs, job->x + first * cols, cols,
                            rows_of_block(job, block), packed_rows_of_block(job, block), job->cols);
}

static int part_pairs(const struct packed_job *job, int pair)
{
    return job->pairs - pair < PACKED_PAIRS ? job->pairs - pair : PACKED_PAIRS;
}

static const struct target *target_of(const struct packed_job *job, int panel)
{
    const struct target *target = &job->targets[job->n_targets - 1];

    while (panel < target->first_panel) {
        target--;
    }
    return target;
}

static const uint32_t *part_words(const struct packed_job *job, int panel, int pair)
{
    const struct target *target = target_of(job, panel);

    return (const uint32_t *)target->w->data +
           (size_t)(panel - target->first_panel) * panel_words((size_t)job->pairs) +
           panel_words((size_t)pair);
}

/* All rows times the part of a panel from `pair`, while the part at (next, next_pair) is fetched.
 */
static void multiply_part(const struct packed_job *job, float *sums, int panel, int pair, int next,
                          int next_pair)
{
    const struct target *target = target_of(job, panel);
    int first = (panel - target->first_panel) * PACKED_FEATURES, rest = target->w->rows - first;
    struct packed_tile tile = {
        .w = part_words(job, panel, pair),
        .out_stride = (size_t)target->w->rows,
        .features = rest < PACKED_FEATURES ? rest : PACKED_FEATURES,
        .pairs = part_pairs(job, pair),
        .wide = job->wide,
        .add = job->add,
        .first = pair == 0,
        .last = pair + PACKED_PAIRS >= job->pairs,
    };
    size_t steps = (size_t)job->blocks * (size_t)tile.pairs;
    size_t bytes = panel_words((size_t)part_pairs(job, next_pair)) * sizeof(uint32_t);

    tile.next = (const char *)part_words(job, next, next_pair);
    tile.next_step = (bytes + steps - 1) / steps;
    for (int block = 0; block < job->blocks; block++) {
        size_t row = (size_t)block_first(job, block);
        size_t at = row * tile.out_stride + (size_t)first;

        tile.block_rows = packed_rows_of_block(job, block);
        tile.rows = rows_of_block(job, block);
        tile.x = packed_block(job, block) + (size_t)pair * (size_t)tile.block_rows;
        tile.sums = sums + row * PACKED_FEATURES;
        tile.out = (char *)target->out + at * (job->wide ? sizeof(float) : sizeof(bf16));
        job->kernels->product(&tile);
        tile.next += tile.next_step * (size_t)tile.pairs;
    }
}

/* All rows times a panel. */
static void multiply_panel(const struct packed_job *job, float *sums, int panel, int next)
{
    for (int pair = 0; pair < job->pairs; pair += PACKED_PAIRS) {
        bool more = pair + PACKED_PAIRS < job->pairs;

        multiply_part(job, sums, panel, pair, more ? panel : next, more ? pair + PACKED_PAIRS : 0);
    }
}

/* Long runs first: each new place in memory takes time to come up to speed. */
static struct run take_run(struct packed_job *job)
{
    struct run run = {.first = __atomic_load_n(&job->next, __ATOMIC_RELAXED)};

    do {
        int rest = job->panels - run.first, n = rest / (RUNS * job->threads);

        run.n = n > 0 ? n : rest > 0;
    } while (!__atomic_compare_exchange_n(&job->next, &run.first, run.first + run.n, false,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return run;
}

static void work_on_panels(struct packed_job *job, float *sums)
{
    struct run run = take_run(job);

    while (run.n > 0) {
        struct run next = run.n > 1 ? (struct run){run.first + 1, run.n - 1} : take_run(job);

        multiply_panel(job, sums, run.first, next.n > 0 ? next.first : run.first);
        run = next;
    }
}

/* Of one thread, in words: sums between parts, if there are several. */
static size_t sums_words(const struct packed_job *job)
{
    return job->pairs > PACKED_PAIRS ? (size_t)block_first(job, job->blocks) * PACKED_FEATURES : 0;
}

static int threads_of(const struct device *dev, const struct matrix *w)
{
    return cpu_threads(dev, cpu_packed_bytes(dev, w->rows, w->cols), MIN_BYTES);
}

static void add_target(struct packed_job *job, const struct device *dev, void *out,
                       const struct matrix *w)
{
    int threads = threads_of(dev, w);

    job->targets[job->n_targets++] = (struct target){out, w, job->panels};
    job->panels += panels_of(w->rows);
    job->cols = w->cols;
    job->threads = threads > job->threads ? threads : job->threads;
}

/* Of `job` the targets are known.  Bytes of its workspace. */
static size_t lay_out(struct packed_job *job, int rows)
{
    job->rows = rows;
    job->blocks = (rows + PACKED_ROWS - 1) / PACKED_ROWS;
    job->pairs = (int)pairs_of(job->cols);
    size_t x_words = (size_t)block_first(job, job->blocks) * (size_t)job->pairs + LINE_WORDS;
    return (sums_words(job) * (size_t)job->threads + x_words) * sizeof(uint32_t);
}

size_t linear_packed_workspace(const struct device *dev, const struct matrix *w, int rows)
{
    struct packed_job job = {0};

    add_target(&job, dev, NULL, w);
    return lay_out(&job, rows);
}

static status run_job(struct packed_job *job, struct device *dev, const bf16 *x, int rows)
{
    bool as_it_lies = rows == 1 && job->cols % 2 == 0;
    void *memory;
    status st = cpu_workspace(dev, &memory, lay_out(job, rows));

    if (st) {
        return st;
    }
    job->kernels = cpu_device(dev)->isa->linear_packed;
    job->x = x;
    size_t own = sums_words(job), all = own * (size_t)job->threads;
    uint32_t *packed_x = (uint32_t *)memory + all;
    job->packed_x = as_it_lies ? (const uint32_t *)x : packed_x;
#pragma omp parallel num_threads(job->threads) if (job->threads > 1)
    {
        if (!as_it_lies) {
#pragma omp for schedule(static)
            for (int block = 0; block < job->blocks; block++) {
                pack_block(job, packed_x, block);
            }
        }
        work_on_panels(job, (float *)memory + (size_t)omp_get_thread_num() * own);
    }
    return STATUS_OK;
}

status linear_packed(struct device *dev, void *out, enum dtype out_dtype, const bf16 *x,
                     const struct matrix *w, int rows)
{
    struct packed_job job = {.wide = out_dtype == DTYPE_F32};

    add_target(&job, dev, out, w);
    return run_job(&job, dev, x, rows);
}

status linear_packed_add(struct device *dev, float *sum, const bf16 *x, const struct matrix *w,
                         int rows)
{
    struct packed_job job = {.wide = true, .add = true};

    add_target(&job, dev, sum, w);
    return run_job(&job, dev, x, rows);
}

static bool all_packed(const struct weight_product *products, int n)
{
    for (int i = 0; i < n; i++) {
        if (products[i].w->layout != MATRIX_PACKED) {
            return false;
        }
    }
    return true;
}

/* One parallel region for all, if it can be: threads meet once, and x is packed once. */
static status linear_each(struct device *dev, const struct weight_product *products, int n,
                          const void *x, int rows,
                          status (*one)(struct device *, void *, enum dtype, const void *,
                                        const struct matrix *, int))
{
    struct packed_job job = {0};
    status st = STATUS_OK;

    if (!all_packed(products, n) || rows == 0) {
        for (int i = 0; i < n && !st; i++) {
            st = one(dev, products[i].out, dev->dtype, x, products[i].w, rows);
        }
        return st;
    }
    for (int i = 0; i < n; i++) {
        add_target(&job, dev, products[i].out, products[i].w);
    }
    return run_job(&job, dev, x, rows);
}

status cpu_linear_each(struct device *dev, const struct weight_product *products, int n,
                       const void *x, int rows)
{
    return linear_each(dev, products, n, x, rows, cpu_linear);
}

status cpu_linear_rows_each(struct device *dev, const struct weight_product *products, int n,
                            const void *x, int rows)
{
    return linear_each(dev, products, n, x, rows, cpu_linear_rows);
}
