/*
 * profiles.h - tables of head importance for HEADKV, by name.
 *
 * A profile NAME is the file NAME.json of the server's folder, in the published format: one
 * object with a member "LAYER-HEAD" for each query head, in order, whose list of scores is
 * averaged.  All that fit the model are read when the server starts; a request only chooses
 * among them, so its name is never part of a path.
 */
#ifndef COORDINATOR_PROFILES_H
#define COORDINATOR_PROFILES_H

#include "common/model_config.h"

#include <stddef.h>

enum profiles_limits {
    PROFILES_MAX = 256,
    PROFILES_MAX_NAME = 127,        /* bytes, without ".json" */
    PROFILES_MAX_BYTES = 256 << 20, /* of a file */
};

struct profiles;

status profiles_open(struct profiles **out, const char *dir, const struct model_config *model);
void profiles_close(struct profiles *profiles); /* NULL is fine */

/* The scores (layers, query heads) of a profile; STATUS_INVALID says which there are. */
status profiles_find(const struct profiles *profiles, const char *name, size_t name_bytes,
                     const float **scores);

#endif
