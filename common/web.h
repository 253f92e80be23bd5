/*
 * web.h - what --http serves: /metrics for Prometheus, /health/live and /health/ready for probes.
 */
#ifndef COMMON_WEB_H
#define COMMON_WEB_H

#include "common/status.h"

struct health;
struct metrics;
struct web;

/* Health and metrics are borrowed until web_close().  `listen` is HOST:PORT, port 0 picks one; the
 * port is logged. */
status web_open(struct web **out, const char *listen, struct metrics *metrics,
                struct health *health);
void web_close(struct web *web); /* NULL is fine */

#endif
