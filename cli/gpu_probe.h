/*
 * gpu_probe.h - what this machine has for --device cuda, found without needing any of it.
 *
 * The NVIDIA driver and the libraries are loaded by their names when they are asked for, so that
 * the client runs on every machine.
 */
#ifndef CLI_GPU_PROBE_H
#define CLI_GPU_PROBE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    GPU_PROBE_MAX = 64,
    GPU_PROBE_TEXT = 256,
    GPU_PROBE_CAPABILITY = 80,       /* the least: 8.0 */
    GPU_PROBE_DRIVER = 13000,        /* the least: of CUDA 13.0 */
    GPU_PROBE_SHM_BYTES = 256 << 20, /* of /dev/shm, for several GPUs: containers have 64 MiB */
};

struct gpu {
    char name[GPU_PROBE_TEXT];
    int capability; /* 90 for 9.0 */
    uint64_t memory_bytes;
    uint64_t peers; /* bit i: it reads and writes GPU i directly */
};

struct gpu_probe {
    char driver_error[GPU_PROBE_TEXT]; /* empty: there is a driver */
    int driver_version;                /* the newest CUDA that it runs: 13000 for 13.0 */
    int n;                             /* GPUs */
    struct gpu gpus[GPU_PROBE_MAX];
    int runtime_version, nccl_version; /* 0: the library is not here */
    bool cublas;
    uint64_t shm_bytes; /* of /dev/shm; 0: there is none */
};

void gpu_probe_look(struct gpu_probe *out);

/* What keeps --device cuda from working, or several GPUs from working together: sentences without
 * a full stop.  *n of them; at most `most`. */
void gpu_probe_missing(const struct gpu_probe *probe, char (*out)[GPU_PROBE_TEXT], int most,
                       int *n);

#endif
