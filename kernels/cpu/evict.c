/* evict.c - which row leaves a cache head after a decode step. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kv.h"

static bool stays(const struct evict_rule *rule, const struct kv_note *note)
{
    return note->position < rule->first || note->position > rule->recent ||
           (note->marks & rule->marks) != 0;
}

static bool goes_first(const struct kv_note *a, const struct kv_note *b)
{
    return a->mass < b->mass || (!(a->mass > b->mass) && a->position > b->position);
}

static int evict_one(const struct kv_pool *pool, const struct evict_rule *rule)
{
    const struct kv_note *worst = NULL;
    int count = 0, row = -1;

    for (int i = 0; i < rule->rows; i++) {
        struct kv_note *note = &pool->notes[kv_row_of(pool, rule->pages, i)];

        if (i == rule->rows - 1) { /* what cpu_join_mass() left is all that joined it */
            *note =
                (struct kv_note){rule->joins ? note->mass : 0.0f, rule->position, rule->new_marks};
        }
        if (stays(rule, note)) {
            continue;
        }
        count++;
        if (!worst || goes_first(note, worst)) {
            worst = note;
            row = i;
        }
    }
    return count > rule->n_others ? row : -1;
}

status cpu_evict(struct device *dev, const struct evict *args)
{
    size_t rows = 0;

    if (args->attention) {
        status st = cpu_join_mass(dev, args->attention, args->rules);
        if (st) {
            return st;
        }
    }
    for (int h = 0; h < args->heads; h++) {
        rows += (size_t)args->rules[h].rows;
    }
#pragma omp parallel for num_threads(cpu_threads(dev, rows, 1 << 14))
    for (int h = 0; h < args->heads; h++) {
        args->out[h] = evict_one(args->pool, &args->rules[h]);
    }
    return STATUS_OK;
}
