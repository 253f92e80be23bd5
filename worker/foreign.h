/* foreign.h - tensors that say that a model computes something else than winnow does. */
#ifndef WORKER_FOREIGN_H
#define WORKER_FOREIGN_H

#include "common/model_config.h"
#include "worker/weights.h"

/* Bias, quantization and adapter tensors, and those that the configuration has no place for, are
 * refused by name. */
status foreign_refuse(const struct weights *weights, const struct model_config *config);

#endif
