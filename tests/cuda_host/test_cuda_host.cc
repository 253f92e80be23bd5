/* test_cuda_host.cc - the emulated GPU computes what a GPU does, and finds what kernels do wrong.
 */
#include "tests/cuda_host/cuda_host.h"

#include <csignal>
#include <cstdio>
#include <gpu_wgmma.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
extern "C" {
#include <cmocka.h>
}

/* To a thread of another warp. */
static constexpr unsigned FAR = 48;

static cudaStream_t new_stream()
{
    cudaStream_t stream;

    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    return stream;
}

/* The kernel ends the program, as a child shows. */
static void check_ends(void (*launch)(cudaStream_t stream), int by = SIGABRT)
{
    int how = 0;
    pid_t child = fork();

    if (child == 0) {
        const struct rlimit none = {0, 0};

        setrlimit(RLIMIT_CORE, &none);
        signal(SIGSEGV, SIG_DFL); /* the test runner's is not for children */
        if (!freopen("/dev/null", "w", stderr)) {
            _exit(1);
        }
        launch(new_stream());
        _exit(0);
    }
    assert_true(child > 0 && waitpid(child, &how, 0) == child);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == by);
}

/* Each thread reads its neighbour's element; without the barrier some read too early. */
static __global__ void neighbour_kernel(float *out, bool barrier)
{
    float *shared = gpu_shared<float>();

    shared[threadIdx.x] = (float)threadIdx.x;
    if (barrier) {
        __syncthreads();
    }
    out[threadIdx.x] = shared[(threadIdx.x + FAR) % blockDim.x];
}

static int wrong_neighbours(enum cuda_host_schedule schedule, bool barrier)
{
    float out[128];
    cudaStream_t stream = new_stream();
    int wrong = 0;

    cuda_host_set_schedule(schedule);
    GPU_LAUNCH(neighbour_kernel, 1, 128, sizeof(out), stream, out, barrier);
    for (int i = 0; i < 128; i++) {
        wrong += !(out[i] == (float)((i + (int)FAR) % 128));
    }
    cuda_host_set_schedule(CUDA_HOST_FORWARD);
    cudaStreamDestroy(stream);
    return wrong;
}

static void test_a_missing_barrier_shows(void **)
{
    for (auto schedule : {CUDA_HOST_FORWARD, CUDA_HOST_REVERSED, CUDA_HOST_ROTATING}) {
        assert_int_equal(wrong_neighbours(schedule, true), 0);
        assert_true(wrong_neighbours(schedule, false) > 0);
    }
}

static __global__ void divergent_kernel(bool in_shuffle)
{
    if (threadIdx.x < 16) {
        return;
    }
    if (in_shuffle) {
        __shfl_xor_sync(~0u, 1, 1);
    } else {
        __syncthreads();
    }
}

static void test_threads_that_do_not_come_are_missed(void **)
{
    check_ends([](cudaStream_t stream) { GPU_LAUNCH(divergent_kernel, 1, 32, 0, stream, true); });
    check_ends([](cudaStream_t stream) { GPU_LAUNCH(divergent_kernel, 1, 32, 0, stream, false); });
}

static __global__ void access_kernel(const char *from)
{
    gpu_load16(from + 4);
}

static __global__ void shared_kernel()
{
    gpu_shared<double[2]>();
}

static void test_bad_accesses_and_launches_end_the_program(void **)
{
    check_ends([](cudaStream_t stream) {
        alignas(16) static const char bytes[32] = {};
        GPU_LAUNCH(access_kernel, 1, 32, 0, stream, bytes);
    });
    check_ends([](cudaStream_t stream) { GPU_LAUNCH(shared_kernel, 1, 32, 8, stream); });
    check_ends([](cudaStream_t stream) { GPU_LAUNCH(shared_kernel, 1, 33, 16, stream); });
    check_ends([](cudaStream_t stream) {
        int a = 0, b = 0;
        cudaMemcpyAsync(&a, &b, sizeof(a), cudaMemcpyHostToDevice, stream);
    });
}

static float element(int i)
{
    return (float)((i * 37 + 11) % 64 - 32); /* exact in bf16, and products in float */
}

static unsigned pair(int i, bool f16)
{
    return f16 ? gpu_pack_f16(element(i), element(i + 1))
               : gpu_pack_bf16(element(i), element(i + 1));
}

/* a[r][k] = element(16 r + k), b[k][n] = element(16 n + k + 5). */
static __global__ void mma_kernel(float *out, bool f16)
{
    int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
    const unsigned a[4] = {pair(16 * g + 2 * t, f16), pair(16 * (g + 8) + 2 * t, f16),
                           pair(16 * g + 2 * t + 8, f16), pair(16 * (g + 8) + 2 * t + 8, f16)};
    const unsigned b[2] = {pair(16 * g + 2 * t + 5, f16), pair(16 * g + 2 * t + 8 + 5, f16)};
    float d[4] = {1.0f, 1.0f, 1.0f, 1.0f};

    if (f16) {
        gpu_mma_f16(d, a, b);
    } else {
        gpu_mma_bf16(d, a, b);
    }
    for (int i = 0; i < 4; i++) {
        out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
    }
}

static void test_matrix_products_have_the_layout_of_the_gpu(void **)
{
    cudaStream_t stream = new_stream();
    float out[16 * 8];

    for (bool f16 : {false, true}) {
        GPU_LAUNCH(mma_kernel, 1, 32, 0, stream, out, f16);
        for (int r = 0; r < 16; r++) {
            for (int n = 0; n < 8; n++) {
                float expected = 1.0f;

                for (int k = 0; k < 16; k++) {
                    expected += element(16 * r + k) * element(16 * n + k + 5);
                }
                assert_true(out[r * 8 + n] == expected);
            }
        }
    }
    cudaStreamDestroy(stream);
}

/* Of a warp group: 64 rows, STEP of k, 128 columns in two slabs of 64. */
static constexpr int SLAB = 64, STEP = 16, COLUMNS = 128;
static constexpr size_t PRODUCT_BYTES = sizeof(uint16_t) * SLAB * (SLAB + 2 * COLUMNS);

/* Where element (row, c) of a slab lies, with the 128-byte swizzle. */
static int in_slab(int row, int c)
{
    return row * SLAB + (c / 8 ^ row % 8) * 8 + c % 8;
}

/* a: (64, 16); b: (128, 16); v: (16, 128) in two slabs; each begins at a multiple of 1024 bytes. */
struct product_tiles {
    uint16_t *a, *b, *v;
};

static product_tiles fill_tiles(bool f16)
{
    auto *shared = gpu_shared<uint16_t>();
    product_tiles tiles = {shared, shared + SLAB * SLAB, shared + SLAB * (SLAB + COLUMNS)};

    for (int i = (int)threadIdx.x; i < COLUMNS * STEP; i += (int)blockDim.x) {
        int row = i / STEP, k = i % STEP;

        if (row < 64) {
            tiles.a[in_slab(row, k)] = (uint16_t)pair(STEP * row + k, f16);
        }
        tiles.b[in_slab(row, k)] = (uint16_t)pair(STEP * row + k + 5, f16);
        tiles.v[row / SLAB * COLUMNS * SLAB / 2 + in_slab(k, row % SLAB)] =
            (uint16_t)pair(STEP * row + k + 5, f16);
    }
    __syncthreads();
    return tiles;
}

/* out (64, N * 2) = 1 + a b transposed: a by descriptor, or the same from registers. */
template <typename T, int N> static __global__ void wgmma_kernel(float *out, bool registers)
{
    constexpr bool f16 = !std::is_same_v<T, bf16>;
    int g = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const unsigned a[4] = {pair(16 * g + 2 * t, f16), pair(16 * (g + 8) + 2 * t, f16),
                           pair(16 * g + 2 * t + 8, f16), pair(16 * (g + 8) + 2 * t + 8, f16)};
    product_tiles tiles = fill_tiles(f16);
    float d[N];

    for (float &each : d) {
        each = 1.0f;
    }
    gpu_wgmma_fence();
    if constexpr (N == 64) {
        if (!registers) {
            gpu_wgmma<T>(d, gpu_wgmma_operand(tiles.a, 0), gpu_wgmma_operand(tiles.b, 0), true);
        }
    }
    if (registers) {
        gpu_wgmma_add<T>(d, a, gpu_wgmma_operand(tiles.v, COLUMNS * SLAB));
    }
    gpu_wgmma_commit();
    bool hidden = std::isnan(d[0]) && std::isnan(d[N - 1]);
    gpu_wgmma_wait<0>();
    for (int i = 0; i < N; i++) {
        out[(g + i % 4 / 2 * 8) * 2 * N + i / 4 * 8 + 2 * t + i % 2] = hidden ? d[i] : -1.0f;
    }
}

template <typename T, int N> static void check_wgmma(bool registers)
{
    float out[64 * 2 * N];
    cudaStream_t stream = new_stream();

    GPU_LAUNCH((wgmma_kernel<T, N>), 1, 128, PRODUCT_BYTES, stream, out, registers);
    for (int r = 0; r < 64; r++) {
        for (int n = 0; n < 2 * N; n++) {
            float expected = 1.0f;

            for (int k = 0; k < STEP; k++) {
                expected += element(STEP * r + k) * element(STEP * n + k + 5);
            }
            assert_true(out[r * 2 * N + n] == expected);
        }
    }
    cudaStreamDestroy(stream);
}

static void test_products_of_a_warp_group_have_the_layout_of_the_gpu(void **)
{
    check_wgmma<bf16, 64>(false);
    check_wgmma<f16, 64>(false);
    check_wgmma<bf16, 64>(true);
    check_wgmma<f16, 64>(true);
    check_wgmma<bf16, 32>(true);
    check_wgmma<f16, 32>(true);
}

enum product_fault {
    NO_FAULT,
    NO_FENCE,
    NO_WAIT,
    REGISTERS_CHANGE,
    SHARED_CHANGES,
    COPY_WITHOUT_FENCE,
    OPERAND_MISALIGNED,
    OPERAND_LEAVES_ITS_SLAB,
    OPERAND_LEAVES_SHARED_MEMORY,
    LANES_DIFFER,
    WARPS_DIFFER,
    HALF_A_GROUP,
    PRODUCT_FAULTS,
};

static __global__ void faulty_product_kernel(int fault, const void *memory)
{
    product_tiles tiles = fill_tiles(false);
    unsigned a[4] = {};
    float d[64] = {}, e[64] = {};
    int off = fault == OPERAND_MISALIGNED        ? 1
              : fault == OPERAND_LEAVES_ITS_SLAB ? SLAB - 8
              : fault == LANES_DIFFER            ? (int)threadIdx.x % 2 * 8
              : fault == WARPS_DIFFER            ? (int)threadIdx.x / 32 % 2 * 8
                                                 : 0;

    if (threadIdx.x == 0) {
        gpu_copy16_async(tiles.b, memory, true);
        gpu_copy_commit();
        gpu_copy_wait<0>();
        if (fault != COPY_WITHOUT_FENCE) {
            gpu_copy_fence();
        }
    }
    __syncthreads();
    if (fault != NO_FENCE) {
        gpu_wgmma_fence();
    }
    gpu_wgmma<bf16>(d, gpu_wgmma_operand(tiles.a + off, 0), gpu_wgmma_operand(tiles.b, 0), false);
    gpu_wgmma_add<bf16>(e, a,
                        gpu_wgmma_operand(tiles.v, (fault == OPERAND_LEAVES_SHARED_MEMORY ? 5 : 1) *
                                                       COLUMNS * SLAB));
    gpu_wgmma_commit();
    a[3] = fault == REGISTERS_CHANGE;
    if (fault == SHARED_CHANGES && threadIdx.x == 0) {
        tiles.a[SLAB]++;
    }
    if (fault != NO_WAIT) {
        gpu_wgmma_wait<0>();
    }
}

static void check_product(cudaStream_t stream, int fault)
{
    alignas(16) static const char memory[16] = {};

    GPU_LAUNCH(faulty_product_kernel, 1, fault == HALF_A_GROUP ? 64 : 128, PRODUCT_BYTES, stream,
               fault, memory);
}

template <int fault> static void check_product_faults()
{
    if constexpr (fault < PRODUCT_FAULTS) {
        check_ends([](cudaStream_t stream) { check_product(stream, fault); });
        check_product_faults<fault + 1>();
    }
}

static void test_a_wrong_product_of_a_warp_group_ends_the_program(void **)
{
    cudaStream_t stream = new_stream();

    check_product(stream, NO_FAULT);
    cudaStreamDestroy(stream);
    check_product_faults<NO_FENCE>();
}

static void test_every_float16_survives_the_way_to_float_and_back(void **)
{
    for (unsigned h = 0; h < 0x10000; h++) {
        float value = gpu_f16_low(h | 0x12340000u);

        assert_true(value != value ? (h & 0x7fff) > 0x7c00
                                   : gpu_pack_f16(value, value) == h * 0x10001u);
    }
    assert_true(gpu_pack_f16(1.0f + 0x1p-11f, 1.0f + 0x1.8p-10f) == 0x3c023c00u);
    assert_true(gpu_pack_f16(65519.0f, -65520.0f) == 0xfc007bffu);
    assert_true(gpu_pack_f16(0x1p-25f, 0x1.8p-24f) == 0x00020000u);
}

/* Four 8 x 8 matrices one below the other; element (row, c) is 8 row + c. */
static __global__ void ldmatrix_kernel(unsigned *out, bool transposed)
{
    auto *rows = gpu_shared<uint16_t>();
    unsigned r[4];

    for (int c = 0; c < 8; c++) {
        rows[threadIdx.x * 8 + (unsigned)c] = (uint16_t)(threadIdx.x * 8 + (unsigned)c);
    }
    __syncwarp();
    if (transposed) {
        gpu_ldmatrix_transposed(r, rows + threadIdx.x * 8);
    } else {
        gpu_ldmatrix(r, rows + threadIdx.x * 8);
    }
    for (unsigned i = 0; i < 4; i++) {
        out[threadIdx.x * 4 + i] = r[i];
    }
}

static void test_matrix_loads_have_the_layout_of_the_gpu(void **)
{
    cudaStream_t stream = new_stream();
    unsigned out[32 * 4];

    for (unsigned transposed = 0; transposed < 2; transposed++) {
        GPU_LAUNCH(ldmatrix_kernel, 1, 32, 512, stream, out, transposed != 0);
        for (unsigned lane = 0; lane < 32; lane++) {
            for (unsigned i = 0; i < 4; i++) {
                unsigned g = lane / 4, t = lane % 4 * 2;
                unsigned low = transposed ? t * 8 + g : g * 8 + t;
                unsigned high = transposed ? (t + 1) * 8 + g : g * 8 + t + 1;

                assert_int_equal(out[lane * 4 + i], (i * 64 + low) | (i * 64 + high) << 16);
            }
        }
    }
    cudaStreamDestroy(stream);
}

static __global__ void copy_kernel(float *out, const float *in, bool wait)
{
    float *shared = gpu_shared<float>();

    gpu_copy16_async(shared + threadIdx.x * 4, in, threadIdx.x != 1);
    gpu_copy_commit();
    if (wait) {
        gpu_copy_wait<0>();
    }
    out[threadIdx.x] = shared[threadIdx.x * 4 + 1];
    gpu_copy_wait<0>();
}

static void test_copies_arrive_when_they_were_waited_for(void **)
{
    alignas(16) const float in[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    cudaStream_t stream = new_stream();
    float out[32];

    GPU_LAUNCH(copy_kernel, 1, 32, 512, stream, out, in, true);
    assert_true(out[0] == 2.0f && out[1] == 0.0f && out[31] == 2.0f);
    GPU_LAUNCH(copy_kernel, 1, 32, 512, stream, out, in, false);
    assert_true(std::isnan(out[0]));
    cudaStreamDestroy(stream);
}

static __global__ void add_kernel(int *to, const int *from)
{
    if (threadIdx.x == 0) {
        *to = *from + 1;
    }
}

static int on_two_streams(bool with_event)
{
    cudaStream_t first = new_stream(), second = new_stream();
    int values[3] = {1, 0, 0};
    cudaEvent_t event;

    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    GPU_LAUNCH(add_kernel, 1, 32, 0, first, &values[1], &values[0]);
    if (with_event) {
        cudaEventRecord(event, first);
        cudaStreamWaitEvent(second, event, 0);
    }
    GPU_LAUNCH(add_kernel, 1, 32, 0, second, &values[2], &values[1]);
    cudaStreamSynchronize(second);
    int result = values[2];
    cudaStreamSynchronize(first);
    cudaEventDestroy(event);
    cudaStreamDestroy(first);
    cudaStreamDestroy(second);
    return result;
}

static void test_a_missing_event_shows_on_lazy_streams(void **)
{
    cuda_host_set_streams(CUDA_HOST_LAZY);
    assert_int_equal(on_two_streams(true), 3);
    assert_int_equal(on_two_streams(false), 1);
    cuda_host_set_streams(CUDA_HOST_EAGER);
    assert_int_equal(on_two_streams(false), 3);
}

static __global__ void fill_kernel(int *to, int value)
{
    to[threadIdx.x] = value;
}

/* In a child, since all later memory would be kept apart. */
static void check_apart(bool touch)
{
    cudaStream_t stream = new_stream();
    void *pinned, *memory;
    int landed[32];

    cuda_host_set_apart();
    cudaMallocHost(&pinned, sizeof(landed));
    cudaMalloc(&memory, sizeof(landed));
    GPU_LAUNCH(fill_kernel, 1, 32, 0, stream, static_cast<int *>(memory), 7);
    cudaMemcpyAsync(pinned, memory, sizeof(landed), cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    memcpy(landed, touch ? memory : pinned, sizeof(landed));
    if (landed[31] == 7) {
        abort();
    }
}

static void test_memory_apart_is_touched_by_the_gpu_alone(void **)
{
    check_ends([](cudaStream_t) { check_apart(false); });
    check_ends([](cudaStream_t) { check_apart(true); }, SIGSEGV);
}

static void test_a_download_is_nan_until_it_was_waited_for(void **)
{
    cudaStream_t stream = new_stream();
    float landed = 1.0f, value = 2.0f;
    void *memory;

    assert_int_equal(cudaMalloc(&memory, sizeof(value)), cudaSuccess);
    cuda_host_set_streams(CUDA_HOST_LAZY);
    cudaMemcpyAsync(memory, &value, sizeof(value), cudaMemcpyHostToDevice, stream);
    cudaMemcpyAsync(&landed, memory, sizeof(landed), cudaMemcpyDeviceToHost, stream);
    assert_true(std::isnan(landed));
    cudaStreamSynchronize(stream);
    assert_true(landed == 2.0f);
    cuda_host_set_streams(CUDA_HOST_EAGER);
    cudaFree(memory);
    cudaStreamDestroy(stream);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_missing_barrier_shows),
        cmocka_unit_test(test_threads_that_do_not_come_are_missed),
        cmocka_unit_test(test_bad_accesses_and_launches_end_the_program),
        cmocka_unit_test(test_matrix_products_have_the_layout_of_the_gpu),
        cmocka_unit_test(test_products_of_a_warp_group_have_the_layout_of_the_gpu),
        cmocka_unit_test(test_a_wrong_product_of_a_warp_group_ends_the_program),
        cmocka_unit_test(test_every_float16_survives_the_way_to_float_and_back),
        cmocka_unit_test(test_matrix_loads_have_the_layout_of_the_gpu),
        cmocka_unit_test(test_copies_arrive_when_they_were_waited_for),
        cmocka_unit_test(test_a_missing_event_shows_on_lazy_streams),
        cmocka_unit_test(test_memory_apart_is_touched_by_the_gpu_alone),
        cmocka_unit_test(test_a_download_is_nan_until_it_was_waited_for),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
