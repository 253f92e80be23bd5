#include "cli/commands.h"
#include "cli/json_text.h"
#include "cli/print.h"
#include "cli/service.h"
#include "common/method.h"
#include "common/options.h"
#include "winnow/v1/control.pb-c.h"
#include "winnow/v1/inference.pb-c.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "winnow status"

struct status_options {
    struct service_access access;
    bool json;
    double deadline_s;
};

static status parse(struct status_options *o, int argc, char **argv, enum options_outcome *outcome)
{
    const struct option own[] = {
        {"json", OPTION_FLAG, &o->json, NULL, "a JSON object instead of a table", 0, 0},
        {"deadline", OPTION_DOUBLE, &o->deadline_s, "SECONDS", "give up then", 0.001, 1e9},
    };
    enum { N_OWN = sizeof(own) / sizeof(own[0]) };
    struct option table[N_OWN + SERVICE_ACCESS_OPTIONS];

    memcpy(table, own, sizeof(own));
    service_access_rows(table + N_OWN, &o->access);
    struct options options = {
        .program = PROGRAM,
        .synopsis = "Show the server, its groups of workers and its model.",
        .table = table,
        .n = N_OWN + SERVICE_ACCESS_OPTIONS,
    };

    return options_parse(&options, argc, argv, outcome);
}

/* ---- for people ---- */

/* A field of the server's: at most 40 characters, harmless. */
static void print_field(const char *before, const ProtobufCBinaryData *text)
{
    char *harmless = print_harmless((const char *)text->data, text->len, false);

    print_out("%s%.160s", before, harmless && harmless[0] ? harmless : "-");
    free(harmless);
}

static const char *or_unknown(const char *name)
{
    return name ? name : "?";
}

static void print_model(const Winnow__V1__Model *m)
{
    print_field("model     ", &m->name);
    print_field(" (", &m->architecture);
    print_field(", ", &m->dtype);
    print_out(")\n          %u layers, width %u, %u query heads, %u KV heads of %u, %u tokens in "
              "the vocabulary\n",
              m->layers, m->hidden_size, m->query_heads, m->kv_heads, m->head_dim, m->vocab_size);
    print_out("          context %u, tensor parallel %u, default method %s\n", m->max_context,
              m->tensor_parallel, or_unknown(method_name((enum method)m->default_method)));
    print_out("methods  ");
    for (size_t i = 0; i < m->n_methods; i++) {
        print_out(" %s", or_unknown(method_name((enum method)m->methods[i]->method)));
    }
    print_out("\n");
}

static void print_worker(const Winnow__V1__WorkerStatus *w)
{
    const double mib = 1 << 20;

    print_out("  rank %-3u", w->rank);
    print_field(" ", &w->state);
    print_field("  ", &w->host);
    print_field("  ", &w->device);
    print_out("  KV %.1f of %.1f MiB, memory %.0f MiB at most, heard of %.1f s ago",
              (double)w->kv_bytes_used / mib, (double)w->kv_bytes_total / mib,
              (double)w->memory_peak_bytes / mib, w->heartbeat_age_s);
    if (w->last_error.len) {
        print_field("; ", &w->last_error);
    }
    print_out("\n");
}

static void print_status(const Winnow__V1__Status *s)
{
    print_field("server    winnow ", &s->version);
    print_out(", up %.0f s%s\n", s->uptime_s, s->draining ? ", draining" : "");
    print_out("requests  %u running, %u queued (%" PRIu64 " tokens), %" PRIu64
              " completed, %" PRIu64 " failed\n",
              s->running_requests, s->queued_requests, s->queued_tokens, s->completed_requests,
              s->failed_requests);
    if (s->n_groups == 0) {
        print_out("no group of workers\n");
    }
    for (size_t i = 0; i < s->n_groups; i++) {
        const Winnow__V1__GroupStatus *g = s->groups[i];
        print_out("group %-4u", g->group);
        print_field("", &g->state);
        print_out(", epoch %" PRIu64 ", %u running\n", g->epoch, g->running_requests);
        for (size_t k = 0; k < g->n_workers; k++) {
            print_worker(g->workers[k]);
        }
    }
}

/* ---- for programs ---- */

static bool add(cJSON *object, const char *key, const ProtobufCBinaryData *text)
{
    return json_text_add(object, key, (const char *)text->data, text->len);
}

static bool add_worker(cJSON *list, const Winnow__V1__WorkerStatus *w)
{
    cJSON *o = cJSON_CreateObject();

    return o && cJSON_AddItemToArray(list, o) && json_text_add_whole(o, "rank", w->rank) &&
           add(o, "host", &w->host) && add(o, "device", &w->device) && add(o, "state", &w->state) &&
           cJSON_AddNumberToObject(o, "heartbeat_age_s", w->heartbeat_age_s) &&
           json_text_add_whole(o, "kv_bytes_used", w->kv_bytes_used) &&
           json_text_add_whole(o, "kv_bytes_total", w->kv_bytes_total) &&
           add(o, "last_error", &w->last_error);
}

static bool add_group(cJSON *list, const Winnow__V1__GroupStatus *g)
{
    cJSON *o = cJSON_CreateObject();
    bool ok = o && cJSON_AddItemToArray(list, o) && json_text_add_whole(o, "group", g->group) &&
              json_text_add_whole(o, "epoch", g->epoch) && add(o, "state", &g->state) &&
              json_text_add_whole(o, "running_requests", g->running_requests);
    cJSON *workers = ok ? cJSON_AddArrayToObject(o, "workers") : NULL;

    ok = workers != NULL;
    for (size_t i = 0; ok && i < g->n_workers; i++) {
        ok = add_worker(workers, g->workers[i]);
    }
    return ok;
}

static bool add_status(cJSON *o, const Winnow__V1__Status *s)
{
    cJSON *groups = cJSON_AddArrayToObject(o, "groups");
    bool ok = groups && add(o, "version", &s->version) &&
              cJSON_AddNumberToObject(o, "uptime_s", s->uptime_s) &&
              cJSON_AddBoolToObject(o, "draining", s->draining) &&
              json_text_add_whole(o, "queued_requests", s->queued_requests) &&
              json_text_add_whole(o, "queued_tokens", s->queued_tokens) &&
              json_text_add_whole(o, "running_requests", s->running_requests) &&
              json_text_add_whole(o, "completed_requests", s->completed_requests) &&
              json_text_add_whole(o, "failed_requests", s->failed_requests);

    for (size_t i = 0; ok && i < s->n_groups; i++) {
        ok = add_group(groups, s->groups[i]);
    }
    return ok;
}

static bool add_model(cJSON *parent, const Winnow__V1__Model *m)
{
    cJSON *o = cJSON_AddObjectToObject(parent, "model");
    bool ok = o && add(o, "name", &m->name) && add(o, "architecture", &m->architecture) &&
              add(o, "dtype", &m->dtype) && json_text_add_whole(o, "layers", m->layers) &&
              json_text_add_whole(o, "hidden_size", m->hidden_size) &&
              json_text_add_whole(o, "query_heads", m->query_heads) &&
              json_text_add_whole(o, "kv_heads", m->kv_heads) &&
              json_text_add_whole(o, "head_dim", m->head_dim) &&
              json_text_add_whole(o, "vocab_size", m->vocab_size) &&
              json_text_add_whole(o, "max_context", m->max_context) &&
              json_text_add_whole(o, "tensor_parallel", m->tensor_parallel);
    const char *name = method_name((enum method)m->default_method);
    cJSON *methods = ok ? cJSON_AddArrayToObject(o, "methods") : NULL;

    ok = methods && cJSON_AddStringToObject(o, "default_method", or_unknown(name));
    for (size_t i = 0; ok && i < m->n_methods; i++) {
        name = method_name((enum method)m->methods[i]->method);
        cJSON *item = cJSON_CreateString(or_unknown(name));
        ok = item && cJSON_AddItemToArray(methods, item);
    }
    return ok;
}

static status print_json(const Winnow__V1__Status *s, const Winnow__V1__Model *m)
{
    cJSON *object = cJSON_CreateObject();
    char *text = NULL;

    if (object && add_status(object, s) && add_model(object, m)) {
        text = cJSON_PrintUnformatted(object);
    }
    cJSON_Delete(object);
    if (!text) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the answer");
    }
    print_out("%s\n", text);
    free(text);
    return STATUS_OK;
}

static status ask(const struct service *service, bool json)
{
    Winnow__V1__GetStatusRequest status_request = WINNOW__V1__GET_STATUS_REQUEST__INIT;
    Winnow__V1__GetModelRequest model_request = WINNOW__V1__GET_MODEL_REQUEST__INIT;
    ProtobufCMessage *server;
    ProtobufCMessage *model;
    status st = service_call(service, "/winnow.v1.Control/GetStatus", &status_request.base,
                             &winnow__v1__status__descriptor, &server);

    if (st) {
        return st;
    }
    st = service_call(service, "/winnow.v1.Inference/GetModel", &model_request.base,
                      &winnow__v1__model__descriptor, &model);
    if (!st && json) {
        st = print_json((const Winnow__V1__Status *)server, (const Winnow__V1__Model *)model);
    } else if (!st) {
        print_status((const Winnow__V1__Status *)server);
        print_model((const Winnow__V1__Model *)model);
    }
    if (!st) {
        protobuf_c_message_free_unpacked(model, NULL);
    }
    protobuf_c_message_free_unpacked(server, NULL);
    return st;
}

int status_main(int argc, char **argv)
{
    struct status_options options = {.access.server = "127.0.0.1:8600", .deadline_s = 10};
    enum options_outcome outcome;
    struct service service;

    if (parse(&options, argc, argv, &outcome)) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    status st = service_open(&service, &options.access, options.deadline_s);
    if (!st) {
        st = ask(&service, options.json);
        service_close(&service);
    }
    if (st) {
        print_failure(PROGRAM, st);
        return EXIT_ERROR;
    }
    return print_finish();
}
