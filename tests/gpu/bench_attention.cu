/*
 * bench_attention.cu - the prefill attentions of 16-bit types on a real GPU: right, and how fast.
 *
 * Each kernel is compared with the definition in double precision, run again for the same bits, and
 * run in parts, since a row may not depend on its chunk; then it is timed at the shapes of
 * LLaMA-3.1-8B.  Kernels that this GPU cannot run are left out.  The last line says PASSED or
 * FAILED, as does the exit status; whatever hangs is ended by an alarm.
 *
 * It needs little of winnow, so that it can be built where a GPU is, from the root of the sources:
 *
 *   nvcc -std=c++20 -O3 -fmad=false -I. -Ikernels/cuda/ptx \
 *       -gencode=arch=compute_90a,code=sm_90a -o bench_attention tests/gpu/bench_attention.cu \
 *       kernels/cuda/{attention_mma,attention_wgmma,check}.cu common/status.c \
 *       tests/definitions/attention.c
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gpu.h"
extern "C" {
#include "tests/definitions/attention.h"
}

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unistd.h>
#include <vector>

namespace
{

constexpr double PEAK_TFLOPS = 989.4; /* of an H100 SXM, dense, 16-bit */
constexpr unsigned STEP_SECONDS = 30; /* none takes longer, unless it hangs */

struct kernel {
    const char *name;
    status (*run)(struct device *dev, const struct attention *args);
};

struct shape {
    int first_row, rows, n_keys, q_heads, kv_heads, head_dim, sliding_window;
    int step; /* 0: rows first_row..; else every step-th row from first_row */
};

/* On the device; `q` and so on are freed with it. */
struct problem {
    struct attention args = {};
    std::vector<void *> memory;

    problem() = default;
    problem(const problem &) = delete;
    ~problem()
    {
        for (void *each : memory) {
            cudaFree(each);
        }
    }
};

int failures = 0;

void need(cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
        exit(1);
    }
}

void hung(int)
{
    static const char text[] = "FAILED: a kernel hangs\n";

    (void)!write(STDOUT_FILENO, text, sizeof(text) - 1);
    _exit(1);
}

/* Normal enough: the sum of four uniform numbers, of standard deviation 1. */
__host__ __device__ float random_value(uint64_t seed, uint64_t i)
{
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u + seed * 0xbf58476d1ce4e5b9u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    uint64_t sum = (x & 0xffff) + (x >> 16 & 0xffff) + (x >> 32 & 0xffff) + (x >> 48);
    return ((float)sum / 65536.0f - 2.0f) * 1.7320508f;
}

template <typename T> __global__ void fill_kernel(T *out, size_t n, float scale, uint64_t seed)
{
    for (size_t i = gpu_thread(); i < n; i += (size_t)gridDim.x * blockDim.x) {
        gpu_store(&out[i], random_value(seed, i) * scale);
    }
}

void *allocate(problem *p, size_t bytes)
{
    void *memory;

    need(cudaMalloc(&memory, bytes), "cudaMalloc");
    p->memory.push_back(memory);
    return memory;
}

template <typename T> T *random_act(problem *p, size_t n, float scale, uint64_t seed)
{
    T *out = static_cast<T *>(allocate(p, n * sizeof(T)));

    fill_kernel<<<1024, 256>>>(out, n, scale, seed);
    need(cudaGetLastError(), "fill_kernel");
    return out;
}

int32_t *upload(problem *p, const std::vector<int32_t> &values)
{
    size_t bytes = values.size() * sizeof(int32_t);
    void *out = allocate(p, bytes);

    need(cudaMemcpy(out, values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    return static_cast<int32_t *>(out);
}

/* Keys and values past n_keys are NaN: nobody may use them. */
template <typename T> void make(problem *p, const shape &s, uint64_t seed)
{
    constexpr size_t behind = 3;
    size_t d = (size_t)s.head_dim, stride = ((size_t)s.n_keys + behind) * d;
    size_t n_q = (size_t)s.rows * (size_t)s.q_heads * d, n_k = stride * (size_t)s.kv_heads;
    std::vector<int32_t> positions, q_index;

    for (int j = 0, position = 0; j < s.n_keys; j++) {
        positions.push_back(position);
        position += 1 + (s.step && j % 7 == 3 ? 5 : 0); /* dropped tokens leave gaps */
    }
    for (int r = 0; r < s.rows; r++) {
        q_index.push_back(s.first_row + r * s.step);
    }
    T *k = random_act<T>(p, n_k, 1.0f, seed + 1), *v = random_act<T>(p, n_k, 1.0f, seed + 2);
    for (int h = 0; h < s.kv_heads; h++) {
        size_t at = (size_t)h * stride + (size_t)s.n_keys * d;
        need(cudaMemset(k + at, 0xff, behind * d * sizeof(T)), "cudaMemset");
        need(cudaMemset(v + at, 0xff, behind * d * sizeof(T)), "cudaMemset");
    }
    p->args.q = random_act<T>(p, n_q, 2.0f, seed);
    p->args.k = k;
    p->args.v = v;
    p->args.kv_stride = stride;
    p->args.out = allocate(p, n_q * sizeof(T));
    p->args.lse =
        static_cast<float *>(allocate(p, (size_t)s.q_heads * (size_t)s.rows * sizeof(float)));
    p->args.positions = upload(p, positions);
    p->args.q_index = s.step ? upload(p, q_index) : nullptr;
    p->args.first_row = s.first_row;
    p->args.rows = s.rows;
    p->args.n_keys = s.n_keys;
    p->args.q_heads = s.q_heads;
    p->args.kv_heads = s.kv_heads;
    p->args.head_dim = s.head_dim;
    p->args.sliding_window = s.sliding_window;
}

template <typename T> std::vector<T> download(const void *from, size_t n)
{
    std::vector<T> out(n);

    need(cudaMemcpy(out.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost), "a kernel");
    return out;
}

template <typename T> float value_of(T x)
{
    if constexpr (std::is_same_v<T, bf16>) {
        uint32_t bits = (uint32_t)x.bits << 16;
        float out;

        memcpy(&out, &bits, sizeof(out));
        return out;
    } else {
        _Float16 out;

        memcpy(&out, &x, sizeof(out));
        return (float)out;
    }
}

template <typename T> std::vector<float> download_act(const void *from, size_t n)
{
    std::vector<float> out;

    for (T x : download<T>(from, n)) {
        out.push_back(value_of(x));
    }
    return out;
}

/* The largest difference, relative to max(|expected|, 1); infinite if one is not a number. */
double worst(const std::vector<float> &got, const std::vector<double> &expected)
{
    double most = 0.0;

    for (size_t i = 0; i < got.size(); i++) {
        double error = fabs((double)got[i] - expected[i]) / fmax(1.0, fabs(expected[i]));
        most = error <= most ? most : error == error ? error : INFINITY;
    }
    return most;
}

template <typename T>
void run(struct device *dev, const kernel &kernel, const struct attention &args)
{
    dev->dtype = std::is_same_v<T, bf16> ? DTYPE_BF16 : DTYPE_F16;
    alarm(STEP_SECONDS);
    if (kernel.run(dev, &args)) {
        printf("FAILED: %s: %s\n", kernel.name, status_text());
        exit(1);
    }
    need(cudaDeviceSynchronize(), kernel.name);
}

void fail(const kernel &kernel, const shape &s, const char *what, double a, double b)
{
    failures++;
    printf("%s: rows %d at %d, keys %d, heads %d/%d, dim %d, window %d, step %d: %s %g %g\n",
           kernel.name, s.rows, s.first_row, s.n_keys, s.q_heads, s.kv_heads, s.head_dim,
           s.sliding_window, s.step, what, a, b);
}

template <typename T>
void check_definition(struct device *dev, const kernel &kernel, const shape &s, double most[2])
{
    constexpr double limits[] = {std::is_same_v<T, bf16> ? 0.01 : 0.00125, 5e-5};
    problem p;

    make<T>(&p, s, 17 * (uint64_t)s.rows + (uint64_t)s.head_dim);
    size_t n = (size_t)s.rows * (size_t)s.q_heads * (size_t)s.head_dim;
    size_t n_lse = (size_t)s.q_heads * (size_t)s.rows;
    size_t n_kv = p.args.kv_stride * (size_t)s.kv_heads;
    auto q = download_act<T>(p.args.q, n), k = download_act<T>(p.args.k, n_kv);
    auto v = download_act<T>(p.args.v, n_kv);
    auto positions = download<int32_t>(p.args.positions, (size_t)s.n_keys);
    std::vector<int32_t> q_index;
    std::vector<double> out(n), lse(n_lse);
    struct attention defined = p.args;

    defined.q = q.data();
    defined.k = k.data();
    defined.v = v.data();
    defined.positions = positions.data();
    if (s.step) {
        q_index = download<int32_t>(p.args.q_index, (size_t)s.rows);
        defined.q_index = q_index.data();
    }
    define_attention(out.data(), lse.data(), &defined);
    run<T>(dev, kernel, p.args);
    double of_out = worst(download_act<T>(p.args.out, n), out);
    double of_lse = worst(download<float>(p.args.lse, n_lse), lse);
    if (!(of_out <= limits[0]) || !(of_lse <= limits[1])) {
        fail(kernel, s, "out and lse are off by", of_out, of_lse);
    }
    most[0] = fmax(most[0], of_out);
    most[1] = fmax(most[1], of_lse);
}

/* The same bits from `runs` runs, and from every part of `rows` rows. */
template <typename T> void check_bits(struct device *dev, const kernel &kernel, const shape &s)
{
    constexpr int runs = 20, parts[] = {1, 50, 128};
    problem p;

    make<T>(&p, s, 5);
    size_t row = (size_t)s.q_heads * (size_t)s.head_dim, n = (size_t)s.rows * row;
    run<T>(dev, kernel, p.args);
    auto first = download<T>(p.args.out, n);
    for (int i = 0; i < runs; i++) {
        run<T>(dev, kernel, p.args);
        auto again = download<T>(p.args.out, n);
        if (memcmp(again.data(), first.data(), n * sizeof(T)) != 0) {
            fail(kernel, s, "other bits in run", i, 0);
            return;
        }
    }
    for (int rows : parts) {
        for (int r = 0; r < s.rows; r += 3 * rows) {
            struct attention part = p.args;

            part.q = static_cast<const T *>(part.q) + (size_t)r * row;
            part.rows = min(rows, s.rows - r);
            part.first_row += r;
            part.lse = nullptr;
            if (r / rows % 2) {
                part.n_keys = part.first_row + part.rows;
            }
            run<T>(dev, kernel, part);
            auto some = download<T>(part.out, (size_t)part.rows * row);
            if (memcmp(some.data(), &first[(size_t)r * row], some.size() * sizeof(T)) != 0) {
                fail(kernel, s, "other bits in a chunk at, of", r, part.rows);
            }
        }
    }
}

const shape shapes[] = {
    {0, 1, 1, 1, 1, 64, 0, 0},         {0, 1, 1, 1, 1, 128, 0, 0},
    {0, 64, 64, 1, 1, 128, 0, 0},      {0, 128, 128, 1, 1, 64, 0, 0},
    {0, 129, 129, 4, 4, 64, 0, 0},     {0, 257, 257, 4, 4, 128, 0, 0},
    {100, 37, 137, 8, 2, 64, 0, 0},    {250, 70, 320, 6, 2, 128, 0, 0},
    {511, 1, 512, 8, 1, 64, 0, 0},     {511, 1, 512, 32, 8, 128, 0, 0},
    {600, 40, 640, 8, 1, 128, 0, 0},   {1000, 50, 1200, 8, 2, 64, 0, 0},
    {1000, 50, 1200, 8, 2, 128, 0, 0}, {0, 300, 300, 2, 1, 128, 100, 0},
    {600, 100, 900, 4, 2, 64, 333, 0}, {700, 50, 900, 8, 1, 128, 1, 0},
    {5, 40, 300, 4, 2, 64, 0, 7},      {3, 50, 460, 9, 3, 128, 150, 9},
    {2, 40, 1000, 8, 1, 128, 300, 21},
};

template <typename T> void check(struct device *dev, const kernel &kernel, const char *type)
{
    double most[2] = {};

    for (const shape &s : shapes) {
        check_definition<T>(dev, kernel, s, most);
    }
    for (int d : {64, 128}) {
        check_bits<T>(dev, kernel, {500, 700, 1200, 8, 2, d, 0, 0});
        check_bits<T>(dev, kernel, {500, 700, 1200, 8, 1, d, 290, 0});
    }
    printf("%-6s %-8s worst of out %.2e, of lse %.2e; %d failures so far\n", kernel.name, type,
           most[0], most[1], failures);
}

double tflop(const shape &s)
{
    double pairs = 0;

    for (int r = 0; r < s.rows; r++) {
        pairs += s.first_row + r + 1;
    }
    return 4e-12 * pairs * s.q_heads * s.head_dim;
}

/* Rows of a chunk at the end of a context; milliseconds of the fastest of three groups of runs. */
template <typename T> void measure(struct device *dev, const kernel &kernel, const shape &s)
{
    constexpr int groups = 3;
    constexpr double seconds = 0.03;
    cudaEvent_t begin, end;
    float best = INFINITY;
    problem p;

    make<T>(&p, s, 1);
    run<T>(dev, kernel, p.args);
    need(cudaEventCreate(&begin), "cudaEventCreate");
    need(cudaEventCreate(&end), "cudaEventCreate");
    int runs = 2 + (int)(seconds * 0.3 * PEAK_TFLOPS / tflop(s));
    for (int i = 0; i < groups; i++) {
        float ms;

        alarm(STEP_SECONDS);
        need(cudaEventRecord(begin, cuda_stream(dev)), "cudaEventRecord");
        for (int j = 0; j < runs; j++) {
            if (kernel.run(dev, &p.args)) {
                printf("FAILED: %s: %s\n", kernel.name, status_text());
                exit(1);
            }
        }
        need(cudaEventRecord(end, cuda_stream(dev)), "cudaEventRecord");
        need(cudaEventSynchronize(end), kernel.name);
        need(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
        best = fminf(best, ms / (float)runs);
    }
    double rate = tflop(s) / (best * 1e-3);
    printf("| %s | %s | %d/%d | %d | %d | %d | %.3f | %.0f | %.1f %% |\n", kernel.name,
           std::is_same_v<T, bf16> ? "bf16" : "f16", s.q_heads, s.kv_heads, s.head_dim, s.rows,
           s.n_keys, best, rate, 100 * rate / PEAK_TFLOPS);
    fflush(stdout);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
}

void measure_all(struct device *dev, const kernel &kernel)
{
    for (int d : {128, 64}) {
        for (int keys : {8192, 32768, 131072}) {
            measure<bf16>(dev, kernel, {keys - 512, 512, keys, 32, 8, d, 0, 0});
        }
    }
    measure<f16>(dev, kernel, {32768 - 512, 512, 32768, 32, 8, 128, 0, 0});
    measure<bf16>(dev, kernel, {0, 8192, 8192, 32, 8, 128, 0, 0});
}

} // namespace

int main()
{
    const kernel kernels[] = {{"mma", cuda_attention_mma}, {"wgmma", cuda_attention_wgmma}};
    struct cuda_device cuda = {};
    struct device *dev = &cuda.base;
    cudaDeviceProp prop;

    signal(SIGALRM, hung);
    alarm(STEP_SECONDS);
    need(cudaGetDeviceProperties(&prop, 0), "asking the GPU");
    printf("%s, %d processors, sm_%d%d\n", prop.name, prop.multiProcessorCount, prop.major,
           prop.minor);
    for (const kernel &kernel : kernels) {
        if (kernel.run == cuda_attention_wgmma && (prop.major != 9 || prop.minor != 0)) {
            continue;
        }
        check<bf16>(dev, kernel, "bfloat16");
        check<f16>(dev, kernel, "float16");
        printf("| kernel | type | heads | dim | rows | keys | ms | TFLOP/s | of %.0f |\n"
               "|---|---|---|---|---|---|---|---|---|\n",
               PEAK_TFLOPS);
        measure_all(dev, kernel);
    }
    printf(failures ? "FAILED: %d\n" : "PASSED\n", failures);
    return failures != 0;
}
