#include "worker/step_graphs.h"

#include "common/log.h"
#include "kernels/device.h"

#include <stdlib.h>

/* Rows of one kind alone, and of each kind where there are both. */
static const int sizes[] = {1, 2, 4, 8, 16, 24, 32, 48, 64};
static const int sizes_of_both[] = {4, 16, 32};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };
enum { SIZES_OF_BOTH = sizeof(sizes_of_both) / sizeof(sizes_of_both[0]) };

struct place {
    bool seen;
    bool refused;               /* a rank had no memory for its graph */
    struct device_graph *graph; /* NULL: not recorded yet */
};

struct step_graphs {
    struct member *member;
    struct place alone[STEP_VARIANTS][STEP_KINDS][SIZES];
    struct place both[STEP_VARIANTS][SIZES_OF_BOTH][SIZES_OF_BOTH];
};

status step_graphs_create(struct step_graphs **out, struct member *member)
{
    *out = NULL;
    if (device_on_host(member->dev) || !comm_on_stream(member->comm)) {
        return STATUS_OK;
    }
    *out = calloc(1, sizeof(**out));
    if (!*out) {
        return status_fail(STATUS_EXHAUSTED, "graphs: out of memory");
    }
    (*out)->member = member;
    return STATUS_OK;
}

static void free_places(struct device *dev, struct place *places, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        device_graph_free(dev, places[i].graph);
    }
}

void step_graphs_destroy(struct step_graphs *graphs)
{
    if (graphs) {
        struct device *dev = graphs->member->dev;
        free_places(dev, &graphs->alone[0][0][0], sizeof(graphs->alone) / sizeof(struct place));
        free_places(dev, &graphs->both[0][0][0], sizeof(graphs->both) / sizeof(struct place));
    }
    free(graphs);
}

/* Number of the first size of at least n; n_sizes: none is. */
static int size_of(const int *list, int n_sizes, int n)
{
    int i = 0;

    while (i < n_sizes && list[i] < n) {
        i++;
    }
    return i;
}

bool step_graphs_fill(const int live[STEP_KINDS], int rows[STEP_KINDS])
{
    bool both = live[STEP_BY_KV_HEAD] > 0 && live[STEP_BY_QUERY_HEAD] > 0;
    const int *list = both ? sizes_of_both : sizes;
    int n_sizes = both ? SIZES_OF_BOTH : SIZES;

    for (int kind = 0; kind < STEP_KINDS; kind++) {
        int i = size_of(list, n_sizes, live[kind]);
        if (i == n_sizes) {
            return false;
        }
        rows[kind] = live[kind] > 0 ? list[i] : 0;
    }
    return true;
}

static struct place *place_of(struct step_graphs *graphs, const struct step_work *work)
{
    const int *rows = work->rows;

    if (rows[STEP_BY_KV_HEAD] > 0 && rows[STEP_BY_QUERY_HEAD] > 0) {
        return &graphs->both[work->variant][size_of(sizes_of_both, SIZES_OF_BOTH, rows[0])]
                            [size_of(sizes_of_both, SIZES_OF_BOTH, rows[1])];
    }
    int kind = rows[STEP_BY_KV_HEAD] > 0 ? STEP_BY_KV_HEAD : STEP_BY_QUERY_HEAD;
    return &graphs->alone[work->variant][kind][size_of(sizes, SIZES, rows[kind])];
}

static status record(struct device *dev, const struct step_work *work, struct device_graph **out)
{
    status st = device_record(dev);

    if (st) {
        return st;
    }
    st = work->enqueue(work->context);
    if (st) {
        (void)device_record_end(dev, NULL);
        return st;
    }
    return device_record_end(dev, out);
}

/* *all = every rank has one: a collective is launched from graphs by all ranks or by none. */
static status all_have(const struct member *member, bool have, bool *all)
{
    struct scratch *s = member->scratch;
    const uint64_t mine = have;
    size_t ranks = (size_t)comm_size(member->comm);
    status st = device_upload(member->dev, s->hashes, &mine, sizeof(mine));

    if (!st) {
        st = comm_all_gather(member->comm, s->hashes_of_all, s->hashes, sizeof(mine));
    }
    if (!st) {
        st = device_download(member->dev, s->host_hashes, s->hashes_of_all, ranks * sizeof(mine));
    }
    *all = !st;
    for (size_t r = 0; !st && r < ranks; r++) {
        *all = *all && s->host_hashes[r];
    }
    return st;
}

/* A graph that a rank lacks the memory for is nobody's: such steps go on kernel by kernel. */
static status record_on_all(struct member *member, const struct step_work *work,
                            struct place *place)
{
    bool all;
    status st = record(member->dev, work, &place->graph);

    if (st && st != STATUS_EXHAUSTED) {
        return st;
    }
    if (st) {
        log_warn("engine: steps of %d rows run without a graph reason=\"%s\"",
                 work->rows[STEP_BY_KV_HEAD] + work->rows[STEP_BY_QUERY_HEAD], status_text());
    }
    st = all_have(member, !st, &all);
    if (!st && !all) {
        device_graph_free(member->dev, place->graph);
        place->graph = NULL;
        place->refused = true;
    }
    return st;
}

status step_graphs_run(struct step_graphs *graphs, const struct step_work *work)
{
    struct member *member = graphs->member;
    struct place *place = place_of(graphs, work);
    status st = STATUS_OK;

    if (place->seen && !place->refused && !place->graph) {
        st = record_on_all(member, work, place);
    }
    if (!st && !place->graph) {
        place->seen = true;
        return work->enqueue(work->context);
    }
    if (!st) {
        st = comm_before_launch(member->comm);
    }
    if (!st) {
        st = device_launch(member->dev, place->graph);
    }
    if (!st) {
        comm_launched(member->comm);
    }
    return st;
}
