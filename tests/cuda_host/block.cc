/* block.cc - blocks of fibers, their barriers, shared memory and asynchronous copies. */
#include "tests/cuda_host/block.h"

#include "tests/cuda_host/fiber.h"

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

thread_local constinit cuda_host_thread *cuda_host_self = nullptr;

namespace
{

enum state { READY, AT_WARP, AT_BLOCK, DONE };

constexpr size_t stack_bytes = 256 << 10; /* touched only as far as a kernel needs */
constexpr unsigned max_threads = 1024;
constexpr size_t shared_align = 1024;
constexpr unsigned shared_begin = 1024; /* the address of what a kernel has */
constexpr size_t piece = 16;            /* bytes of a copy */

struct copy {
    void *shared;
    const void *global; /* nullptr: zeros */
    bool committed;
    unsigned group;
};

struct worker : cuda_host_thread {
    fiber place{};
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    enum state state = DONE;
    unsigned exchanges = 0;
    std::vector<copy> copies;
    unsigned groups = 0; /* committed */
};

struct warp {
    alignas(16) char lanes[2][CUDA_HOST_WARP * CUDA_HOST_LANE_BYTES];
    int kind;
    int arrived;
};

/* One for every thread of the host that runs kernels. */
struct machine {
    const char *kernel = "";
    const std::function<void()> *body = nullptr;
    fiber scheduler{};
    std::vector<std::unique_ptr<worker>> threads;
    std::vector<warp> warps;
    worker *running = nullptr;
    unsigned n = 0; /* threads of the block */
    char *shared = nullptr;
    size_t shared_bytes = 0;
    std::vector<uint16_t> unfenced; /* of 16 bytes: 1 + the thread whose copy brought them */
    unsigned long launches = 0;
};
thread_local machine gpu;
cuda_host_schedule schedule = CUDA_HOST_FORWARD;

void yield(enum state state)
{
    worker *self = gpu.running;

    self->state = state;
    fiber_switch(&self->place, &gpu.scheduler);
}

void enter()
{
    (*gpu.body)();
    if (!gpu.running->copies.empty()) {
        cuda_host_broken("ends with copies that nobody waited for");
    }
    if (gpu.running->products_pending) {
        cuda_host_broken("ends with products that nobody waited for");
    }
    yield(DONE);
    abort();
}

void resume(worker *t)
{
    gpu.running = t;
    cuda_host_self = t;
    fiber_switch(&gpu.scheduler, &t->place);
    cuda_host_self = nullptr;
}

worker *lane_of(unsigned warp, unsigned i)
{
    unsigned lane = schedule == CUDA_HOST_REVERSED ? CUDA_HOST_WARP - 1 - i : i;

    return gpu.threads[warp * CUDA_HOST_WARP + lane].get();
}

/* Runs each lane that can run once.  False: none could. */
bool step_warp(unsigned warp)
{
    bool any = false;

    for (unsigned i = 0; i < CUDA_HOST_WARP; i++) {
        worker *t = lane_of(warp, i);

        if (t->state == READY) {
            resume(t);
            any = true;
        }
    }
    return any;
}

bool step_all()
{
    unsigned n = gpu.n / CUDA_HOST_WARP;
    bool any = false;

    for (unsigned i = 0; i < n; i++) {
        unsigned w = schedule == CUDA_HOST_REVERSED ? n - 1 - i : i;

        while (step_warp(w)) {
            any = true;
            if (schedule == CUDA_HOST_ROTATING) {
                break;
            }
        }
    }
    return any;
}

unsigned count(enum state state)
{
    unsigned n = 0;

    for (unsigned i = 0; i < gpu.n; i++) {
        n += gpu.threads[i]->state == state;
    }
    return n;
}

/* Warps of a warp group have issued the same products. */
void check_products()
{
    constexpr unsigned group = 4 * CUDA_HOST_WARP;

    for (unsigned i = 0; i < gpu.n; i++) {
        if (gpu.threads[i]->products != gpu.threads[i / group * group]->products ||
            (gpu.threads[i]->products && i / group * group + group > gpu.n)) {
            cuda_host_broken("warps of a group have issued different products");
        }
    }
}

void run_block(dim3 grid, dim3 dim, dim3 block)
{
    gpu.n = dim.x;
    if (dim.y != 1 || dim.z != 1 || dim.x == 0 || dim.x % CUDA_HOST_WARP || dim.x > max_threads) {
        cuda_host_broken("blocks are (%u, %u, %u)", dim.x, dim.y, dim.z);
    }
    while (gpu.threads.size() < gpu.n) {
        gpu.threads.push_back(std::make_unique<worker>());
    }
    gpu.warps.resize(gpu.n / CUDA_HOST_WARP);
    for (auto &w : gpu.warps) {
        w.kind = CUDA_HOST_NONE;
        w.arrived = 0;
    }
    if (gpu.shared_bytes > 0) {
        memset(gpu.shared, 0xff, gpu.shared_bytes); /* NaN, -1: nothing that could be meant */
    }
    gpu.unfenced.assign((gpu.shared_bytes + piece - 1) / piece, 0);
    for (unsigned i = 0; i < gpu.n; i++) {
        worker *t = gpu.threads[i].get();

        static_cast<cuda_host_thread &>(*t) = {dim3(i), block, dim, grid};
        t->state = READY;
        t->exchanges = t->groups = 0;
        fiber_prepare(&t->place, t->stack.get(), stack_bytes, enter);
    }
    while (count(DONE) < gpu.n) {
        if (step_all()) {
            continue;
        }
        if (count(AT_BLOCK) < gpu.n) {
            cuda_host_broken("%u threads wait for the block, %u for their warp, %u have ended",
                             count(AT_BLOCK), count(AT_WARP), count(DONE));
        }
        check_products();
        for (unsigned i = 0; i < gpu.n; i++) {
            gpu.threads[i]->state = READY;
        }
    }
    check_products();
}

} // namespace

void cuda_host_broken(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "cuda_host: %s: block (%u, %u, %u), thread %u: ", gpu.kernel,
            gpu.running ? gpu.running->block.x : 0, gpu.running ? gpu.running->block.y : 0,
            gpu.running ? gpu.running->block.z : 0, gpu.running ? gpu.running->thread.x : 0);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}

void cuda_host_run_grid(const char *kernel, dim3 grid, dim3 block, size_t shared,
                        const std::function<void()> &body)
{
    constexpr unsigned max_yz = 65535;

    gpu.kernel = kernel;
    gpu.body = &body;
    gpu.running = nullptr;
    gpu.launches++;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > max_yz || grid.z > max_yz) {
        cuda_host_broken("the grid is (%u, %u, %u)", grid.x, grid.y, grid.z);
    }
    gpu.shared = shared
                     ? static_cast<char *>(aligned_alloc(
                           shared_align, (shared + shared_align - 1) / shared_align * shared_align))
                     : nullptr;
    gpu.shared_bytes = shared;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                run_block(grid, block, dim3(x, y, z));
            }
        }
    }
    free(gpu.shared);
}

int cuda_host_lane()
{
    return static_cast<int>(cuda_host_self->thread.x % CUDA_HOST_WARP);
}

void *cuda_host_shared(size_t at_least)
{
    if (at_least > gpu.shared_bytes) {
        cuda_host_broken("uses %zu bytes of shared memory, was launched with %zu", at_least,
                         gpu.shared_bytes);
    }
    return gpu.shared;
}

const void *cuda_host_aligned(const void *address, size_t to)
{
    if (reinterpret_cast<uintptr_t>(address) % to) {
        cuda_host_broken("an access of %zu bytes at %p", to, address);
    }
    return address;
}

void cuda_host_block_barrier()
{
    yield(AT_BLOCK);
}

void *cuda_host_warp_exchange(const void *mine, size_t bytes, int kind, void (*complete)(char *))
{
    worker *self = gpu.running;
    unsigned number = self->thread.x / CUDA_HOST_WARP;
    warp *w = &gpu.warps[number];
    /* A lane is at most one exchange ahead of the others: two buffers suffice. */
    char *lanes = w->lanes[self->exchanges++ % 2];

    if (w->arrived > 0 && w->kind != kind) {
        cuda_host_broken("lanes of a warp are in different functions (%d, %d)", w->kind, kind);
    }
    if (bytes) {
        memcpy(lanes + self->thread.x % CUDA_HOST_WARP * CUDA_HOST_LANE_BYTES, mine, bytes);
    }
    w->kind = kind;
    if (++w->arrived < CUDA_HOST_WARP) {
        yield(AT_WARP);
        return lanes;
    }
    w->arrived = 0;
    if (complete) {
        complete(lanes);
    }
    for (unsigned i = 0; i < CUDA_HOST_WARP; i++) {
        worker *t = gpu.threads[number * CUDA_HOST_WARP + i].get();
        if (t->state == AT_WARP) {
            t->state = READY;
        }
    }
    return lanes;
}

void cuda_host_copy_async(void *shared, const void *global)
{
    cuda_host_aligned(shared, 16);
    if (global) {
        cuda_host_aligned(global, 16);
    }
    memset(shared, 0xff, 16);
    gpu.running->copies.push_back({shared, global, false, 0});
}

void cuda_host_copy_commit()
{
    worker *self = gpu.running;

    for (auto &c : self->copies) {
        if (!c.committed) {
            c.committed = true;
            c.group = self->groups;
        }
    }
    self->groups++;
}

void cuda_host_copy_wait(size_t left)
{
    worker *self = gpu.running;

    std::erase_if(self->copies, [&](const copy &c) {
        if (!c.committed || c.group + left >= self->groups) {
            return false;
        }
        if (c.global) {
            memcpy(c.shared, c.global, 16);
        } else {
            memset(c.shared, 0, 16);
        }
        size_t at = static_cast<size_t>(static_cast<char *>(c.shared) - gpu.shared) / piece;
        gpu.unfenced[at] = static_cast<uint16_t>(self->thread.x + 1);
        return true;
    });
}

void cuda_host_copy_fence()
{
    for (uint16_t &owner : gpu.unfenced) {
        owner = owner == gpu.running->thread.x + 1 ? 0 : owner;
    }
}

unsigned cuda_host_shared_address(const void *shared)
{
    return static_cast<unsigned>(static_cast<const char *>(shared) - gpu.shared) + shared_begin;
}

const void *cuda_host_shared_at(unsigned address, size_t bytes)
{
    size_t at = address - shared_begin;

    if (address < shared_begin || at + bytes > gpu.shared_bytes) {
        cuda_host_broken("a product reads shared memory at %u, of %zu", address, gpu.shared_bytes);
    }
    if (gpu.unfenced[at / piece]) {
        cuda_host_broken("a product reads what thread %u copied without a fence",
                         gpu.unfenced[at / piece] - 1u);
    }
    return gpu.shared + at;
}

extern "C" void cuda_host_set_schedule(cuda_host_schedule wanted)
{
    schedule = wanted;
}

extern "C" unsigned long cuda_host_launches(void)
{
    return gpu.launches;
}
