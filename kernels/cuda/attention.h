/* attention.h - the prefill attentions, and how their blocks share out the rows: a tile is
 * neighbouring (row, query head of one group) pairs, so that keys are read once for a group. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda.h"

status cuda_attention_f32(struct device *dev, const struct attention *args);
status cuda_attention_mma(struct device *dev, const struct attention *args);
/* On compute capability 9.0 alone; head_dim is 64 or 128. */
status cuda_attention_wgmma(struct device *dev, const struct attention *args);

#endif
