/*
 * managed.c - lets the tests of tests/kernels run on a real GPU as they are.
 *
 * They hand memory of the host to the operations: on the heap and on the stack.  Linked with
 * --wrap, both come from one region of managed memory, which GPU and host reach at one address.  It
 * is handed out in order and never taken back.  CUDA_LAUNCH_BLOCKING lets each operation end before
 * the test reads what it wrote.
 */
#include <cuda_runtime_api.h>

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

/* Touched pages alone cost memory. */
static const size_t region_bytes = (size_t)24 << 30, stack_bytes = (size_t)64 << 20;
enum { ALIGN = 256 };

static char *region, *next;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): the linker's names. */
void *__real_malloc(size_t bytes);
void __real_free(void *memory);
int __real_main(int argc, char **argv);

void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t n, size_t bytes);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void __wrap_free(void *memory);
int __wrap_main(int argc, char **argv);

static int is_managed(const void *memory)
{
    return region && (const char *)memory >= region && (const char *)memory < region + region_bytes;
}

/* Its size lies before it. */
static void *take(size_t bytes)
{
    char *taken = NULL;

    pthread_mutex_lock(&lock);
    size_t left = (size_t)(region + region_bytes - next);
    if (bytes < left - 2 * ALIGN) {
        taken = next + ALIGN;
        memcpy(next, &bytes, sizeof(bytes));
        next = taken + (bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    pthread_mutex_unlock(&lock);
    return taken;
}

void *__wrap_malloc(size_t bytes)
{
    return region ? take(bytes) : __real_malloc(bytes);
}

void *__wrap_calloc(size_t n, size_t bytes)
{
    void *taken = bytes && n > SIZE_MAX / bytes ? NULL : __wrap_malloc(n * bytes);

    return taken ? memset(taken, 0, n * bytes) : NULL;
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    return align <= ALIGN ? __wrap_malloc(bytes) : NULL;
}

void __wrap_free(void *memory)
{
    if (!is_managed(memory)) {
        __real_free(memory);
    }
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    size_t old = 0;
    char *moved = __wrap_malloc(bytes);

    if (memory && !is_managed(memory)) {
        abort(); /* nothing here grows what the C library gave out */
    }
    if (memory && moved) {
        memcpy(&old, (char *)memory - ALIGN, sizeof(old));
        memcpy(moved, memory, old < bytes ? old : bytes);
    }
    return moved;
}

static ucontext_t caller, callee;
static struct {
    int argc, result;
    char **argv;
} call = {.result = 1};

static void run(void)
{
    call.result = __real_main(call.argc, call.argv);
}

/* A context and no thread: the kernel waits on no word of this stack. */
int __wrap_main(int argc, char **argv)
{
    void *managed = NULL;
    cudaError_t error;

    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    error = cudaMallocManaged(&managed, region_bytes, cudaMemAttachGlobal);
    if (error) {
        fprintf(stderr, "no managed memory: %s\n", cudaGetErrorString(error));
        return 1;
    }
    next = region = managed;
    call.argc = argc;
    call.argv = argv;
    if (getcontext(&callee)) {
        return 1;
    }
    callee.uc_stack.ss_sp = take(stack_bytes);
    callee.uc_stack.ss_size = stack_bytes;
    callee.uc_link = &caller;
    makecontext(&callee, run, 0);
    swapcontext(&caller, &callee);
    return call.result;
}
/* NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier) */
