/* evict.c - which row leaves a cache head after a decode step. */
#include "kernels/cpu/cpu.h"

static bool stays(const struct evict_rule *rule, const struct kv_note *note)
{
    return note->position < rule->first || note->position > rule->recent ||
           (note->marks & rule->marks) != 0;
}

static bool goes_first(const struct kv_note *a, const struct kv_note *b)
{
    return a->mass < b->mass || (!(a->mass > b->mass) && a->position > b->position);
}

/* The notes of the rows that are left. */
static void remove_note(const struct evict_rule *rule, int row, bool ordered)
{
    int last = rule->rows - 1;

    if (ordered) {
        memmove(rule->notes + row, rule->notes + row + 1,
                (size_t)(last - row) * sizeof(*rule->notes));
    } else {
        rule->notes[row] = rule->notes[last];
    }
}

/* mass (rows), or NULL. */
static int evict_one(const struct evict_rule *rule, const float *mass, bool ordered)
{
    struct kv_note *notes = rule->notes;
    int count = 0, worst = -1;

    notes[rule->rows - 1] = (struct kv_note){0.0f, rule->position, rule->new_marks};
    for (int i = 0; i < rule->rows; i++) {
        if (mass) {
            notes[i].mass += mass[i];
        }
        if (stays(rule, &notes[i])) {
            continue;
        }
        count++;
        if (worst < 0 || goes_first(&notes[i], &notes[worst])) {
            worst = i;
        }
    }
    if (count <= rule->n_others) {
        return -1;
    }
    remove_note(rule, worst, ordered);
    return worst;
}

status cpu_evict(struct device *dev, const struct evict *args)
{
    size_t rows = 0;

    for (int h = 0; h < args->heads; h++) {
        rows += (size_t)args->rules[h].rows;
    }
#pragma omp parallel for num_threads(cpu_threads(dev, rows, 1 << 14))
    for (int h = 0; h < args->heads; h++) {
        args->out[h] =
            evict_one(&args->rules[h], args->mass ? args->mass + (size_t)h * args->stride : NULL,
                      args->ordered);
    }
    return STATUS_OK;
}
