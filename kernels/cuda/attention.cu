/* attention.cu - prefill attention in the device's dtype. */
#include "kernels/cuda/attention.h"

status cuda_attention(struct device *dev, const struct attention *args)
{
    if (args->rows == 0) {
        return STATUS_OK;
    }
    if (!cuda_is_narrow(dev)) {
        return cuda_attention_f32(dev, args);
    }
    bool whole = args->head_dim == 64 || args->head_dim == 128;
    return cuda_device(dev)->hopper && whole ? cuda_attention_wgmma(dev, args)
                                             : cuda_attention_mma(dev, args);
}
