#include "cli/gpu_probe.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

/* Numbers of the driver's interface. */
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

struct driver {
    int (*init)(unsigned flags);
    int (*version)(int *version);
    int (*count)(int *count);
    int (*name)(char *name, int bytes, int gpu);
    int (*attribute)(int *value, int attribute, int gpu);
    int (*memory)(size_t *bytes, int gpu);
    int (*peer)(int *can, int gpu, int other);
};

/* The library stays loaded: it has threads of its own. */
static bool load_driver(struct driver *driver, char *error)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    const struct {
        void *function;
        const char *name;
    } functions[] = {
        {&driver->init, "cuInit"},
        {&driver->version, "cuDriverGetVersion"},
        {&driver->count, "cuDeviceGetCount"},
        {&driver->name, "cuDeviceGetName"},
        {&driver->attribute, "cuDeviceGetAttribute"},
        {&driver->memory, "cuDeviceTotalMem_v2"},
        {&driver->peer, "cuDeviceCanAccessPeer"},
    };

    if (!library) {
        snprintf(error, GPU_PROBE_TEXT, "libcuda.so.1 is not here");
        return false;
    }
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        void *symbol = dlsym(library, functions[i].name);
        if (!symbol) {
            snprintf(error, GPU_PROBE_TEXT, "libcuda.so.1 has no %s", functions[i].name);
            return false;
        }
        memcpy(functions[i].function, &symbol, sizeof(symbol));
    }
    return true;
}

static void look_at_gpu(const struct driver *driver, struct gpu *out, int number, int n)
{
    int major = 0, minor = 0;
    size_t bytes = 0;

    driver->name(out->name, sizeof(out->name), number);
    driver->attribute(&major, CAPABILITY_MAJOR, number);
    driver->attribute(&minor, CAPABILITY_MINOR, number);
    driver->memory(&bytes, number);
    out->capability = 10 * major + minor;
    out->memory_bytes = bytes;
    for (int other = 0; other < n; other++) {
        int can = 0;
        if (other != number && driver->peer(&can, number, other) == 0 && can) {
            out->peers |= UINT64_C(1) << other;
        }
    }
}

static void look_at_gpus(struct gpu_probe *out)
{
    struct driver driver;
    int n = 0;

    if (!load_driver(&driver, out->driver_error)) {
        return;
    }
    int code = driver.init(0);
    if (!code) {
        code = driver.version(&out->driver_version);
    }
    if (!code) {
        code = driver.count(&n);
    }
    if (code) {
        snprintf(out->driver_error, sizeof(out->driver_error),
                 "the NVIDIA driver does not start (error %d)", code);
        return;
    }
    out->n = n < GPU_PROBE_MAX ? n : GPU_PROBE_MAX;
    for (int i = 0; i < out->n; i++) {
        look_at_gpu(&driver, &out->gpus[i], i, out->n);
    }
}

/* What a library says of its version through this function; 0: it is not here. */
static int version_of(const char *library, const char *function)
{
    void *handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
    void *symbol = handle ? dlsym(handle, function) : NULL;
    int (*get)(int *version) = NULL;
    int version = 0;

    memcpy(&get, &symbol, sizeof(symbol));
    return get && get(&version) == 0 ? version : 0;
}

void gpu_probe_look(struct gpu_probe *out)
{
    struct statvfs shm;

    *out = (struct gpu_probe){0};
    look_at_gpus(out);
    out->runtime_version = version_of("libcudart.so.13", "cudaRuntimeGetVersion");
    out->nccl_version = version_of("libnccl.so.2", "ncclGetVersion");
    out->cublas = dlopen("libcublasLt.so.13", RTLD_LAZY | RTLD_LOCAL) != NULL;
    if (statvfs("/dev/shm", &shm) == 0) {
        out->shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
    }
}

struct list {
    char (*out)[GPU_PROBE_TEXT];
    int most, n;
};

__attribute__((format(printf, 2, 3))) static void add(struct list *list, const char *format, ...)
{
    va_list arguments;

    if (list->n < list->most) {
        va_start(arguments, format);
        vsnprintf(list->out[list->n++], GPU_PROBE_TEXT, format, arguments);
        va_end(arguments);
    }
}

static void check_gpus(const struct gpu_probe *probe, struct list *list)
{
    if (probe->driver_error[0]) {
        add(list, "no NVIDIA driver: %.200s", probe->driver_error);
        return;
    }
    if (probe->driver_version < GPU_PROBE_DRIVER) {
        add(list, "the driver runs CUDA up to %d.%d, this needs %d.%d",
            probe->driver_version / 1000, probe->driver_version % 1000 / 10,
            GPU_PROBE_DRIVER / 1000, GPU_PROBE_DRIVER % 1000 / 10);
    }
    if (probe->n == 0) {
        add(list, "no GPU");
    }
    for (int i = 0; i < probe->n; i++) {
        const struct gpu *gpu = &probe->gpus[i];
        uint64_t others = (probe->n < 64 ? (UINT64_C(1) << probe->n) - 1 : UINT64_MAX) &
                          ~(UINT64_C(1) << i) & ~gpu->peers;
        if (gpu->capability < GPU_PROBE_CAPABILITY) {
            add(list, "GPU %d is of compute capability %d.%d, the least is %d.%d", i,
                gpu->capability / 10, gpu->capability % 10, GPU_PROBE_CAPABILITY / 10,
                GPU_PROBE_CAPABILITY % 10);
        }
        if (others) {
            add(list, "GPU %d has no peer access to GPU %d: collectives go through the host", i,
                __builtin_ctzll(others));
        }
    }
}

void gpu_probe_missing(const struct gpu_probe *probe, char (*out)[GPU_PROBE_TEXT], int most, int *n)
{
    struct list list = {out, most, 0};

    check_gpus(probe, &list);
    if (!probe->runtime_version) {
        add(&list, "the CUDA runtime: libcudart.so.13 is not here");
    }
    if (!probe->cublas) {
        add(&list, "cuBLAS: libcublasLt.so.13 is not here");
    }
    if (!probe->nccl_version) {
        add(&list, "NCCL, for several GPUs: libnccl.so.2 is not here");
    }
    if (probe->shm_bytes < GPU_PROBE_SHM_BYTES) {
        add(&list, "/dev/shm has %llu MiB, several GPUs want %d",
            (unsigned long long)(probe->shm_bytes >> 20), GPU_PROBE_SHM_BYTES >> 20);
    }
    *n = list.n;
}
