/*
 * cuda_host.h - how tests steer the emulated GPU.
 *
 * The environment chooses the same for whole programs: WINNOW_CUDA_HOST is a list of words,
 * "reversed" or "rotating" (the schedule), "lazy" or "shuffled" (streams), "apart" (memory that the
 * host cannot touch, memory.h), "devices=N", "memory=N" (MiB of each), "hopper" (compute capability
 * 9.0, else 8.0), "no-driver", and "address=A" (at which NCCL of other hosts reaches this process).
 */
#ifndef TESTS_CUDA_HOST_CUDA_HOST_H
#define TESTS_CUDA_HOST_CUDA_HOST_H

#ifdef __cplusplus
extern "C" {
#endif

/* Which warp of a block goes on: the first one as far as it can, the last one (its lanes reversed
 * too), or each in turn up to its next warp function. */
enum cuda_host_schedule { CUDA_HOST_FORWARD, CUDA_HOST_REVERSED, CUDA_HOST_ROTATING };
void cuda_host_set_schedule(enum cuda_host_schedule schedule);

/* When streams run what is enqueued: at once; not before somebody waits for it, and then only what
 * that needs; or likewise, but now and then one that was used by the thread runs ahead. */
enum cuda_host_streams { CUDA_HOST_EAGER, CUDA_HOST_LAZY, CUDA_HOST_SHUFFLED };
void cuda_host_set_streams(enum cuda_host_streams how);

/* Memory that is allocated from now on cannot be touched but by work of a stream. */
void cuda_host_set_apart(void);

/* From now on there is no memory for the graphs that this thread makes. */
void cuda_host_refuse_graphs(void);

/* Kernels run on this thread so far. */
unsigned long cuda_host_launches(void);

/* What this thread called so far. */
struct cuda_host_calls {
    unsigned long waits;       /* for a stream or an event */
    unsigned long allocations; /* and frees */
    unsigned long uploads, downloads;
    unsigned long graphs; /* launched */
};
struct cuda_host_calls cuda_host_calls(void);

#ifdef __cplusplus
}
#endif

#endif
