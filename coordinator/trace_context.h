/* trace_context.h - the trace that a call belongs to: W3C Trace Context, version 00 and later. */
#ifndef COORDINATOR_TRACE_CONTEXT_H
#define COORDINATOR_TRACE_CONTEXT_H

#include "coordinator/request.h"

/* The trace-id of a `traceparent`, which may be NULL.  False, and out "": there is no valid one. */
bool trace_context_id(char out[REQUEST_TRACE_ID + 1], const char *traceparent);

#endif
