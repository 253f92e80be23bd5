#include "coordinator/local.h"

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ARGUMENTS = 32, MAX_PATH = 4096 };

struct child {
    pid_t pid; /* 0: not running */
    pid_t last_pid;
    int last_status; /* of wait */
    double started_ms, restart_ms, backoff_ms;
};

struct local {
    char executable[MAX_PATH];
    char numbers[3][32]; /* parent, threads, memory */
    char *strings[4];    /* coordinator, model, device, secret's file: copies */
    char gpu[32];        /* of the child that is started: each has its own */
    char *arguments[MAX_ARGUMENTS];
    int n_arguments;
    char **environment; /* the array alone is ours */
    int n;
    struct child children[];
};

/* winnow-worker beside this program. */
static status find_executable(char *out, size_t out_size)
{
    static const char name[] = "winnow-worker";
    ssize_t n = readlink("/proc/self/exe", out, out_size - sizeof(name));
    char *slash;

    if (n <= 0) {
        return status_fail(STATUS_INTERNAL, "cannot find this program: %s", strerror(errno));
    }
    out[n] = '\0';
    slash = strrchr(out, '/');
    if (!slash) {
        return status_fail(STATUS_INTERNAL, "cannot find the folder of %s", out);
    }
    snprintf(slash + 1, out_size - (size_t)(slash + 1 - out), "%s", name);
    if (access(out, X_OK) != 0) {
        return status_fail(STATUS_NOT_FOUND, "local workers need %s: %s", out, strerror(errno));
    }
    return STATUS_OK;
}

static void add_argument(struct local *local, const char *name, const char *value)
{
    local->arguments[local->n_arguments++] = (char *)name;
    local->arguments[local->n_arguments++] = (char *)value;
}

static bool is_cuda(const struct local *local)
{
    return local->strings[2] && strcmp(local->strings[2], "cuda") == 0;
}

static status make_arguments(struct local *local, const struct service_local *config,
                             const char *coordinator)
{
    local->arguments[local->n_arguments++] = local->executable;
    local->strings[0] = strdup(coordinator);
    local->strings[1] = strdup(config->model);
    local->strings[2] = config->device ? strdup(config->device) : NULL;
    local->strings[3] = config->secret_file ? strdup(config->secret_file) : NULL;
    if (!local->strings[0] || !local->strings[1] || (config->device && !local->strings[2]) ||
        (config->secret_file && !local->strings[3])) {
        return status_fail(STATUS_EXHAUSTED, "no memory for local workers");
    }
    snprintf(local->numbers[0], sizeof(local->numbers[0]), "%lld", (long long)getpid());
    add_argument(local, "--parent-pid", local->numbers[0]);
    add_argument(local, "--coordinator", local->strings[0]);
    add_argument(local, "--model", local->strings[1]);
    if (config->device) {
        add_argument(local, "--device", is_cuda(local) ? local->gpu : local->strings[2]);
    }
    if (config->secret_file) {
        add_argument(local, "--cluster-secret-file", local->strings[3]);
    }
    if (config->threads > 0) {
        snprintf(local->numbers[1], sizeof(local->numbers[1]), "%d", config->threads);
        add_argument(local, "--threads", local->numbers[1]);
    }
    add_argument(local, "--log-format", config->log_json ? "json" : "text");
    /* The environment may set these for the coordinator: its ports are taken. */
    add_argument(local, "--http", "");
    add_argument(local, "--health-listen", "");
    if (config->kv_memory > 0) {
        snprintf(local->numbers[2], sizeof(local->numbers[2]), "%lld",
                 (long long)config->kv_memory);
        add_argument(local, "--kv-memory", local->numbers[2]);
    }
    return STATUS_OK;
}

/* These variables are options of both programs and mean this one's side. */
static bool is_ours_alone(const char *variable)
{
    static const char *const beginnings[] = {
        "WINNOW_TLS_", "WINNOW_CONFIG=", "WINNOW_HTTP=", "WINNOW_HEALTH_LISTEN="};

    for (size_t i = 0; i < sizeof(beginnings) / sizeof(beginnings[0]); i++) {
        if (strncmp(variable, beginnings[i], strlen(beginnings[i])) == 0) {
            return true;
        }
    }
    return false;
}

static status make_environment(struct local *local)
{
    size_t n = 0;

    while (environ[n]) {
        n++;
    }
    local->environment = calloc(n + 1, sizeof(char *));
    if (!local->environment) {
        return status_fail(STATUS_EXHAUSTED, "no memory for local workers");
    }
    for (size_t i = 0, used = 0; i < n; i++) {
        if (!is_ours_alone(environ[i])) {
            local->environment[used++] = environ[i];
        }
    }
    return STATUS_OK;
}

status local_open(struct local **out, const struct service_local *config, const char *coordinator)
{
    struct local *local;
    status st = STATUS_OK;

    if (config->n < 0 || config->n > SERVICE_MAX_LOCAL) {
        return status_fail(STATUS_INVALID, "%d local workers: at most %d", config->n,
                           SERVICE_MAX_LOCAL);
    }
    local = calloc(1, sizeof(*local) + (size_t)config->n * sizeof(struct child));
    if (!local) {
        return status_fail(STATUS_EXHAUSTED, "no memory for local workers");
    }
    local->n = config->n;
    if (config->executable) {
        snprintf(local->executable, sizeof(local->executable), "%s", config->executable);
    } else {
        st = find_executable(local->executable, sizeof(local->executable));
    }
    if (!st) {
        st = make_arguments(local, config, coordinator);
    }
    if (!st) {
        st = make_environment(local);
    }
    if (st) {
        local_close(local);
        return st;
    }
    *out = local;
    return STATUS_OK;
}

/* Nothing on stdin, stdout to stderr (ours has one line that others read), signals as usual,
 * and a process group of its own: Ctrl-C is for the coordinator, which drains first. */
static int spawn(const struct local *local, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigset_t all;
    int error;

    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                              POSIX_SPAWN_SETPGROUP);
    error = posix_spawn(pid, local->executable, &actions, &attributes, local->arguments,
                        local->environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* When it may start again: soon, if it lived long. */
static void set_restart(struct child *child, double now)
{
    bool settled = child->backoff_ms == 0 || now - child->started_ms >= LOCAL_SETTLED_MS;

    child->backoff_ms = settled ? LOCAL_MIN_BACKOFF_MS : 2 * child->backoff_ms;
    if (child->backoff_ms > LOCAL_MAX_BACKOFF_MS) {
        child->backoff_ms = LOCAL_MAX_BACKOFF_MS;
    }
    child->restart_ms = now + child->backoff_ms;
}

static void describe(const struct child *child, char *out, size_t out_size)
{
    if (WIFSIGNALED(child->last_status)) {
        snprintf(out, out_size, "was killed by signal %d", WTERMSIG(child->last_status));
    } else {
        snprintf(out, out_size, "exited with status %d", WEXITSTATUS(child->last_status));
    }
}

static void collect(struct local *local, int i, double now)
{
    struct child *child = &local->children[i];
    char cause[64];

    if (!child->pid || waitpid(child->pid, &child->last_status, WNOHANG) != child->pid) {
        return;
    }
    child->last_pid = child->pid;
    child->pid = 0;
    set_restart(child, now);
    describe(child, cause, sizeof(cause));
    log_warn("local: worker %d %s process=%d restart_ms=%.0f", i, cause, (int)child->last_pid,
             child->backoff_ms);
}

static void start(struct local *local, int i, double now)
{
    struct child *child = &local->children[i];

    if (is_cuda(local)) {
        snprintf(local->gpu, sizeof(local->gpu), "cuda:%d", i);
    }
    int error = spawn(local, &child->pid);

    child->started_ms = now;
    if (error) {
        child->pid = 0;
        set_restart(child, now);
        log_error("local: cannot start %s: %s", local->executable, strerror(error));
    } else {
        log_info("local: worker started number=%d process=%d", i, (int)child->pid);
    }
}

void local_tick(struct local *local, double now)
{
    for (int i = 0; i < local->n; i++) {
        collect(local, i, now);
        if (!local->children[i].pid && now >= local->children[i].restart_ms) {
            start(local, i, now);
        }
    }
}

bool local_cause(struct local *local, int64_t pid, char *out, size_t out_size, double now)
{
    const struct timespec pause = {.tv_nsec = 1000000};

    for (int i = 0; i < local->n; i++) {
        struct child *child = &local->children[i];
        collect(local, i, now);
        for (int waited = 0; child->pid == pid && waited < LOCAL_EXIT_MS; waited++) {
            nanosleep(&pause, NULL);
            collect(local, i, now);
        }
        if (child->last_pid == pid && !child->pid) {
            describe(child, out, out_size);
            return true;
        }
    }
    return false;
}

void local_kill(const struct local *local, int64_t pid)
{
    for (int i = 0; i < local->n; i++) {
        if (local->children[i].pid && local->children[i].pid == pid) {
            log_warn("local: worker %d is silent: killed process=%d", i, (int)pid);
            (void)kill((pid_t)pid, SIGKILL);
        }
    }
}

bool local_gave_up(const struct local *local, int *child)
{
    for (int i = 0; i < local->n; i++) {
        const struct child *c = &local->children[i];
        if (!c->pid && c->last_pid && WIFEXITED(c->last_status) && WEXITSTATUS(c->last_status)) {
            *child = i;
            return true;
        }
    }
    return false;
}

static bool all_dead(struct local *local)
{
    bool dead = true;

    for (int i = 0; i < local->n; i++) {
        struct child *child = &local->children[i];
        if (child->pid && waitpid(child->pid, &child->last_status, WNOHANG) == child->pid) {
            child->pid = 0;
        }
        dead = dead && !child->pid;
    }
    return dead;
}

static void signal_all(const struct local *local, int signal)
{
    for (int i = 0; i < local->n; i++) {
        if (local->children[i].pid && kill(local->children[i].pid, signal) != 0) {
            log_warn("local: cannot signal process=%d: %s", (int)local->children[i].pid,
                     strerror(errno));
        }
    }
}

void local_close(struct local *local)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000000L};

    if (!local) {
        return;
    }
    signal_all(local, SIGTERM);
    for (int waited = 0; !all_dead(local) && waited < LOCAL_GRACE_MS; waited += 10) {
        nanosleep(&pause, NULL);
    }
    signal_all(local, SIGKILL);
    for (int i = 0; i < local->n; i++) {
        if (local->children[i].pid) {
            waitpid(local->children[i].pid, &local->children[i].last_status, 0);
        }
    }
    for (size_t i = 0; i < sizeof(local->strings) / sizeof(local->strings[0]); i++) {
        free(local->strings[i]);
    }
    free(local->environment);
    free(local);
}
