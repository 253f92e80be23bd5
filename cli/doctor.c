/* doctor.c - winnow doctor: what this machine has for a worker, and what is missing for a GPU. */
#include "cli/commands.h"
#include "cli/gpu_probe.h"
#include "cli/json_text.h"
#include "cli/print.h"
#include "common/machine.h"
#include "common/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRAM "winnow doctor"

enum { MAX_MISSING = 2 * GPU_PROBE_MAX + 8 };

struct findings {
    struct machine machine;
    struct gpu_probe probe;
    char missing[MAX_MISSING][GPU_PROBE_TEXT];
    int n_missing;
};

static double gib(uint64_t bytes)
{
    return (double)bytes / (1 << 30);
}

/* ---- for people ---- */

static void print_gpus(const struct gpu_probe *probe)
{
    for (int i = 0; i < probe->n; i++) {
        const struct gpu *gpu = &probe->gpus[i];
        print_out("GPU %-6d %.100s, sm_%d, %.1f GiB", i, gpu->name, gpu->capability,
                  gib(gpu->memory_bytes));
        for (int other = 0; other < probe->n; other++) {
            if (gpu->peers >> other & 1) {
                print_out("%s%d", gpu->peers & ((UINT64_C(1) << other) - 1) ? "," : ", peers ",
                          other);
            }
        }
        print_out("\n");
    }
}

/* Of CUDA's libraries: 1000 for a major version, 10 for a minor one. */
static void print_version(const char *what, int version)
{
    if (version) {
        print_out("%-10s %d.%d\n", what, version / 1000, version % 1000 / 10);
    } else {
        print_out("%-10s none\n", what);
    }
}

static void print_findings(const struct findings *f)
{
    const struct gpu_probe *probe = &f->probe;
    int nccl = probe->nccl_version;

    print_out("winnow     " WINNOW_VERSION "\n");
    print_out("machine    %d cores, %.1f GiB of memory, %.1f GiB free\n", f->machine.cores,
              gib(f->machine.memory_bytes), gib(f->machine.free_bytes));
    print_out("/dev/shm   %.1f GiB\n", gib(probe->shm_bytes));
    print_version("driver", probe->driver_error[0] ? 0 : probe->driver_version);
    print_gpus(probe);
    print_version("CUDA", probe->runtime_version);
    print_out("cuBLAS     %s\n", probe->cublas ? "found" : "none");
    if (nccl) {
        print_out("NCCL       %d.%d.%d\n", nccl / 10000, nccl / 100 % 100, nccl % 100);
    } else {
        print_out("NCCL       none\n");
    }
    print_out("--device cpu can work here.\n");
    if (f->n_missing == 0) {
        print_out("--device cuda can work here.\n");
        return;
    }
    print_out("--device cuda misses something:\n");
    for (int i = 0; i < f->n_missing; i++) {
        print_out("  %s\n", f->missing[i]);
    }
}

/* ---- for programs ---- */

static bool add_gpus(cJSON *object, const struct gpu_probe *probe)
{
    cJSON *gpus = cJSON_AddArrayToObject(object, "gpus");
    bool ok = gpus != NULL;

    for (int i = 0; ok && i < probe->n; i++) {
        const struct gpu *gpu = &probe->gpus[i];
        cJSON *o = cJSON_CreateObject();
        cJSON *peers = cJSON_AddArrayToObject(o, "peers");
        ok = o && cJSON_AddItemToArray(gpus, o) && peers &&
             json_text_add(o, "name", gpu->name, strlen(gpu->name)) &&
             json_text_add_whole(o, "capability", (uint64_t)gpu->capability) &&
             json_text_add_whole(o, "memory_bytes", gpu->memory_bytes);
        for (int other = 0; ok && other < probe->n; other++) {
            if (gpu->peers >> other & 1) {
                ok = cJSON_AddItemToArray(peers, cJSON_CreateNumber(other));
            }
        }
    }
    return ok;
}

static status print_json(const struct findings *f)
{
    const struct gpu_probe *probe = &f->probe;
    cJSON *object = cJSON_CreateObject();
    bool ok = json_text_add(object, "version", WINNOW_VERSION, strlen(WINNOW_VERSION)) &&
              json_text_add_whole(object, "cores", (uint64_t)f->machine.cores) &&
              json_text_add_whole(object, "memory_bytes", f->machine.memory_bytes) &&
              json_text_add_whole(object, "shm_bytes", probe->shm_bytes) &&
              json_text_add_whole(object, "driver_version", (uint64_t)probe->driver_version) &&
              json_text_add_whole(object, "runtime_version", (uint64_t)probe->runtime_version) &&
              json_text_add_whole(object, "nccl_version", (uint64_t)probe->nccl_version) &&
              cJSON_AddBoolToObject(object, "cublas", probe->cublas) && add_gpus(object, probe);
    cJSON *missing = cJSON_AddArrayToObject(object, "missing");

    for (int i = 0; ok && i < f->n_missing; i++) {
        ok = cJSON_AddItemToArray(missing, cJSON_CreateString(f->missing[i]));
    }
    char *text = ok ? cJSON_PrintUnformatted(object) : NULL;
    cJSON_Delete(object);
    if (!text) {
        return status_fail(STATUS_EXHAUSTED, "out of memory for the answer");
    }
    print_out("%s\n", text);
    free(text);
    return STATUS_OK;
}

int doctor_main(int argc, char **argv)
{
    bool json = false;
    const struct option table[] = {
        {"json", OPTION_FLAG, &json, NULL, "a JSON object instead of a table", 0, 0},
    };
    struct options options = {
        .program = PROGRAM,
        .synopsis = "Show what this machine has for workers, and what is missing for GPUs.",
        .epilog = "Exit status: 0 whatever is missing.",
        .table = table,
        .n = sizeof(table) / sizeof(table[0]),
    };
    enum options_outcome outcome;
    static struct findings findings; /* too large for a stack */

    if (options_parse(&options, argc, argv, &outcome)) {
        print_usage_failure(PROGRAM);
        return EXIT_USAGE;
    }
    if (outcome != OPTIONS_RUN) {
        return print_finish();
    }
    findings.machine = machine_look();
    gpu_probe_look(&findings.probe);
    gpu_probe_missing(&findings.probe, findings.missing, MAX_MISSING, &findings.n_missing);
    if (!json) {
        print_findings(&findings);
    } else if (print_json(&findings)) {
        print_failure(PROGRAM, STATUS_EXHAUSTED);
        return EXIT_ERROR;
    }
    return print_finish();
}
