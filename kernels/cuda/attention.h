/* attention.h - the two prefill attentions, and how their blocks share out the rows: a tile is
 * neighbouring (row, query head of one group) pairs, so that keys are read once for a group. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda.h"

status cuda_attention_f32(struct device *dev, const struct attention *args);
status cuda_attention_mma(struct device *dev, const struct attention *args);

#endif
