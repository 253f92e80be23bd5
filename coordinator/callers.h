/*
 * callers.h - who may call: bearer secrets from a file, or certificates.
 *
 * One for each plane.  A secret file goes before certificates: then the line's name is the
 * caller's, and "admin" lines may do what needs an administrator.  Without one, the name of the
 * verified certificate is the caller's, and nobody is an administrator.  With neither everybody
 * is the nameless caller and may do everything.
 */
#ifndef COORDINATOR_CALLERS_H
#define COORDINATOR_CALLERS_H

#include "common/rpc.h"

struct callers;

struct callers_config {
    const char *plane;       /* for the log: "client" */
    const char *secret_file; /* keyring.h; NULL: none */
    bool named;              /* every secret has a name */
    bool certificates;       /* the server asks for them */
    const char *needed;      /* the sentence for who shows no secret */
    const char *unknown;     /* and for who shows a wrong one */
};

/* The strings of the config are borrowed. */
status callers_open(struct callers **out, const struct callers_config *config);
void callers_close(struct callers *callers); /* NULL is fine */

/* rpc_server_config.authorize; `context` is the struct callers.  UNAUTHENTICATED: not known;
 * PERMISSION: known, but no administrator. */
status callers_authorize(struct rpc_call *call, enum rpc_access access, void *context);

#endif
