/* local.h - --local-workers: children of this process that run winnow-worker. */
#ifndef COORDINATOR_LOCAL_H
#define COORDINATOR_LOCAL_H

#include "common/children.h"
#include "coordinator/service.h"

/* `coordinator` is HOST:PORT of the worker plane; all is copied.  Nothing is started yet. */
status local_open(struct children **out, const struct service_local *config,
                  const char *coordinator);

#endif
