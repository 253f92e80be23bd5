#include "common/children.h"

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

struct child {
    pid_t pid; /* 0: not running */
    pid_t last_pid;
    int last_status; /* of wait */
    double started_ms, restart_ms, backoff_ms;
};

struct children {
    char *executable;
    char **arguments; /* ends with NULL; the first is the program */
    char **environment;
    int n, first;
    struct child list[];
};

status children_find_program(char *out, size_t out_size, const char *name)
{
    size_t name_bytes = strlen(name) + 1;
    ssize_t n = out_size > name_bytes ? readlink("/proc/self/exe", out, out_size - name_bytes) : 0;
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
        return status_fail(STATUS_NOT_FOUND, "%s: %s", out, strerror(errno));
    }
    return STATUS_OK;
}

/* ---- lists of strings ---- */

static void free_list(char **list)
{
    for (size_t i = 0; list && list[i]; i++) {
        free(list[i]);
    }
    free(list);
}

/* The first `n` strings behind `before` (NULL: none), each a copy; NULL: no memory. */
static char **copy_list(const char *before, const char *const *list, size_t n)
{
    size_t used = before ? 1 : 0;
    char **out = calloc(n + used + 1, sizeof(*out));

    if (out && before) {
        out[0] = strdup(before);
    }
    for (size_t i = 0; out && i < n; i++) {
        out[used + i] = strdup(list[i]);
    }
    for (size_t i = 0; out && i < n + used; i++) {
        if (!out[i]) {
            free_list(out);
            return NULL;
        }
    }
    return out;
}

/* A copy with the child's number in place of "{n}"; NULL: no memory. */
static char *with_number(const char *text, int number)
{
    const char *mark = strstr(text, "{n}");
    char *out = NULL;

    if (!mark) {
        return strdup(text);
    }
    return asprintf(&out, "%.*s%d%s", (int)(mark - text), text, number, mark + 3) < 0 ? NULL : out;
}

static char **numbered(char *const *arguments, int number)
{
    size_t n = 0;

    while (arguments[n]) {
        n++;
    }
    char **out = calloc(n + 1, sizeof(*out));
    for (size_t i = 0; out && i < n; i++) {
        out[i] = with_number(arguments[i], number);
        if (!out[i]) {
            free_list(out);
            return NULL;
        }
    }
    return out;
}

status children_open(struct children **out, const struct children_config *config)
{
    struct children *children;
    size_t n_environment = 0;

    if (config->n < 0 || config->n > CHILDREN_MAX || config->n_arguments > CHILDREN_MAX_ARGUMENTS) {
        return status_fail(STATUS_INVALID, "%d children with %zu arguments: at most %d with %d",
                           config->n, config->n_arguments, CHILDREN_MAX, CHILDREN_MAX_ARGUMENTS);
    }
    while (config->environment[n_environment]) {
        n_environment++;
    }
    children = calloc(1, sizeof(*children) + (size_t)config->n * sizeof(struct child));
    if (children) {
        children->n = config->n;
        children->first = config->first;
        children->executable = strdup(config->executable);
        children->arguments = copy_list(config->executable, config->arguments, config->n_arguments);
        children->environment = copy_list(NULL, config->environment, n_environment);
    }
    if (!children || !children->executable || !children->arguments || !children->environment) {
        children_close(children);
        return status_fail(STATUS_EXHAUSTED, "no memory for %d children", config->n);
    }
    *out = children;
    return STATUS_OK;
}

/* Nothing on stdin, stdout to stderr (ours has one line that others read), signals as usual,
 * and a process group of its own: Ctrl-C is for us, who may drain first. */
static int spawn(const struct children *children, char **arguments, pid_t *pid)
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
    error = posix_spawn(pid, children->executable, &actions, &attributes, arguments,
                        children->environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* When it may start again: soon, if it lived long. */
static void set_restart(struct child *child, double now)
{
    bool settled = child->backoff_ms == 0 || now - child->started_ms >= CHILDREN_SETTLED_MS;

    child->backoff_ms = settled ? CHILDREN_MIN_BACKOFF_MS : 2 * child->backoff_ms;
    if (child->backoff_ms > CHILDREN_MAX_BACKOFF_MS) {
        child->backoff_ms = CHILDREN_MAX_BACKOFF_MS;
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

static void collect(struct children *children, int i, double now)
{
    struct child *child = &children->list[i];
    char cause[64];

    if (!child->pid || waitpid(child->pid, &child->last_status, WNOHANG) != child->pid) {
        return;
    }
    child->last_pid = child->pid;
    child->pid = 0;
    set_restart(child, now);
    describe(child, cause, sizeof(cause));
    log_warn("children: number %d %s process=%d restart_ms=%.0f", children->first + i, cause,
             (int)child->last_pid, child->backoff_ms);
}

static void start(struct children *children, int i, double now)
{
    struct child *child = &children->list[i];
    int number = children->first + i;
    char **arguments = numbered(children->arguments, number);
    int error = arguments ? spawn(children, arguments, &child->pid) : ENOMEM;

    free_list(arguments);
    child->started_ms = now;
    if (error) {
        child->pid = 0;
        set_restart(child, now);
        log_error("children: cannot start %s: %s", children->executable, strerror(error));
    } else {
        log_info("children: started number=%d process=%d", number, (int)child->pid);
    }
}

void children_tick(struct children *children, double now)
{
    for (int i = 0; i < children->n; i++) {
        collect(children, i, now);
        if (!children->list[i].pid && now >= children->list[i].restart_ms) {
            start(children, i, now);
        }
    }
}

bool children_cause(struct children *children, int64_t pid, char *out, size_t out_size, double now)
{
    const struct timespec pause = {.tv_nsec = 1000000};

    for (int i = 0; i < children->n; i++) {
        struct child *child = &children->list[i];
        collect(children, i, now);
        for (int waited = 0; child->pid == pid && waited < CHILDREN_EXIT_MS; waited++) {
            nanosleep(&pause, NULL);
            collect(children, i, now);
        }
        if (child->last_pid == pid && !child->pid) {
            describe(child, out, out_size);
            return true;
        }
    }
    return false;
}

void children_kill(const struct children *children, int64_t pid)
{
    for (int i = 0; i < children->n; i++) {
        if (children->list[i].pid && children->list[i].pid == pid) {
            log_warn("children: number %d is silent: killed process=%d", children->first + i,
                     (int)pid);
            (void)kill((pid_t)pid, SIGKILL);
        }
    }
}

bool children_gave_up(const struct children *children, int *number)
{
    for (int i = 0; i < children->n; i++) {
        const struct child *c = &children->list[i];
        if (!c->pid && c->last_pid && WIFEXITED(c->last_status) && WEXITSTATUS(c->last_status)) {
            *number = children->first + i;
            return true;
        }
    }
    return false;
}

static bool all_dead(struct children *children)
{
    bool dead = true;

    for (int i = 0; i < children->n; i++) {
        struct child *child = &children->list[i];
        if (child->pid && waitpid(child->pid, &child->last_status, WNOHANG) == child->pid) {
            child->pid = 0;
        }
        dead = dead && !child->pid;
    }
    return dead;
}

static void signal_all(const struct children *children, int signal)
{
    for (int i = 0; i < children->n; i++) {
        if (children->list[i].pid && kill(children->list[i].pid, signal) != 0) {
            log_warn("children: cannot signal process=%d: %s", (int)children->list[i].pid,
                     strerror(errno));
        }
    }
}

void children_ask(const struct children *children)
{
    signal_all(children, SIGTERM);
}

bool children_ended(struct children *children)
{
    return all_dead(children);
}

void children_close(struct children *children)
{
    const struct timespec pause = {.tv_nsec = 10 * 1000000L};

    if (!children) {
        return;
    }
    signal_all(children, SIGTERM);
    for (int waited = 0; !all_dead(children) && waited < CHILDREN_GRACE_MS; waited += 10) {
        nanosleep(&pause, NULL);
    }
    signal_all(children, SIGKILL);
    for (int i = 0; i < children->n; i++) {
        if (children->list[i].pid) {
            waitpid(children->list[i].pid, &children->list[i].last_status, 0);
        }
    }
    free_list(children->arguments);
    free_list(children->environment);
    free(children->executable);
    free(children);
}
