#include "worker/policy.h"

#include <assert.h>

static const struct policy *const policies[METHOD_COUNT] = {
    [METHOD_FULL] = &policy_full,
    [METHOD_FASTKV] = &policy_fastkv,
    [METHOD_SNAPKV] = &policy_snapkv,
    [METHOD_ADAKV] = &policy_adakv,
    [METHOD_HEADKV] = &policy_headkv,
    [METHOD_STREAMINGLLM] = &policy_streamingllm,
    [METHOD_PYRAMIDKV] = &policy_pyramidkv,
    [METHOD_GEMFILTER] = &policy_gemfilter,
    [METHOD_PYRAMIDINFER] = &policy_pyramidinfer,
    [METHOD_H2O] = &policy_h2o,
    [METHOD_FASTGEN] = &policy_fastgen,
};

const struct policy *policy_for(enum method method)
{
    assert((unsigned)method < METHOD_COUNT && policies[method]);
    return policies[method];
}
