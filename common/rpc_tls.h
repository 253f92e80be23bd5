/*
 * rpc_tls.h - certificates and keys for rpc_server.c and rpc_client.c; nobody else includes it.
 *
 * Files are read at start and again when one of them has changed and the connection being made
 * is a new one.  New files that are not usable (missing, a key of another certificate) change
 * nothing, and the log says so: so two files may be replaced one after the other.
 */
#ifndef COMMON_RPC_TLS_H
#define COMMON_RPC_TLS_H

#include "common/rpc.h"

#include <grpc/grpc_security.h>

enum rpc_tls_limits { RPC_TLS_MAX_FILE = 1 << 20 /* bytes of a PEM file */ };

struct rpc_tls_files;

/* The paths are borrowed. */
status rpc_tls_open(struct rpc_tls_files **out, const struct rpc_tls *tls);
void rpc_tls_close(struct rpc_tls_files *files); /* NULL is fine */

/* Reads again what has changed; true if credentials made now are others than before. */
bool rpc_tls_refresh(struct rpc_tls_files *files);

/* The credentials look at the files themselves, at each handshake: files outlive the server. */
grpc_server_credentials *rpc_tls_server_credentials(struct rpc_tls_files *files);
grpc_channel_credentials *rpc_tls_channel_credentials(struct rpc_tls_files *files);

#endif
