/*
 * own_secret.h - a secret for a coordinator whose only workers are its children.
 *
 * Drawn at start and kept in memory: a file without a name, which children inherit.  So no other
 * user of the machine can join, although nobody made a file.
 */
#ifndef COORDINATOR_OWN_SECRET_H
#define COORDINATOR_OWN_SECRET_H

#include "common/status.h"

enum { OWN_SECRET_PATH = 64 /* bytes of the path */ };

/* `path` is good in this process and in its children, until it ends. */
status own_secret_make(char path[OWN_SECRET_PATH]);

#endif
