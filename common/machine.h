/*
 * machine.h - what this process may use of its machine: cores and memory.
 *
 * Limits of a container count: a pod with two of 64 cores and 4 of 512 GiB has two cores and
 * 4 GiB.  Read are the affinity mask and the control group of version 2; without one the machine
 * itself is the limit.
 */
#ifndef COMMON_MACHINE_H
#define COMMON_MACHINE_H

#include <stdint.h>

struct machine {
    int cores;             /* >= 1; a part of a core counts as one */
    uint64_t memory_bytes; /* at most; never 0 */
    uint64_t free_bytes;   /* now, without what the page cache could give back */
};

struct machine machine_look(void);

/* Resident memory of this process, the most so far, in bytes. */
uint64_t machine_peak_memory(void);

/* machine_look() with this folder as the control group, for tests. */
struct machine machine_look_in(const char *cgroup);

#endif
