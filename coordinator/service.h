/*
 * service.h - the coordinator's core: requests in, tokens out, whatever the workers do.
 *
 * One service thread owns the scheduler and the fleet; everything else reaches it through its
 * inbox.  The functions below are safe from any thread and never wait for the workers; only
 * open and close wait.  Replies (sink callbacks, status, drain, readiness) come on the service
 * thread.
 *
 * service_open() starts the server of the worker plane and, if asked, the local workers;
 * rpc_init() must have been called.  It returns as soon as workers may join: readiness
 * follows when a group has loaded its weights.
 */
#ifndef COORDINATOR_SERVICE_H
#define COORDINATOR_SERVICE_H

#include "common/rpc.h"
#include "coordinator/request.h"

enum service_limits {
    SERVICE_MAX_INBOX = 65536,     /* events waiting for the service thread */
    SERVICE_MAX_LOCAL = 64,        /* --local-workers */
    SERVICE_MAX_GROUPS = 1024,     /* data parallel */
    SERVICE_PROGRESS_MS = 400,     /* between two Progress events of a request, at most */
    SERVICE_TICK_MS = 50,          /* deadlines, heartbeats and restarts are looked at */
    SERVICE_RETRY_AFTER_MS = 1000, /* told to a client that met a full queue */
    SERVICE_STALL_MS = 60000,      /* with work and without the end of a step: not alive */
    SERVICE_TEXT = 128,            /* bytes of a name or address in a status */
};

/* Children of this process; see local.h. */
struct service_local {
    int n;                   /* 0: none */
    const char *executable;  /* NULL: winnow-worker beside this program */
    const char *model;       /* directory */
    const char *device;      /* "cpu", "cuda"; NULL: the worker's default */
    int threads;             /* of each; 0: the worker's default */
    int64_t kv_memory;       /* bytes, of each; 0: the worker's default */
    const char *weights;     /* their --weights; NULL: their default */
    const char *kv;          /* their --kv; likewise */
    const char *secret_file; /* of the cluster; NULL: none */
    bool log_json;           /* as this program does */
};

struct meters;

/* Strings and pointers are borrowed for the life of the service. */
struct service_config {
    const struct model_config *model;
    int tensor_parallel;
    enum dtype dtype;
    uint32_t max_context;      /* prompt + generated tokens of one sequence */
    uint32_t queue_requests;   /* waiting at most */
    uint64_t queue_tokens;     /* prompt tokens waiting at most */
    double itl_target_ms;      /* of decoding while prompts are read; 0: the scheduler's */
    bool check_selection;      /* ranks compare a hash of every selection */
    const char *worker_listen; /* "HOST:PORT" of the worker plane; port 0 picks one */
    struct rpc_tls worker_tls; /* of the worker plane; without `cert`: plaintext */
    const char *secret_file;   /* keyring.h: workers show one of its secrets; NULL: they need not */
    int heartbeat_timeout_ms;  /* a worker silent for so long is lost; 0: 5000 */
    int reform_timeout_ms;     /* requests wait so long for a lost group; 0: the scheduler's */
    struct service_local local;
    struct meters *meters; /* NULL: nothing is counted */
    int stall_ms;          /* 0: SERVICE_STALL_MS */
    /* At least one group is ready and the service is not draining.  Called at every change. */
    void (*on_ready)(bool ready, void *context);
    /* A local worker cannot serve (its model is broken, say) and no group was ever ready: the
     * program may as well end.  Called once, on the service thread. */
    void (*on_hopeless)(const struct failure *failure, void *context);
    void *context;
};

struct service;

status service_open(struct service **out, const struct service_config *config);
/* Fails what still runs (UNAVAILABLE), ends the local workers, joins the thread.  No callback
 * comes after it.  NULL is fine. */
void service_close(struct service *service);

/* The port of the worker plane. */
int service_worker_port(const struct service *service);

/* Milliseconds on the monotonic clock that deadlines are given in. */
int64_t service_now_ms(void);
double service_now(void); /* the same with fractions */

/* A name for a request that is not there yet; never 0 and never given twice. */
uint64_t service_next_handle(struct service *service);

/* Takes the request, or refuses it at once: INVALID (its caller has a live one of that id),
 * UNAVAILABLE (draining, no ready group), EXHAUSTED (the inbox is full).  A full queue and a
 * request that can never fit are refused through sink->ended(). */
status service_submit_take(struct service *service, struct request *request);

/* Ends a request wherever it is: sink->ended() comes with CANCELLED.  Unknown handles are
 * ignored, so whoever may race with service_submit_take() cancels again after it. */
void service_cancel(struct service *service, uint64_t handle);

/* Control.Abort: the samples of this caller's live request of that id end with FINISH_ABORTED.
 * False: the caller has none. */
bool service_abort(struct service *service, const char *caller, const char *request_id);

bool service_is_ready(const struct service *service);
/* Moves whenever the service thread looked around; with work, whenever a step ended.  */
uint64_t service_steps(const struct service *service);
/* The service thread looks around, and while requests run, steps end within stall_ms. */
bool service_is_alive(const struct service *service);

/* No new requests; readiness goes off.  `reply` comes when all have ended, or after timeout_ms,
 * when the rest has been failed with UNAVAILABLE; `unfinished` is how many those were. */
void service_drain(struct service *service, int64_t timeout_ms,
                   void (*reply)(uint32_t unfinished, void *context), void *context);

enum worker_state {
    WORKER_STATE_JOINING,
    WORKER_STATE_LOADING,
    WORKER_STATE_READY,
    WORKER_STATE_LOST
};
enum group_state { GROUP_FORMING, GROUP_READY, GROUP_FAILED, GROUP_DRAINING };

const char *worker_state_name(enum worker_state state); /* "joining" */
const char *group_state_name(enum group_state state);   /* "forming" */

struct worker_status {
    uint32_t rank;
    char host[SERVICE_TEXT];
    char device[SERVICE_TEXT];
    enum worker_state state;
    double heartbeat_age_s;
    uint64_t kv_bytes_used;
    uint64_t kv_bytes_total;
    uint64_t memory_peak_bytes; /* resident, of its process */
    char last_error[512];
};

struct group_status {
    uint32_t group;
    uint64_t epoch;
    enum group_state state;
    uint32_t n_workers;
    const struct worker_status *workers;
    uint32_t running_requests;
};

struct service_status {
    double uptime_s;
    bool draining;
    uint32_t n_groups;
    const struct group_status *groups;
    uint32_t queued_requests;
    uint64_t queued_tokens;
    uint32_t running_requests;
    uint64_t completed_requests;
    uint64_t failed_requests;
};

/* Asks for a snapshot; `reply` comes once, on the service thread, with a borrowed one. */
void service_status(struct service *service,
                    void (*reply)(const struct service_status *status, void *context),
                    void *context);

#endif
