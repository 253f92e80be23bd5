#include "common/rpc_accept.h"
#include "tests/check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static int listener;
static struct sockaddr_in address = {.sin_family = AF_INET};
static struct rlimit before;

static int open_listener(void **state)
{
    socklen_t bytes = sizeof(address);

    (void)state;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = 0;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    return getrlimit(RLIMIT_NOFILE, &before) || listener < 0 ||
           bind(listener, (struct sockaddr *)&address, bytes) ||
           getsockname(listener, (struct sockaddr *)&address, &bytes) || listen(listener, 16);
}

static int close_listener(void **state)
{
    (void)state;
    return close(listener) || setrlimit(RLIMIT_NOFILE, &before);
}

static int connect_one(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    return fd;
}

static void leave_descriptors(int n)
{
    struct rlimit limit = before;

    limit.rlim_cur = (rlim_t)listener + (rlim_t)n;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void test_a_connection_is_accepted_and_none_is_not(void **state)
{
    struct sockaddr_in peer = {0};
    socklen_t bytes = sizeof(peer);
    int client = connect_one();

    (void)state;
    int fd = accept4(listener, (struct sockaddr *)&peer, &bytes, SOCK_CLOEXEC);
    CHECK(fd >= 0 && bytes == sizeof(peer) && peer.sin_family == AF_INET);
    CHECK(accept4(listener, NULL, NULL, 0) == -1 && errno == EAGAIN);
    CHECK(accept4(-1, NULL, NULL, 0) == -1 && errno == EBADF);
    close(fd);
    close(client);
}

static void test_with_few_descriptors_left_connections_are_closed_at_once(void **state)
{
    int clients[3];
    char byte;

    (void)state;
    for (int i = 0; i < 3; i++) {
        clients[i] = connect_one();
    }
    leave_descriptors(RPC_ACCEPT_RESERVE);
    CHECK(accept4(listener, NULL, NULL, 0) == -1 && errno == EAGAIN);
    for (int i = 0; i < 3; i++) {
        CHECK(recv(clients[i], &byte, 1, 0) == 0); /* the other side has closed */
        close(clients[i]);
    }
}

static void test_without_any_descriptor_there_is_nothing_to_accept(void **state)
{
    int client = connect_one();

    (void)state;
    leave_descriptors(1);
    CHECK(accept4(listener, NULL, NULL, 0) == -1 && errno == EAGAIN);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    int fd = accept4(listener, NULL, NULL, 0); /* it has waited */
    CHECK(fd >= 0);
    close(fd);
    close(client);
}

static void test_the_limit_is_raised_as_far_as_it_may(void **state)
{
    struct rlimit limit;

    (void)state;
    leave_descriptors(8);
    rpc_accept_init();
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(limit.rlim_cur == (before.rlim_max < RPC_ACCEPT_MAX ? before.rlim_max : RPC_ACCEPT_MAX));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, open_listener, close_listener)
    const struct CMUnitTest tests[] = {
        TEST(test_a_connection_is_accepted_and_none_is_not),
        TEST(test_with_few_descriptors_left_connections_are_closed_at_once),
        TEST(test_without_any_descriptor_there_is_nothing_to_accept),
        TEST(test_the_limit_is_raised_as_far_as_it_may),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
