/*
 * memory.h - the memory of the emulated GPU.
 *
 * Either each allocation is the heap's, of exactly the size asked for, so that AddressSanitizer
 * sees the first byte past it; or all lie in one range that only running work may touch ("apart"),
 * so that a worker that reads or writes GPU memory by itself ends with SIGSEGV.
 */
#ifndef TESTS_CUDA_HOST_MEMORY_H
#define TESTS_CUDA_HOST_MEMORY_H

#include <stddef.h>

/* For all later allocations; none may exist. */
void cuda_host_memory_keep_apart(bool apart);
void cuda_host_memory_limit(size_t total); /* 8 GiB */

/* Aligned to 256 bytes; NULL: there is not so much left. */
void *cuda_host_memory_new(size_t bytes);
/* False: it was not given out. */
bool cuda_host_memory_delete(void *memory);

bool cuda_host_memory_holds(const void *address, size_t bytes);
size_t cuda_host_memory_free();
size_t cuda_host_memory_total();

/* Around work of a stream, on any thread. */
void cuda_host_memory_enter();
void cuda_host_memory_leave();

#endif
