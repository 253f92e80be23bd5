/* test_graphs.cc - streams and graphs of the emulated GPU: what CUDA permits computes what it says,
 * in every order; what is left out, shows; what CUDA forbids is refused. */
#include "tests/cuda_host/cuda_host.h"

#include <cmath>
#include <gpu_platform.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
extern "C" {
#include <cmocka.h>
}

/* Two streams, an event for each, and memory of the GPU. */
struct bench {
    cudaStream_t first = nullptr, second = nullptr;
    cudaEvent_t forked = nullptr, joined = nullptr;
    float *values = nullptr;

    bench()
    {
        void *memory = nullptr;
        cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&forked, cudaEventDisableTiming);
        cudaEventCreateWithFlags(&joined, cudaEventDisableTiming);
        cudaMalloc(&memory, 64);
        values = static_cast<float *>(memory);
        for (int i = 0; i < 16; i++) {
            values[i] = 0.0f;
        }
    }
    bench(const bench &) = delete;
    bench &operator=(const bench &) = delete;
    ~bench()
    {
        cudaStreamSynchronize(first);
        cudaStreamSynchronize(second);
        cudaEventDestroy(forked);
        cudaEventDestroy(joined);
        cudaStreamDestroy(first);
        cudaStreamDestroy(second);
        cudaFree(values);
    }
    void begin() const
    {
        assert_int_equal(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal),
                         cudaSuccess);
    }
    cudaError_t end(cudaGraphExec_t *out) const
    {
        cudaGraph_t graph;
        cudaError_t error = cudaStreamEndCapture(first, &graph);

        if (error == cudaSuccess) {
            assert_int_equal(cudaGraphInstantiate(out, graph, 0), cudaSuccess);
            cudaGraphDestroy(graph);
        }
        return error;
    }
    void fork() const
    {
        cudaEventRecord(forked, first);
        cudaStreamWaitEvent(second, forked, 0);
    }
    void join() const
    {
        cudaEventRecord(joined, second);
        cudaStreamWaitEvent(first, joined, 0);
    }
};

/* to = from + 1; 32 threads say the same. */
static __global__ void add_kernel(float *to, const float *from)
{
    if (threadIdx.x == 0) {
        *to = *from + 1.0f;
    }
}

static void add(const bench &b, cudaStream_t stream, int to, int from)
{
    GPU_LAUNCH(add_kernel, 1, 32, 0, stream, b.values + to, b.values + from);
}

static void test_a_graph_runs_when_it_is_launched_on_what_is_there_then(void **)
{
    bench b;
    cudaGraphExec_t exec;

    b.begin();
    add(b, b.first, 1, 0);
    add(b, b.first, 2, 1);
    assert_int_equal(b.end(&exec), cudaSuccess);
    assert_true(b.values[1] == 0.0f);
    for (int launch = 0; launch < 4; launch++) {
        b.values[0] = (float)(10 * launch);
        cudaGraphLaunch(exec, b.first);
        cudaStreamSynchronize(b.first);
        assert_true(b.values[2] == (float)(10 * launch + 2));
    }
    cudaGraphExecDestroy(exec);
}

static void test_a_graph_may_be_destroyed_while_it_runs(void **)
{
    bench b;
    cudaGraphExec_t exec;

    cuda_host_set_streams(CUDA_HOST_LAZY);
    b.begin();
    add(b, b.first, 1, 0);
    assert_int_equal(b.end(&exec), cudaSuccess);
    cudaGraphLaunch(exec, b.first);
    cudaGraphExecDestroy(exec);
    cudaStreamSynchronize(b.first);
    assert_true(b.values[1] == 1.0f);
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

/* Fork, one step on each stream, and join; how many of the launches went wrong. */
static int wrong_launches(bool with_fork_at_second_step)
{
    bench b;
    cudaGraphExec_t exec;
    int wrong = 0;

    b.begin();
    b.fork(); /* the second stream belongs to the capture in any case */
    add(b, b.first, 1, 0);
    if (with_fork_at_second_step) {
        b.fork();
    }
    add(b, b.second, 2, 1);
    b.join();
    add(b, b.first, 3, 2);
    assert_int_equal(b.end(&exec), cudaSuccess);
    for (int launch = 1; launch <= 9; launch++) {
        b.values[0] = (float)(10 * launch);
        cudaGraphLaunch(exec, b.first);
        cudaStreamSynchronize(b.first);
        wrong += b.values[3] != (float)(10 * launch + 3);
    }
    cudaGraphExecDestroy(exec);
    return wrong;
}

static void test_a_missing_event_in_a_graph_shows(void **)
{
    assert_int_equal(wrong_launches(true), 0);
    assert_true(wrong_launches(false) >= 3);
}

static void test_a_stream_that_is_not_joined_is_refused(void **)
{
    bench b;
    cudaGraphExec_t exec;

    b.begin();
    b.fork();
    add(b, b.second, 1, 0);
    assert_int_equal(b.end(&exec), cudaErrorStreamCaptureUnjoined);
    add(b, b.second, 1, 0); /* it is captured no more */
    cudaStreamSynchronize(b.second);
    assert_true(b.values[1] == 1.0f);
}

static void test_an_event_of_before_the_capture_is_refused(void **)
{
    bench b;
    cudaGraphExec_t exec;

    add(b, b.second, 1, 0);
    cudaEventRecord(b.joined, b.second);
    b.begin();
    assert_int_equal(cudaStreamWaitEvent(b.first, b.joined, 0), cudaErrorStreamCaptureIsolation);
    assert_int_equal(b.end(&exec), cudaErrorStreamCaptureInvalidated);
}

static void check_forbidden(cudaError_t (*call)(const bench &), cudaError_t expected)
{
    bench b;
    cudaGraphExec_t exec;

    b.begin();
    assert_int_equal(call(b), expected);
    assert_int_equal(b.end(&exec), cudaErrorStreamCaptureInvalidated);
    b.begin(); /* the next capture is a good one */
    assert_int_equal(b.end(&exec), cudaSuccess);
    cudaGraphExecDestroy(exec);
}

static void *no_memory;

static void test_what_captures_do_not_allow_spoils_them(void **)
{
    const cudaError_t no = cudaErrorStreamCaptureUnsupported;

    check_forbidden([](const bench &) { return cudaMalloc(&no_memory, 8); }, no);
    check_forbidden([](const bench &b) { return cudaFree(b.values); }, no);
    check_forbidden([](const bench &) { return cudaMallocHost(&no_memory, 8); }, no);
    check_forbidden([](const bench &b) { return cudaStreamSynchronize(b.first); }, no);
    check_forbidden([](const bench &b) { return cudaEventQuery(b.joined); }, no);
    check_forbidden([](const bench &b) { return cudaEventSynchronize(b.joined); }, no);
}

static void test_memory_may_be_had_in_relaxed_mode(void **)
{
    bench b;
    cudaGraphExec_t exec;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    void *memory;

    b.begin();
    cudaThreadExchangeStreamCaptureMode(&mode);
    assert_int_equal(mode, cudaStreamCaptureModeThreadLocal);
    assert_int_equal(cudaMalloc(&memory, 8), cudaSuccess);
    cudaThreadExchangeStreamCaptureMode(&mode);
    assert_int_equal(b.end(&exec), cudaSuccess);
    cudaGraphExecDestroy(exec);
    cudaFree(memory);
}

static void test_an_event_of_a_capture_cannot_be_asked(void **)
{
    bench b;
    cudaGraphExec_t exec;

    b.begin();
    b.fork();
    b.join();
    assert_int_equal(b.end(&exec), cudaSuccess);
    assert_int_equal(cudaEventQuery(b.joined), cudaErrorCapturedEvent);
    assert_int_equal(cudaEventSynchronize(b.joined), cudaErrorCapturedEvent);
    cudaGraphExecDestroy(exec);
}

/* The second stream reads what the first writes next; without an event it may read too late. */
static float read_before_it_is_written(bool with_event)
{
    bench b;
    float value;

    b.values[0] = 1.0f;
    add(b, b.second, 2, 0);
    if (with_event) {
        b.join();
    }
    cudaMemcpyAsync(b.values, b.values + 1, sizeof(float), cudaMemcpyDeviceToDevice, b.first);
    cudaStreamSynchronize(b.second);
    value = b.values[2];
    return value;
}

static void test_what_is_written_too_early_is_nan(void **)
{
    cuda_host_set_streams(CUDA_HOST_LAZY);
    assert_true(read_before_it_is_written(true) == 2.0f);
    assert_true(std::isnan(read_before_it_is_written(false)));
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

/* A chain over both streams; without the event of its middle. */
static int wrong_chains(bool whole)
{
    int wrong = 0;

    for (int round = 0; round < 50; round++) {
        bench b;

        add(b, b.first, 1, 0);
        b.fork();
        add(b, b.second, 2, 1);
        if (whole) {
            b.join();
        }
        add(b, b.first, 3, 2);
        cudaStreamSynchronize(b.first);
        wrong += b.values[3] != 3.0f;
    }
    return wrong;
}

static void test_streams_that_run_ahead_keep_to_events(void **)
{
    cuda_host_set_streams(CUDA_HOST_SHUFFLED);
    assert_int_equal(wrong_chains(true), 0);
    int wrong = wrong_chains(false);
    assert_true(wrong > 10 && wrong < 50);
    cuda_host_set_streams(CUDA_HOST_EAGER);
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_graph_runs_when_it_is_launched_on_what_is_there_then),
        cmocka_unit_test(test_a_graph_may_be_destroyed_while_it_runs),
        cmocka_unit_test(test_a_missing_event_in_a_graph_shows),
        cmocka_unit_test(test_a_stream_that_is_not_joined_is_refused),
        cmocka_unit_test(test_an_event_of_before_the_capture_is_refused),
        cmocka_unit_test(test_what_captures_do_not_allow_spoils_them),
        cmocka_unit_test(test_memory_may_be_had_in_relaxed_mode),
        cmocka_unit_test(test_an_event_of_a_capture_cannot_be_asked),
        cmocka_unit_test(test_what_is_written_too_early_is_nan),
        cmocka_unit_test(test_streams_that_run_ahead_keep_to_events),
    };

    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
