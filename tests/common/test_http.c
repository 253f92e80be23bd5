/* The HTTP server: where it listens, and what it says to whom. */
#include "common/http.h"
#include "tests/check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void serve(struct http_reply *reply, void *context)
{
    http_say(reply, 200, context);
}

static const struct http_route routes[] = {{"/here", serve, "hello"}};
static struct http *http;

static int open_server(void **state)
{
    (void)state;
    CHECK_OK(http_open(&http, "127.0.0.1:0", routes, 1));
    return 0;
}

static int close_server(void **state)
{
    (void)state;
    http_close(http);
    return 0;
}

/* Sends the bytes; the reply ends when the server closes. */
static const char *answer(const char *request)
{
    static char reply[4096];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)http_port(http))};
    size_t bytes = 0;
    ssize_t n;

    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0);
    CHECK(write(fd, request, strlen(request)) == (ssize_t)strlen(request));
    while ((n = read(fd, reply + bytes, sizeof(reply) - 1 - bytes)) > 0) {
        bytes += (size_t)n;
    }
    close(fd);
    reply[bytes] = '\0';
    return reply;
}

#define REST " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"

static void test_a_route_is_served(void **state)
{
    (void)state;
    const char *reply = answer("GET /here" REST "\r\n");
    CHECK(strstr(reply, "HTTP/1.1 200 ") == reply);
    CHECK(strstr(reply, "Content-Type: text/plain; charset=utf-8\r\n"));
    CHECK(strstr(reply, "\r\n\r\nhello\n"));
}

static void test_a_head_is_served_without_its_body(void **state)
{
    (void)state;
    const char *reply = answer("HEAD /here" REST "\r\n");
    CHECK(strstr(reply, "HTTP/1.1 200 ") == reply);
    CHECK(strstr(reply, "Content-Length: 6\r\n") && !strstr(reply, "hello"));
}

static void test_what_is_no_route_is_not_found(void **state)
{
    (void)state;
    CHECK(strstr(answer("GET /here/" REST "\r\n"), "HTTP/1.1 404 "));
    CHECK(strstr(answer("GET /../here" REST "\r\n"), "HTTP/1.1 404 "));
}

static void test_other_methods_are_not_allowed_whatever_they_bring(void **state)
{
    (void)state;
    const char *reply = answer("POST /here" REST "Content-Length: 5\r\n\r\nabcde");
    CHECK(strstr(reply, "HTTP/1.1 405 ") && strstr(reply, "Allow: GET, HEAD\r\n"));
    CHECK(strstr(answer("DELETE /here" REST "\r\n"), "HTTP/1.1 405 "));
}

static void test_what_is_no_http_gets_no_answer(void **state)
{
    (void)state;
    CHECK(!strstr(answer("\x16\x03\x01\r\n\r\n"), " 200 "));
}

static void test_a_taken_port_and_a_bad_address_are_refused(void **state)
{
    struct http *second = NULL;
    char listen[64];

    (void)state;
    snprintf(listen, sizeof(listen), "127.0.0.1:%d", http_port(http));
    CHECK_FAILS(http_open(&second, listen, routes, 1), STATUS_UNAVAILABLE, "in use");
    CHECK_FAILS(http_open(&second, "127.0.0.1", routes, 1), STATUS_INVALID, "not HOST:PORT");
    CHECK_FAILS(http_open(&second, "127.0.0.1:65536", routes, 1), STATUS_INVALID, "not HOST:PORT");
    CHECK_FAILS(http_open(&second, "no.such.host.invalid:0", routes, 1), STATUS_INVALID,
                "no.such.host.invalid");
    CHECK(!second);
    http_close(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, open_server, close_server)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_route_is_served),
        TEST(test_a_head_is_served_without_its_body),
        TEST(test_what_is_no_route_is_not_found),
        TEST(test_other_methods_are_not_allowed_whatever_they_bring),
        TEST(test_what_is_no_http_gets_no_answer),
        TEST(test_a_taken_port_and_a_bad_address_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
