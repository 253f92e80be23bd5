/*
 * method_wire.h - struct method_params to and from winnow.v1.Compression.
 *
 * The one place that knows both.  The coordinator reads what a client sent (defaults filled in,
 * everything checked) and answers GetModel; plans carry every field to the workers.
 */
#ifndef COMMON_METHOD_WIRE_H
#define COMMON_METHOD_WIRE_H

#include "common/method.h"
#include "winnow/v1/inference.pb-c.h"

/* A message and the parts it points to; it must not be copied or moved once filled. */
struct method_wire {
    Winnow__V1__Compression compression;
    Winnow__V1__FastKV fastkv;
    Winnow__V1__GemFilter gemfilter;
    Winnow__V1__AdaKV adakv;
    Winnow__V1__HeadKV headkv;
    Winnow__V1__PyramidKV pyramidkv;
    Winnow__V1__StreamingLLM streamingllm;
    Winnow__V1__H2O h2o;
    Winnow__V1__PyramidInfer pyramidinfer;
    Winnow__V1__FastGen fastgen;
    Winnow__V1__TokenIds special_ids;
    Winnow__V1__TokenIds punct_ids;
};

/* Every field that the method uses is set.  Lists are borrowed from params. */
void method_to_wire(struct method_wire *out, const struct method_params *params);

/*
 * Defaults where a field is unset; `message` may be NULL.  Lists of *out are borrowed from the
 * message.  STATUS_INVALID names field, value and limit; STATUS_UNIMPLEMENTED names a valid
 * combination that this build does not execute.
 */
status method_from_wire(struct method_params *out, const Winnow__V1__Compression *message,
                        const struct model_config *config, enum method default_method);

#endif
