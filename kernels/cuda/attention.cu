/* attention.cu - prefill attention in the device's dtype. */
#include "kernels/cuda/attention.h"

status cuda_attention(struct device *dev, const struct attention *args)
{
    if (args->rows == 0) {
        return STATUS_OK;
    }
    return cuda_is_narrow(dev) ? cuda_attention_mma(dev, args) : cuda_attention_f32(dev, args);
}
