#include "worker/rank.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/plan.h"
#include "worker/engine.h"
#include "worker/model.h"
#include "worker/warmup.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    COLLECTIVE_TIMEOUT_MS = 120000,
    FREE_MEMORY_PERCENT = 40,
    FREE_GPU_PERCENT = 90,
    MAX_DESCRIPTION = 192
};

struct rank {
    struct link *link;
    const struct worker_config *config;
    struct vitals *vitals;
    enum dtype dtype; /* of the open device */
    struct device *device;
    struct model *model;
    int rank, size; /* that the model is split for */
    struct comm *comm;
    struct engine *engine;
    uint64_t epoch; /* of the engine */
    bool check_selection;
};

/* The group is over; weights stay. */
static void leave_group(struct rank *rank)
{
    vitals_not_ready(rank->vitals);
    engine_close(rank->engine);
    rank->engine = NULL;
    link_watch(rank->link, NULL);
    comm_close(rank->comm);
    rank->comm = NULL;
    rank->epoch = 0;
}

static void unload(struct rank *rank)
{
    leave_group(rank);
    link_loaded(rank->link, 0, 0);
    model_close(rank->model);
    rank->model = NULL;
    device_close(rank->device);
    rank->device = NULL;
}

/* float16 weights on a CPU, which has no float16 arithmetic here: float32 loses nothing. */
static enum dtype compute_dtype(const struct rank *rank, enum dtype asked)
{
    bool cpu = rank->config->backend[0] == 'c' && rank->config->backend[1] == 'p';

    return cpu && asked == DTYPE_F16 ? DTYPE_F32 : asked;
}

static status load(struct rank *rank, const struct link_assignment *assign)
{
    enum dtype dtype = compute_dtype(rank, assign->dtype);

    if (rank->model && rank->dtype == dtype && rank->rank == (int)assign->rank &&
        rank->size == (int)assign->size) {
        return STATUS_OK;
    }
    unload(rank);
    double begin = clock_ms();
    const struct device_config device = {
        .dtype = dtype,
        .int8_weights = rank->config->int8_weights,
        .index = rank->config->device_index,
        .threads = rank->config->threads,
    };
    status st = device_open(&rank->device, rank->config->backend, &device);
    if (!st && rank->config->preload) {
        st = model_preload(rank->config->model);
    }
    if (!st) {
        st = model_open(&rank->model, rank->device, rank->config->model, (int)assign->rank,
                        (int)assign->size);
    }
    if (!st) {
        link_loaded(rank->link, assign->rank, assign->size);
        log_info("rank: weights loaded rank=%u size=%u bytes=%llu ms=%.0f", assign->rank,
                 assign->size, (unsigned long long)rank->model->bytes, clock_ms() - begin);
    }
    rank->dtype = dtype;
    rank->rank = (int)assign->rank;
    rank->size = (int)assign->size;
    return st;
}

/* Of a host, pages are touched only when used, so its share is a bound and no reservation.  A GPU
 * has nothing else to do: pages, and their lists, get nearly all that weights and prompts leave. */
static status pool_bytes(const struct rank *rank, struct engine_config *engine)
{
    struct engine_memory memory = engine_memory(rank->model, rank->dtype, engine);
    uint64_t prompts = memory.hidden + memory.layer_kv + memory.step;
    uint64_t free_bytes = 0;

    engine->kv_bytes = (uint64_t)rank->config->kv_memory;
    if (engine->kv_bytes > 0) {
        return STATUS_OK;
    }
    status st = device_free_memory(rank->device, &free_bytes);
    if (st) {
        return st;
    }
    if (device_on_host(rank->device)) {
        engine->kv_bytes = free_bytes / 100 * FREE_MEMORY_PERCENT;
        return STATUS_OK;
    }
    if (free_bytes <= prompts) {
        return status_fail(STATUS_EXHAUSTED,
                           "%s: prompts of up to %d tokens need %llu bytes beside the weights, of "
                           "which %llu are free",
                           device_description(rank->device), engine->max_context,
                           (unsigned long long)prompts, (unsigned long long)free_bytes);
    }
    engine->kv_bytes = (free_bytes - prompts) / 100 * FREE_GPU_PERCENT;
    memory = engine_memory(rank->model, rank->dtype, engine);
    engine->kv_bytes = (uint64_t)((double)engine->kv_bytes * (double)memory.pool /
                                  (double)(memory.pool + memory.lists + 1));
    return STATUS_OK;
}

static status join(struct rank *rank, const struct link_assignment *assign)
{
    struct comm_config comm = {.rank = (int)assign->rank,
                               .size = (int)assign->size,
                               .epoch = assign->epoch,
                               .host = rank->config->advertise,
                               .timeout_ms = COLLECTIVE_TIMEOUT_MS,
                               .tcp_only = rank->config->tcp_only,
                               .store = link_store(rank->link)};
    struct engine_config engine = {.max_context = (int)assign->max_context,
                                   .int8_kv = rank->config->int8_kv,
                                   .check_selection = assign->check_selection,
                                   .graphs = rank->config->graphs};

    status st = load(rank, assign);
    if (!st) {
        comm.device = rank->device;
        st = comm_open(&rank->comm, &comm);
    }
    if (!st) {
        st = pool_bytes(rank, &engine);
    }
    if (!st) {
        link_watch(rank->link, rank->comm);
        st = engine_open(&rank->engine, rank->device, rank->model, rank->comm, &engine);
    }
    char device[MAX_DESCRIPTION];
    double start = clock_ms();
    if (!st) {
        st = warmup_run(rank->engine, rank->model, engine.max_context, assign->epoch);
    }
    if (st) {
        return st;
    }
    double warmup_ms = clock_ms() - start;
    struct engine_memory memory = engine_memory(rank->model, rank->dtype, &engine);
    rank->epoch = assign->epoch;
    snprintf(device, sizeof(device), "%s%s", device_description(rank->device),
             rank->config->int8_kv ? ", int8 KV" : "");
    const struct link_ready ready = {.kv_bytes_total = engine_kv_bytes_total(rank->engine),
                                     .pages_total = (uint32_t)engine_pages_total(rank->engine),
                                     .page_rows = ENGINE_PAGE_ROWS,
                                     .weight_bytes = rank->model->bytes,
                                     .scratch_bytes = memory.hidden + memory.layer_kv +
                                                      memory.step + memory.lists,
                                     .device = device};
    log_info("rank: ready group=%u rank=%u size=%u epoch=%llu device=\"%s\" weight_bytes=%llu "
             "hidden_bytes=%llu layer_kv_bytes=%llu step_bytes=%llu pool_bytes=%llu "
             "list_bytes=%llu warmup_ms=%.1f",
             assign->group, assign->rank, assign->size, (unsigned long long)assign->epoch,
             ready.device, (unsigned long long)ready.weight_bytes,
             (unsigned long long)memory.hidden, (unsigned long long)memory.layer_kv,
             (unsigned long long)memory.step, (unsigned long long)memory.pool,
             (unsigned long long)memory.lists, warmup_ms);
    vitals_ready(rank->vitals, assign->group, assign->rank, ready.kv_bytes_total);
    link_send_ready(rank->link, assign->epoch, &ready);
    return STATUS_OK;
}

static status execute(struct rank *rank, const uint8_t *data, size_t bytes)
{
    struct step_result result;
    struct plan plan;
    uint8_t *packed;
    size_t packed_bytes;

    status st = plan_decode(&plan, data, bytes, &rank->model->config);
    if (st) {
        return st;
    }
    vitals_begin_step(rank->vitals, clock_ms());
    st = plan.epoch == rank->epoch
             ? engine_step(rank->engine, &plan, &result)
             : status_fail(STATUS_INTERNAL, "plan of epoch %llu in %llu",
                           (unsigned long long)plan.epoch, (unsigned long long)rank->epoch);
    vitals_end_step(rank->vitals, st ? NULL : &result);
    if (!st) {
        st = step_result_encode(&result, &packed, &packed_bytes);
    }
    if (!st) {
        link_send_result(rank->link, packed, packed_bytes);
        link_count_step(rank->link);
        free(packed);
    }
    plan_free(&plan);
    return st;
}

/* A fault ends this rank's part in the epoch; the coordinator dissolves the group. */
static void fault(struct rank *rank, uint64_t epoch, status st)
{
    link_send_fault(rank->link, epoch, st);
    leave_group(rank);
}

/* A model that cannot be loaded will not load the next time either. */
static bool is_final(status st)
{
    return st == STATUS_INVALID || st == STATUS_NOT_FOUND || st == STATUS_UNIMPLEMENTED;
}

/* Failures end the epoch; only what no other epoch can mend is returned. */
static status handle(struct rank *rank, const struct link_event *event)
{
    status st;

    if (event->kind == LINK_LEAVE) {
        leave_group(rank);
    } else if (event->kind == LINK_ASSIGN) {
        leave_group(rank);
        st = join(rank, &event->assign);
        if (st) {
            fault(rank, event->assign.epoch, st);
        }
        if (is_final(st)) {
            return st;
        }
    } else if (rank->engine) { /* a plan; without an engine it is of an epoch that failed */
        uint64_t epoch = rank->epoch;
        st = execute(rank, event->plan, event->plan_bytes);
        if (st) {
            fault(rank, epoch, st);
        }
    }
    return STATUS_OK;
}

status rank_run(struct link *link, const struct worker_config *config, struct vitals *vitals)
{
    struct rank rank = {.link = link, .config = config, .vitals = vitals};
    struct link_event event;
    status st = STATUS_OK;

    for (link_next(link, &event); event.kind != LINK_STOP; link_next(link, &event)) {
        st = handle(&rank, &event);
        if (event.kind == LINK_PLAN) {
            free(event.plan);
        }
        if (st) {
            break;
        }
    }
    unload(&rank);
    return st;
}
