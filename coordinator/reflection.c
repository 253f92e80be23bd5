#include "coordinator/reflection.h"

#include "coordinator/descriptors.h"
#include "grpc/reflection/v1/reflection.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Made by the build: proto/embed.cmake. */
extern const unsigned char winnow_descriptors[];
extern const size_t winnow_descriptors_bytes;

enum { MAX_SERVICES = 16, MAX_SERVICE_NAME = 128 };

/* Field numbers of the two oneofs; their generated names are longer than a line. */
enum {
    ASK_FILE = 3,
    ASK_SYMBOL = 4,
    ASK_EXTENSION = 5,
    ASK_EXTENSION_NUMBERS = 6,
    ASK_SERVICES = 7,
    ANSWER_FILES = 4,
    ANSWER_EXTENSION_NUMBERS = 5,
    ANSWER_SERVICES = 6,
    ANSWER_ERROR = 7,
};

struct reflection {
    struct descriptors set;
    char names[MAX_SERVICES][MAX_SERVICE_NAME];
    int n_services;
};

/* A reply with room for every kind of answer. */
struct answer {
    Grpc__Reflection__V1__ServerReflectionResponse response;
    Grpc__Reflection__V1__FileDescriptorResponse files;
    Grpc__Reflection__V1__ExtensionNumberResponse extensions;
    Grpc__Reflection__V1__ListServiceResponse services;
    Grpc__Reflection__V1__ErrorResponse error;
    ProtobufCBinaryData protos[DESCRIPTORS_MAX_FILES];
    Grpc__Reflection__V1__ServiceResponse service[MAX_SERVICES];
    Grpc__Reflection__V1__ServiceResponse *service_list[MAX_SERVICES];
};

static void set_case(struct answer *answer, int number)
{
    answer->response.message_response_case =
        (Grpc__Reflection__V1__ServerReflectionResponse__MessageResponseCase)number;
}

static void answer_error(struct answer *answer, status code, const char *text)
{
    grpc__reflection__v1__error_response__init(&answer->error);
    answer->error.error_code = (int32_t)code;
    answer->error.error_message.data = (uint8_t *)text;
    answer->error.error_message.len = strlen(text);
    set_case(answer, ANSWER_ERROR);
    answer->response.error_response = &answer->error;
}

static void answer_file(const struct reflection *reflection, struct answer *answer, int file)
{
    int list[DESCRIPTORS_MAX_FILES];

    if (file < 0) {
        answer_error(answer, STATUS_NOT_FOUND, "no such file or symbol");
        return;
    }
    int n = descriptors_with_imports(&reflection->set, file, list);
    for (int i = 0; i < n; i++) {
        const struct descriptor_file *it = &reflection->set.files[list[i]];
        answer->protos[i].data = (uint8_t *)it->proto.data;
        answer->protos[i].len = it->proto.bytes;
    }
    grpc__reflection__v1__file_descriptor_response__init(&answer->files);
    answer->files.n_file_descriptor_proto = (size_t)n;
    answer->files.file_descriptor_proto = answer->protos;
    set_case(answer, ANSWER_FILES);
    answer->response.file_descriptor_response = &answer->files;
}

static void answer_services(const struct reflection *reflection, struct answer *answer)
{
    for (int i = 0; i < reflection->n_services; i++) {
        grpc__reflection__v1__service_response__init(&answer->service[i]);
        answer->service[i].name.data = (uint8_t *)reflection->names[i];
        answer->service[i].name.len = strlen(reflection->names[i]);
        answer->service_list[i] = &answer->service[i];
    }
    grpc__reflection__v1__list_service_response__init(&answer->services);
    answer->services.n_service = (size_t)reflection->n_services;
    answer->services.service = answer->service_list;
    set_case(answer, ANSWER_SERVICES);
    answer->response.list_services_response = &answer->services;
}

/* No file here declares extensions. */
static void answer_extensions(const struct reflection *reflection, struct answer *answer,
                              const ProtobufCBinaryData *type)
{
    if (!descriptors_has_message(&reflection->set, (const char *)type->data, type->len)) {
        answer_error(answer, STATUS_NOT_FOUND, "no such message type");
        return;
    }
    grpc__reflection__v1__extension_number_response__init(&answer->extensions);
    answer->extensions.base_type_name = *type;
    set_case(answer, ANSWER_EXTENSION_NUMBERS);
    answer->response.all_extension_numbers_response = &answer->extensions;
}

static void answer_request(const struct reflection *reflection, struct answer *answer,
                           Grpc__Reflection__V1__ServerReflectionRequest *request)
{
    const ProtobufCBinaryData *name = &request->file_by_filename;

    switch ((int)request->message_request_case) {
    case ASK_FILE:
        answer_file(reflection, answer,
                    descriptors_by_name(&reflection->set, (const char *)name->data, name->len));
        break;
    case ASK_SYMBOL:
        name = &request->file_containing_symbol;
        answer_file(reflection, answer,
                    descriptors_by_symbol(&reflection->set, (const char *)name->data, name->len));
        break;
    case ASK_EXTENSION:
        answer_error(answer, STATUS_NOT_FOUND, "no such extension");
        break;
    case ASK_EXTENSION_NUMBERS:
        answer_extensions(reflection, answer, &request->all_extension_numbers_of_type);
        break;
    case ASK_SERVICES:
        answer_services(reflection, answer);
        break;
    default:
        answer_error(answer, STATUS_INVALID, "the request asks for nothing");
        break;
    }
}

status reflection_answer(const struct reflection *reflection, const uint8_t *data, size_t bytes,
                         uint8_t **out, size_t *out_bytes)
{
    struct answer answer;
    Grpc__Reflection__V1__ServerReflectionRequest *request =
        grpc__reflection__v1__server_reflection_request__unpack(NULL, bytes, data);

    if (!request) {
        return status_fail(STATUS_INVALID, "not a ServerReflectionRequest");
    }
    grpc__reflection__v1__server_reflection_response__init(&answer.response);
    answer.response.valid_host = request->host;
    answer.response.original_request = request;
    answer_request(reflection, &answer, request);
    size_t size =
        grpc__reflection__v1__server_reflection_response__get_packed_size(&answer.response);
    uint8_t *packed = malloc(size + 1);
    if (packed) {
        *out_bytes =
            grpc__reflection__v1__server_reflection_response__pack(&answer.response, packed);
        *out = packed;
    }
    grpc__reflection__v1__server_reflection_request__free_unpacked(request, NULL);
    return packed ? STATUS_OK : status_fail(STATUS_EXHAUSTED, "out of memory for a reply");
}

/* Small and bounded work: it may run on a completion thread. */
static void on_request(struct rpc_call *call, const uint8_t *data, size_t bytes, void *context)
{
    uint8_t *reply = NULL;
    size_t reply_bytes = 0;

    if (rpc_call_unsent_bytes(call) > REFLECTION_MAX_UNSENT) {
        rpc_call_finish(call, STATUS_EXHAUSTED, "too many unread replies", NULL, 0);
        return;
    }
    status st = reflection_answer(context, data, bytes, &reply, &reply_bytes);
    if (st) {
        rpc_call_finish(call, st, status_text(), NULL, 0);
        return;
    }
    rpc_call_send(call, reply, reply_bytes);
    free(reply);
}

static void on_half_close(struct rpc_call *call, void *context)
{
    (void)context;
    rpc_call_finish(call, STATUS_OK, NULL, NULL, 0);
}

status reflection_open(struct reflection **out)
{
    struct reflection *reflection = calloc(1, sizeof(*reflection));
    int file = 0, index = 0;

    if (!reflection) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for reflection");
    }
    if (!descriptors_open(&reflection->set, winnow_descriptors, winnow_descriptors_bytes)) {
        free(reflection);
        return status_fail(STATUS_INTERNAL, "the embedded descriptors cannot be read");
    }
    while (reflection->n_services < MAX_SERVICES &&
           descriptors_next_service(&reflection->set, &file, &index,
                                    reflection->names[reflection->n_services], MAX_SERVICE_NAME)) {
        reflection->n_services++;
    }
    *out = reflection;
    return STATUS_OK;
}

void reflection_close(struct reflection *reflection)
{
    free(reflection);
}

void reflection_handlers(struct reflection *reflection, struct rpc_handler *out)
{
    static const char *const paths[REFLECTION_HANDLERS] = {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    };

    for (int i = 0; i < REFLECTION_HANDLERS; i++) {
        out[i] = (struct rpc_handler){
            .path = paths[i],
            .on_message = on_request,
            .on_half_close = on_half_close,
            .client_streaming = true,
            .max_message = REFLECTION_MAX_REQUEST,
            .context = reflection,
        };
    }
}
