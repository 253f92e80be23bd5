#include "common/web.h"

#include "common/health.h"
#include "common/http.h"
#include "common/log.h"
#include "common/metrics.h"

#include <stdlib.h>
#include <string.h>

enum { HTTP_OK = 200, HTTP_ERROR = 500, HTTP_UNAVAILABLE = 503, N_ROUTES = 3 };

struct web {
    struct metrics *metrics;
    struct health *health;
    struct http_route routes[N_ROUTES];
    struct http *http;
};

static void serve_metrics(struct http_reply *reply, void *context)
{
    const struct web *web = context;

    *reply = (struct http_reply){.code = HTTP_OK, .type = "text/plain; version=0.0.4"};
    if (metrics_write(web->metrics, &reply->text, &reply->bytes)) {
        http_say(reply, HTTP_ERROR, status_text());
    }
}

static void serve_live(struct http_reply *reply, void *context)
{
    const struct web *web = context;
    bool alive = health_is_alive(web->health);

    http_say(reply, alive ? HTTP_OK : HTTP_UNAVAILABLE, alive ? "alive" : "no progress");
}

static void serve_ready(struct http_reply *reply, void *context)
{
    const struct web *web = context;
    bool ready = health_is_ready(web->health);

    http_say(reply, ready ? HTTP_OK : HTTP_UNAVAILABLE, ready ? "ready" : "not ready");
}

status web_open(struct web **out, const char *listen, struct metrics *metrics,
                struct health *health)
{
    struct web *web = calloc(1, sizeof(*web));

    if (!web) {
        return status_fail(STATUS_EXHAUSTED, "no memory for the HTTP server");
    }
    web->metrics = metrics;
    web->health = health;
    web->routes[0] = (struct http_route){"/metrics", serve_metrics, web};
    web->routes[1] = (struct http_route){"/health/live", serve_live, web};
    web->routes[2] = (struct http_route){"/health/ready", serve_ready, web};
    status st = http_open(&web->http, listen, web->routes, N_ROUTES);
    if (st) {
        free(web);
        return status_note(st, "--http");
    }
    log_info("web: listening host=%.*s port=%d", (int)(strrchr(listen, ':') - listen), listen,
             http_port(web->http));
    *out = web;
    return STATUS_OK;
}

void web_close(struct web *web)
{
    if (web) {
        http_close(web->http);
        free(web);
    }
}
