/*
 * prefill_flight.c - chunks whose sums over the ranks are on their way while the next is computed.
 *
 * After a chunk's attention its layer needs two sums, with the MLP between them.  Nothing of the
 * next chunk in the same layer depends on them, and nothing of the next layer's first chunks.  So a
 * chunk takes off when its output projection is done; when the next one takes off its MLP is
 * computed, and one later it has arrived:
 *
 *     compute   attend 1 | attend 2 | MLP 1 | attend 3    | MLP 2 | ...
 *     ranks                 output 1          output 2, MLP 1        ...
 *
 * Each row is computed by the same operations in the same order as without a flight.
 */
#include "worker/prompt_phase.h"

#include <assert.h>

uint64_t flight_bytes(const struct model *model)
{
    return model->split.ranks > 1 ? (uint64_t)FLIGHT_CHUNKS * SLICE_ROWS *
                                        (uint64_t)model->config.hidden * sizeof(float)
                                  : 0;
}

status flight_create(struct flight *flight, const struct member *member)
{
    size_t bytes = flight_bytes(member->model);
    void *memory;

    if (bytes == 0) {
        return STATUS_OK;
    }
    status st = device_alloc(member->dev, &memory, bytes, "sums on their way");
    flight->partial = st ? NULL : memory;
    return st;
}

void flight_destroy(struct flight *flight, const struct member *member)
{
    device_free(member->dev, flight->partial);
}

/* The chunk that took off `ago` chunks before the newest one. */
static struct chunk_flight *chunk_before(struct flight *flight, int ago)
{
    return &flight->chunks[(flight->taken_off + FLIGHT_CHUNKS - 1 - ago) % FLIGHT_CHUNKS];
}

/* What the chunk waits for arrives, and what follows is on its way. */
static status go_on(const struct prompt_phase *phase, struct chunk_flight *chunk)
{
    const struct member *member = phase->member;

    if (chunk->waits_for == FLIGHT_NONE) {
        return STATUS_OK;
    }
    status st = forward_finish(member, &chunk->sum);
    if (!st && chunk->waits_for == FLIGHT_OUTPUT) {
        st = forward_begin_mlp(member, phase_weights(phase, chunk->layer), &chunk->sum);
    }
    chunk->waits_for = !st && chunk->waits_for == FLIGHT_OUTPUT ? FLIGHT_MLP : FLIGHT_NONE;
    return st;
}

static status land(const struct prompt_phase *phase, struct chunk_flight *chunk)
{
    status st = STATUS_OK;

    while (!st && chunk->waits_for != FLIGHT_NONE) {
        st = go_on(phase, chunk);
    }
    return st;
}

status flight_take_off(struct prompt_phase *phase, const struct slice *slice)
{
    struct flight *flight = phase->flight;
    size_t hidden = (size_t)phase->member->model->config.hidden;
    int place = flight->taken_off++ % FLIGHT_CHUNKS;
    struct chunk_flight *chunk = &flight->chunks[place];

    assert(chunk->waits_for == FLIGHT_NONE && (!flight->phase || flight->phase == phase));
    flight->phase = phase;
    *chunk = (struct chunk_flight){
        .waits_for = FLIGHT_OUTPUT,
        .layer = slice->layer,
        .begin = slice->begin,
        .end = slice->end,
        .sum = {.partial = flight->partial + (size_t)place * SLICE_ROWS * hidden,
                .residual = phase->residual + (size_t)slice->begin * hidden,
                .rows = slice->end - slice->begin},
    };
    status st =
        forward_begin_output(phase->member, phase_weights(phase, slice->layer), &chunk->sum);
    for (int ago = FLIGHT_CHUNKS - 1; !st && ago > 0; ago--) {
        st = go_on(phase, chunk_before(flight, ago));
    }
    return st;
}

/* A slice that takes off itself may leave chunks behind that have other rows. */
static bool may_pass(const struct flight *flight, const struct prompt_phase *phase,
                     const struct slice *slice, const struct chunk_flight *chunk)
{
    bool takes_off = slice && (slice->kind == SLICE_WHOLE ||
                               (slice->kind == SLICE_QUERIES && slice->chosen == slice->rows));

    return takes_off && flight->phase == phase &&
           (chunk->end <= slice->begin || slice->end <= chunk->begin);
}

status flight_land_for(struct flight *flight, const struct prompt_phase *phase,
                       const struct slice *slice)
{
    bool passed = false;
    status st = STATUS_OK;

    for (int ago = FLIGHT_CHUNKS - 1; !st && flight->phase && ago >= 0; ago--) {
        struct chunk_flight *chunk = chunk_before(flight, ago);
        if (chunk->waits_for != FLIGHT_NONE && may_pass(flight, phase, slice, chunk)) {
            passed = true;
        } else {
            st = land(flight->phase, chunk);
        }
    }
    if (!passed) {
        flight->phase = NULL;
    }
    return st;
}

void flight_forget(struct prompt_phase *phase)
{
    struct flight *flight = phase->flight;
    struct comm *comm = phase->member->comm;
    uint64_t last = phase->embed_ticket;

    for (int i = 0; flight->phase == phase && i < FLIGHT_CHUNKS; i++) {
        struct chunk_flight *chunk = &flight->chunks[i];
        if (chunk->waits_for != FLIGHT_NONE && chunk->sum.ticket > last) {
            last = chunk->sum.ticket;
        }
        chunk->waits_for = FLIGHT_NONE;
    }
    if (flight->phase == phase) {
        flight->phase = NULL;
    }
    /* A failure is that of the group: its next collective tells. */
    status st = comm_finish(comm, last);
    (void)st;
}
