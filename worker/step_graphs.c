#include "worker/step_graphs.h"

#include "common/log.h"
#include "kernels/device.h"

#include <assert.h>
#include <stdlib.h>

static const int sizes[] = {1, 2, 4, 8, 16, 24, 32, 48, 64};
enum { KINDS = 4, SIZES = sizeof(sizes) / sizeof(sizes[0]) };

struct place {
    bool seen;
    bool refused;               /* a rank had no memory for its graph */
    struct device_graph *graph; /* NULL: not recorded yet */
};

struct step_graphs {
    struct member *member;
    struct place places[KINDS][SIZES]; /* by KV head, by query head; the same, evicting */
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

void step_graphs_destroy(struct step_graphs *graphs)
{
    for (int i = 0; graphs && i < KINDS * SIZES; i++) {
        device_graph_free(graphs->member->dev, graphs->places[i / SIZES][i % SIZES].graph);
    }
    free(graphs);
}

static int size_of(int n)
{
    int i = 0;

    while (sizes[i] < n) {
        i++;
        assert(i < SIZES);
    }
    return i;
}

int step_graphs_rows(int n)
{
    return sizes[size_of(n)];
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
        log_warn("engine: steps of %d rows run without a graph reason=\"%s\"", work->rows,
                 status_text());
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
    struct place *place = &graphs->places[work->by_query + 2 * work->evicts][size_of(work->rows)];
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
