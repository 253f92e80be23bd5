/*
 * comm_shm.c - ranks of one host exchange through one piece of shared memory.
 *
 * The first rank makes it (a memfd, so nothing is left behind when processes die) and publishes
 * where its descriptor is; the others open it through /proc and find a random cookie in it.  A
 * rank that cannot (another host, another container, another user) says so, and all ranks use
 * the network.
 *
 * Every rank has two slots that it writes in turn and the others read.  For each ordered pair of
 * ranks there is a line of two counters: messages put for that reader, and messages it is done
 * with.  A slot is written again when all its readers are done with it.  Who waits spins for a
 * while, since the ranks of a group work in step, and then sleeps on the counter (futex).
 */
#include "common/clock.h"
#include "worker/comm_transport.h"

#include <assert.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    CACHE_LINE = 64,
    SLOT_BYTES = 256 << 10,
    SLOTS = 2,
    MAX_RANKS = 64,
    SPINS = 4000,  /* about 100 us */
    SLEEP_MS = 20, /* after which aborts and lost peers are looked for */
    KEY_BYTES = 64,
};

/* What one rank has put for another. */
struct line {
    _Alignas(CACHE_LINE) _Atomic uint32_t sent;  /* written by the sender */
    uint8_t slot[2];                             /* of message n: slot[n % 2] */
    _Alignas(CACHE_LINE) _Atomic uint32_t taken; /* written by the reader */
};

struct cookie {
    uint64_t words[2];
};

struct shared_head {
    _Alignas(CACHE_LINE) struct cookie cookie;
    _Atomic uint32_t left[MAX_RANKS]; /* ranks that closed */
};

/* What the first rank publishes; fd is -1 where it could not make the memory. */
struct offer {
    int64_t pid;
    int64_t fd;
    struct cookie cookie;
};

struct shm {
    int rank, size;
    int timeout_ms;
    size_t bytes;
    struct shared_head *head;
    struct line *lines; /* (sender, reader) */
    uint8_t *slots;     /* (rank, SLOTS, SLOT_BYTES) */
    int next_slot;
    uint32_t sent[MAX_RANKS], received[MAX_RANKS];
    uint32_t last_in_slot[SLOTS][MAX_RANKS]; /* the message to each reader that a slot holds */
    _Atomic bool aborted;
    _Atomic int waits_for;
};

/* ---- opening ---- */

static size_t bytes_of(int size)
{
    size_t n = (size_t)size;

    return sizeof(struct shared_head) + n * n * sizeof(struct line) + n * SLOTS * SLOT_BYTES;
}

static bool map_memory(struct shm *shm, int fd)
{
    void *memory = mmap(NULL, shm->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED) {
        return false;
    }
    size_t n = (size_t)shm->size;
    shm->head = memory;
    shm->lines = (struct line *)(shm->head + 1);
    shm->slots = (uint8_t *)(shm->lines + n * n);
    return true;
}

/* The descriptor, which stays open until the others have opened it; -1: not here. */
static int make_memory(struct shm *shm, struct offer *offer, bool tcp_only)
{
    int fd = tcp_only ? -1 : memfd_create("winnow-collectives", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    *offer = (struct offer){.pid = getpid(), .fd = -1};
    if (fd < 0) {
        return -1;
    }
    if (posix_fallocate(fd, 0, (off_t)shm->bytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) ||
        getrandom(&offer->cookie, sizeof(offer->cookie), 0) != sizeof(offer->cookie) ||
        !map_memory(shm, fd)) {
        close(fd);
        return -1;
    }
    shm->head->cookie = offer->cookie;
    offer->fd = fd;
    return fd;
}

static bool open_memory(struct shm *shm, const struct offer *offer)
{
    char path[KEY_BYTES];
    struct stat file;

    if (offer->fd < 0) {
        return false;
    }
    snprintf(path, sizeof(path), "/proc/%lld/fd/%lld", (long long)offer->pid, (long long)offer->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        return false;
    }
    bool ours = fstat(fd, &file) == 0 && S_ISREG(file.st_mode) &&
                file.st_size == (off_t)shm->bytes && map_memory(shm, fd) &&
                memcmp(&shm->head->cookie, &offer->cookie, sizeof(offer->cookie)) == 0;
    close(fd);
    return ours;
}

static void key_of(char key[KEY_BYTES], uint64_t epoch, int rank)
{
    snprintf(key, KEY_BYTES, "epoch%llu/shm/%d", (unsigned long long)epoch, rank);
}

/* Reads what rank `from` published: exactly `bytes` of it. */
static status get(const struct comm_config *config, int from, void *out, size_t bytes)
{
    char key[KEY_BYTES];
    void *data;
    size_t n;

    key_of(key, config->epoch, from);
    status st = config->store.get(config->store.context, key, config->timeout_ms, &data, &n);
    if (st) {
        return st;
    }
    if (n != bytes) {
        st = status_fail(STATUS_INTERNAL, "%s holds %zu bytes, not %zu", key, n, bytes);
    } else {
        memcpy(out, data, bytes);
    }
    free(data);
    return st;
}

static status put(const struct comm_config *config, const void *data, size_t bytes)
{
    char key[KEY_BYTES];

    key_of(key, config->epoch, config->rank);
    return config->store.set(config->store.context, key, data, bytes);
}

/* Whether every rank but the first, which offered the memory, could open it. */
static status ask_all(const struct comm_config *config, bool *all)
{
    status st = STATUS_OK;

    *all = true;
    for (int r = 1; r < config->size && !st; r++) {
        char answer = 'n';
        st = get(config, r, &answer, 1);
        *all = *all && answer == 'y';
    }
    return st;
}

static status agree(struct shm *shm, bool *shared, const struct comm_config *config)
{
    struct offer offer = {.fd = -1};
    status st;

    if (config->rank == 0) {
        int fd = make_memory(shm, &offer, config->tcp_only);
        st = put(config, &offer, sizeof(offer));
        if (!st) {
            st = ask_all(config, shared);
        }
        if (fd >= 0) {
            close(fd);
        }
        return st;
    }
    st = get(config, 0, &offer, sizeof(offer));
    if (!st) {
        st = put(config, !config->tcp_only && open_memory(shm, &offer) ? "y" : "n", 1);
    }
    return st ? st : ask_all(config, shared);
}

static void shm_close(void *self)
{
    struct shm *shm = self;

    if (shm->head) {
        atomic_store(&shm->head->left[shm->rank], 1);
        munmap(shm->head, shm->bytes);
    }
    free(shm);
}

status comm_shm_open(void **self, bool *shared, const struct comm_config *config)
{
    *shared = false;
    *self = NULL;
    if (config->size > MAX_RANKS) {
        return STATUS_OK; /* not on one host */
    }
    struct shm *shm = calloc(1, sizeof(*shm));
    if (!shm) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the collectives");
    }
    shm->rank = config->rank;
    shm->size = config->size;
    shm->timeout_ms = config->timeout_ms;
    shm->bytes = bytes_of(config->size);
    status st = agree(shm, shared, config);
    if (st || !*shared) {
        shm_close(shm);
        return st;
    }
    *self = shm;
    return STATUS_OK;
}

/* ---- messages ---- */

static struct line *line_of(const struct shm *shm, int sender, int reader)
{
    return &shm->lines[(size_t)sender * (size_t)shm->size + (size_t)reader];
}

static uint8_t *slot_of(const struct shm *shm, int rank, int slot)
{
    return shm->slots + ((size_t)rank * SLOTS + (size_t)slot) * SLOT_BYTES;
}

static bool reached(const _Atomic uint32_t *counter, uint32_t least)
{
    return (int32_t)(atomic_load_explicit(counter, memory_order_acquire) - least) >= 0;
}

static void advance(_Atomic uint32_t *counter, uint32_t to)
{
    atomic_store_explicit(counter, to, memory_order_release);
    syscall(SYS_futex, counter, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Until `peer` has moved the counter to `least`. */
static status wait_for(struct shm *shm, int peer, _Atomic uint32_t *counter, uint32_t least)
{
    const struct timespec nap = {.tv_nsec = SLEEP_MS * 1000000L};

    for (int i = 0; i < SPINS; i++) {
        if (reached(counter, least)) {
            return STATUS_OK;
        }
        __builtin_ia32_pause();
    }
    atomic_store_explicit(&shm->waits_for, peer, memory_order_relaxed);
    for (double begin = clock_ms();;) {
        uint32_t seen = atomic_load_explicit(counter, memory_order_acquire);
        if ((int32_t)(seen - least) >= 0) {
            return STATUS_OK;
        }
        if (atomic_load(&shm->aborted)) {
            return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: aborted", shm->rank, shm->size);
        }
        if (atomic_load(&shm->head->left[peer]) && !reached(counter, least)) {
            return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: rank %d left the group",
                               shm->rank, shm->size, peer);
        }
        if (clock_ms() - begin > shm->timeout_ms) {
            return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: rank %d is silent for %d ms",
                               shm->rank, shm->size, peer, shm->timeout_ms);
        }
        syscall(SYS_futex, counter, FUTEX_WAIT, seen, &nap, NULL, 0);
    }
}

/* Copies a message into this rank's next slot and tells its readers, which are ranks
 * first..first + count without this one.  *copy is where it lies. */
static status message_put(struct shm *shm, int first, int count, const void *data, size_t bytes,
                          const void **copy)
{
    int slot = shm->next_slot;
    uint32_t *held = shm->last_in_slot[slot];

    assert(bytes <= SLOT_BYTES);
    if (atomic_load(&shm->aborted)) {
        return status_fail(STATUS_UNAVAILABLE, "rank %d of %d: aborted", shm->rank, shm->size);
    }
    for (int peer = 0; peer < shm->size; peer++) {
        status st = wait_for(shm, peer, &line_of(shm, shm->rank, peer)->taken, held[peer]);
        if (st) {
            return st;
        }
    }
    memcpy(slot_of(shm, shm->rank, slot), data, bytes);
    for (int peer = first; peer < first + count; peer++) {
        if (peer != shm->rank) {
            struct line *line = line_of(shm, shm->rank, peer);
            held[peer] = ++shm->sent[peer];
            line->slot[held[peer] % 2] = (uint8_t)slot;
            advance(&line->sent, held[peer]);
        }
    }
    shm->next_slot = (slot + 1) % SLOTS;
    *copy = slot_of(shm, shm->rank, slot);
    return STATUS_OK;
}

/* The peer's next message, valid until message_done(). */
static status message_get(struct shm *shm, int peer, const void **data)
{
    struct line *line = line_of(shm, peer, shm->rank);
    uint32_t number = ++shm->received[peer];

    status st = wait_for(shm, peer, &line->sent, number);
    if (!st) {
        *data = slot_of(shm, peer, line->slot[number % 2] % SLOTS);
    }
    return st;
}

static void message_done(struct shm *shm, int peer)
{
    advance(&line_of(shm, peer, shm->rank)->taken, shm->received[peer]);
}

/* ---- collectives ---- */

/* x[0..part.count] = the sum over ranks, in their order, of that part of what each puts. */
static status sum_part(struct shm *shm, int first, int count, const float *own,
                       struct comm_part part, float *x, int max)
{
    for (int rank = first; rank < first + count; rank++) {
        const void *theirs = own;
        if (rank != shm->rank) {
            status st = message_get(shm, rank, &theirs);
            if (st) {
                return st;
            }
        }
        const float *y = (const float *)theirs + part.first;
        if (rank == first) {
            memcpy(x, y, part.count * sizeof(*x));
        } else {
            comm_add(x, y, part.count, max);
        }
        if (rank != shm->rank) {
            message_done(shm, rank);
        }
    }
    return STATUS_OK;
}

/* Every rank's sum goes to every other. */
static status spread_parts(struct shm *shm, int first, int count, float *x, size_t n)
{
    struct comm_part own = comm_part(n, (size_t)count, (size_t)(shm->rank - first));
    const void *data;

    status st = message_put(shm, first, count, x + own.first, own.count * sizeof(*x), &data);
    for (int rank = first; rank < first + count && !st; rank++) {
        if (rank == shm->rank) {
            continue;
        }
        struct comm_part part = comm_part(n, (size_t)count, (size_t)(rank - first));
        st = message_get(shm, rank, &data);
        if (!st) {
            memcpy(x + part.first, data, part.count * sizeof(*x));
            message_done(shm, rank);
        }
    }
    return st;
}

static status reduce_piece(struct shm *shm, int first, int count, float *x, size_t n, int max)
{
    struct comm_part part = {0, n};
    const void *own;

    status st = message_put(shm, first, count, x, n * sizeof(*x), &own);
    if (st) {
        return st;
    }
    if (n <= COMM_WHOLE_LIMIT) {
        return sum_part(shm, first, count, own, part, x, max);
    }
    part = comm_part(n, (size_t)count, (size_t)(shm->rank - first));
    st = sum_part(shm, first, count, own, part, x + part.first, max);
    return st ? st : spread_parts(shm, first, count, x, n);
}

static status shm_reduce(void *self, int first, int count, float *x, size_t n, int max)
{
    const size_t piece = SLOT_BYTES / sizeof(*x);
    status st = STATUS_OK;

    for (size_t at = 0; at < n && !st; at += piece) {
        st = reduce_piece(self, first, count, x + at, n - at < piece ? n - at : piece, max);
    }
    return st;
}

static status gather_piece(struct shm *shm, uint8_t *out, size_t stride, const void *in,
                           size_t bytes)
{
    const void *data;

    status st = message_put(shm, 0, shm->size, in, bytes, &data);
    for (int rank = 0; rank < shm->size && !st; rank++) {
        if (rank != shm->rank) {
            st = message_get(shm, rank, &data);
        } else {
            data = in;
        }
        if (!st) {
            memmove(out + (size_t)rank * stride, data, bytes);
        }
        if (!st && rank != shm->rank) {
            message_done(shm, rank);
        }
    }
    return st;
}

static status shm_gather(void *self, void *out, const void *in, size_t bytes)
{
    status st = STATUS_OK;

    for (size_t at = 0; at < bytes && !st; at += SLOT_BYTES) {
        size_t n = bytes - at < SLOT_BYTES ? bytes - at : SLOT_BYTES;
        st = gather_piece(self, (uint8_t *)out + at, bytes, (const uint8_t *)in + at, n);
    }
    return st;
}

static void shm_abort(void *self)
{
    struct shm *shm = self;

    atomic_store(&shm->aborted, true);
}

static int shm_waits_for(const void *self)
{
    return atomic_load_explicit(&((const struct shm *)self)->waits_for, memory_order_relaxed);
}

const struct comm_transport comm_shm = {shm_reduce, shm_gather, shm_abort, shm_waits_for, shm_close,
                                        false,      NULL,       NULL,      NULL};
