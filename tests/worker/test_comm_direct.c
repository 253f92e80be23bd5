/* Short messages between ranks on sockets of their own: what comm.h's callers do not reach. */
#include "common/clock.h"
#include "common/listen.h"
#include "tests/check.h"
#include "worker/comm_direct.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RANKS = 2, CONNECT_MS = 5000, LONG_BYTES = 8 << 20 };

struct entry {
    char data[512];
    size_t bytes; /* 0: not there */
};

/* The store of one test: what each rank published, and what is read instead of it. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct entry entries[RANKS];
    _Atomic int over;
    void (*change)(struct entry *entry); /* as it is read */
} space = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static status set(void *context, const char *key, const void *data, size_t bytes)
{
    size_t rank = (size_t)(key[strlen(key) - 1] - '0');

    (void)context;
    CHECK(bytes <= sizeof(space.entries[rank].data));
    pthread_mutex_lock(&space.mutex);
    memcpy(space.entries[rank].data, data, bytes);
    space.entries[rank].bytes = bytes;
    pthread_cond_broadcast(&space.changed);
    pthread_mutex_unlock(&space.mutex);
    return STATUS_OK;
}

static status get(void *context, const char *key, int timeout_ms, void **out, size_t *out_bytes)
{
    size_t rank = (size_t)(key[strlen(key) - 1] - '0');

    (void)context;
    (void)timeout_ms;
    pthread_mutex_lock(&space.mutex);
    while (space.entries[rank].bytes == 0) {
        pthread_cond_wait(&space.changed, &space.mutex);
    }
    struct entry entry = space.entries[rank];
    if (space.change) {
        space.change(&entry);
    }
    *out = malloc(sizeof(entry.data));
    memcpy(*out, entry.data, sizeof(entry.data));
    *out_bytes = entry.bytes;
    pthread_mutex_unlock(&space.mutex);
    return STATUS_OK;
}

static int over(void *context)
{
    (void)context;
    return atomic_load(&space.over);
}

static status open_rank(struct direct **out, int rank, int connect_ms)
{
    const struct comm_config config = {.rank = rank,
                                       .size = RANKS,
                                       .host = "127.0.0.1",
                                       .timeout_ms = 20000,
                                       .store = {NULL, set, get, over}};

    return direct_open(out, &config, connect_ms);
}

static int start(void **state)
{
    (void)state;
    memset(space.entries, 0, sizeof(space.entries));
    space.change = NULL;
    atomic_store(&space.over, 0);
    return 0;
}

struct peer {
    pthread_t thread;
    int connect_ms;
    struct direct *direct;
    status st;
};

static void *open_first(void *argument)
{
    struct peer *peer = argument;

    peer->st = open_rank(&peer->direct, 0, peer->connect_ms);
    return NULL;
}

static void begin_first(struct peer *peer, int connect_ms)
{
    *peer = (struct peer){.connect_ms = connect_ms};
    CHECK(pthread_create(&peer->thread, NULL, open_first, peer) == 0);
}

/* A socket to the listener that rank 0 published. */
static int call_first(void)
{
    struct listen_address address;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    void *offer;
    size_t bytes;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    CHECK(get(NULL, "0", 0, &offer, &bytes) == STATUS_OK);
    CHECK(listen_parse(&address, (char *)offer + 8) == STATUS_OK);
    free(offer);
    to.sin_port = htons((uint16_t)strtol(address.port, NULL, 10));
    CHECK(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
    return fd;
}

static void test_strangers_are_hung_up_on_and_do_not_hold_the_group_up(void **state)
{
    struct peer first;
    struct direct *second;
    char junk[64] = {1}, nothing;
    uint32_t all[RANKS] = {0, 7};

    (void)state;
    begin_first(&first, CONNECT_MS);
    int silent = call_first();
    int loud = call_first();
    CHECK(write(loud, junk, sizeof(junk)) == sizeof(junk));
    CHECK(read(loud, &nothing, 1) <= 0);
    CHECK(open_rank(&second, 1, CONNECT_MS) == STATUS_OK);
    pthread_join(first.thread, NULL);
    CHECK(first.st == STATUS_OK);
    CHECK(read(silent, &nothing, 1) <= 0);
    direct_close(first.direct); /* its rank sent nothing */
    CHECK(direct_exchange(second, 0, RANKS, all, sizeof(all[0])) == STATUS_UNAVAILABLE);
    CHECK(strstr(status_text(), "rank 0"));
    direct_close(second);
    close(silent);
    close(loud);
}

static void test_a_crowd_of_silent_callers_does_not_keep_a_rank_out(void **state)
{
    enum { CROWD = 100 };
    int crowd[CROWD];
    struct peer first;
    struct direct *second;

    (void)state;
    begin_first(&first, CONNECT_MS);
    for (int i = 0; i < CROWD; i++) {
        crowd[i] = call_first();
    }
    CHECK(open_rank(&second, 1, CONNECT_MS) == STATUS_OK);
    pthread_join(first.thread, NULL);
    CHECK(first.st == STATUS_OK);
    for (int i = 0; i < CROWD; i++) {
        close(crowd[i]);
    }
    direct_close(first.direct);
    direct_close(second);
}

static void test_a_rank_that_does_not_come_is_given_up(void **state)
{
    struct direct *direct = NULL;

    (void)state;
    CHECK(open_rank(&direct, 0, 150) == STATUS_UNAVAILABLE && !direct);
    CHECK(strstr(status_text(), "rank 1 did not connect in time"));
}

static void test_a_dissolved_group_is_not_waited_for(void **state)
{
    struct direct *direct = NULL;
    double begin = clock_ms();

    (void)state;
    atomic_store(&space.over, 1);
    CHECK(open_rank(&direct, 0, 60000) == STATUS_UNAVAILABLE && clock_ms() - begin < 30000);
    CHECK(strstr(status_text(), "dissolved"));
}

static void shorten(struct entry *entry)
{
    entry->bytes = 3;
}

static void spoil(struct entry *entry)
{
    memset(entry->data, 'x', entry->bytes); /* neither a port nor an end */
}

static void refuse(struct entry *entry)
{
    snprintf(entry->data + 8, 100, "127.0.0.1:1");
}

static void forget_port(struct entry *entry)
{
    snprintf(entry->data + 8, 100, "127.0.0.1");
}

static void name_host(struct entry *entry)
{
    snprintf(entry->data + 8, 100, "localhost:1"); /* ranks publish digits */
}

static void test_an_address_that_leads_nowhere_fails(void **state)
{
    void (*const changes[])(struct entry *) = {shorten, spoil, refuse, forget_port, name_host};

    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct peer first;
        struct direct *second = NULL;

        start(state);
        space.change = changes[i];
        begin_first(&first, 200);
        CHECK(open_rank(&second, 1, CONNECT_MS) == STATUS_UNAVAILABLE && !second);
        pthread_join(first.thread, NULL);
        CHECK(first.st == STATUS_UNAVAILABLE);
    }
}

static void test_a_host_that_is_not_here_fails(void **state)
{
    const struct comm_config config = {.size = RANKS, .host = "192.0.2.1", .store = {.over = over}};
    struct direct *direct;

    (void)state;
    CHECK(direct_open(&direct, &config, 100) == STATUS_UNAVAILABLE);
    CHECK(strstr(status_text(), "192.0.2.1"));
}

struct answer {
    struct direct *direct;
    char *all;
};

static void *answer_with_bytes(void *argument)
{
    struct answer *answer = argument;

    CHECK(!direct_exchange(answer->direct, 0, RANKS, answer->all, LONG_BYTES));
    return NULL;
}

static void test_messages_longer_than_a_socket_takes_are_right_too(void **state)
{
    struct peer first;
    struct direct *second;
    char *all[RANKS];
    pthread_t thread;

    (void)state;
    begin_first(&first, CONNECT_MS);
    CHECK(open_rank(&second, 1, CONNECT_MS) == STATUS_OK);
    pthread_join(first.thread, NULL);
    for (int rank = 0; rank < RANKS; rank++) {
        all[rank] = malloc((size_t)RANKS * LONG_BYTES);
        memset(all[rank] + (size_t)rank * LONG_BYTES, 'a' + rank, LONG_BYTES);
    }
    struct answer answer = {first.direct, all[0]};
    CHECK(pthread_create(&thread, NULL, answer_with_bytes, &answer) == 0);
    CHECK(!direct_exchange(second, 0, RANKS, all[1], LONG_BYTES));
    pthread_join(thread, NULL);
    CHECK(memcmp(all[0], all[1], (size_t)RANKS * LONG_BYTES) == 0);
    CHECK(all[0][0] == 'a' && all[0][2 * LONG_BYTES - 1] == 'b');
    for (int rank = 0; rank < RANKS; rank++) {
        free(all[rank]);
    }
    direct_close(first.direct);
    direct_close(second);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_strangers_are_hung_up_on_and_do_not_hold_the_group_up, start),
        cmocka_unit_test_setup(test_a_crowd_of_silent_callers_does_not_keep_a_rank_out, start),
        cmocka_unit_test_setup(test_a_rank_that_does_not_come_is_given_up, start),
        cmocka_unit_test_setup(test_a_dissolved_group_is_not_waited_for, start),
        cmocka_unit_test_setup(test_an_address_that_leads_nowhere_fails, start),
        cmocka_unit_test_setup(test_a_host_that_is_not_here_fails, start),
        cmocka_unit_test_setup(test_messages_longer_than_a_socket_takes_are_right_too, start),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
