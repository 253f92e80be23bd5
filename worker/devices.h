/*
 * devices.h - one process for each GPU of a range: winnow-worker --device cuda:0-7.
 *
 * The process that was started computes nothing: its children, one for each GPU, run the same
 * command line with a device of their own, and are started again when they die.  Metrics and health
 * are the first one's: a group is ready only when all its ranks are.
 */
#ifndef WORKER_DEVICES_H
#define WORKER_DEVICES_H

#include "worker/config.h"

/* Until SIGTERM or SIGINT, or until a child cannot serve.  `arguments`: main()'s, with the
 * program's name. */
status devices_run(const struct worker_config *config, int n_arguments, char **arguments);

#endif
