// Times launches back to back with device events, ours and cuBLAS's in turn, and takes medians.
#pragma once

#include <cublas_v2.h>

#include <algorithm>
#include <functional>
#include <vector>

#define CUBLAS_OK(call)                                                                    \
    do {                                                                                   \
        const cublasStatus_t status = (call);                                              \
        if (status != CUBLAS_STATUS_SUCCESS) {                                             \
            std::fprintf(stderr, "%s:%d: %s: %d\n", __FILE__, __LINE__, #call, (int)status); \
            std::exit(2);                                                                  \
        }                                                                                  \
    } while (0)

struct Bench {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    cublasHandle_t cublas;
    Workspace workspace;

    Bench() {
        CUDA_OK(cudaStreamCreate(&stream));
        CUDA_OK(cudaEventCreate(&begin));
        CUDA_OK(cudaEventCreate(&end));
        CUBLAS_OK(cublasCreate(&cublas));
        CUBLAS_OK(cublasSetStream(cublas, stream));
        // Split-k tiles of every entry fit; reserving inside a timed region would show.
        workspace.reserve(64ull << 20, 1 << 20);
    }

    // Microseconds a call.
    double time(const std::function<void(int)> &call, int calls) {
        CUDA_OK(cudaEventRecord(begin, stream));
        for (int i = 0; i < calls; ++i) {
            call(i);
        }
        CUDA_OK(cudaEventRecord(end, stream));
        CUDA_OK(cudaEventSynchronize(end));
        float ms;
        CUDA_OK(cudaEventElapsedTime(&ms, begin, end));
        return ms * 1e3 / calls;
    }

    // The same calls as one graph: what the device needs when the host's launch rate is no limit.
    double time_graph(const std::function<void(int)> &call, int calls) {
        cudaGraph_t graph;
        cudaGraphExec_t replay;
        CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        for (int i = 0; i < calls; ++i) {
            call(i);
        }
        CUDA_OK(cudaStreamEndCapture(stream, &graph));
        CUDA_OK(cudaGraphInstantiate(&replay, graph, 0));
        CUDA_OK(cudaGraphLaunch(replay, stream));
        std::vector<double> times;
        for (int i = 0; i < 5; ++i) {
            times.push_back(time([&](int) { CUDA_OK(cudaGraphLaunch(replay, stream)); }, 1) / calls);
        }
        CUDA_OK(cudaGraphExecDestroy(replay));
        CUDA_OK(cudaGraphDestroy(graph));
        std::sort(times.begin(), times.end());
        return times[2];
    }
};

static __global__ void fill_plain(Matrix x, int which) {
    for (uint64_t at = blockIdx.x * 256ull + threadIdx.x; at < x.elements; at += gridDim.x * 256ull) {
        x.buffer[at] = __half_as_ushort(__float2half_rn(element(Data::normal, 9, which, 0, 0, at)));
    }
}

// Operands in as many copies as exceed the L2 cache where `cold`, else one.
struct Problem {
    uint64_t m, n, k;
    bool f16;
    int copies;
    uint16_t *a, *b;
    void *c;

    Problem(uint64_t m, uint64_t n, uint64_t k, bool f16, bool cold) : m(m), n(n), k(k), f16(f16) {
        copies = cold ? static_cast<int>(std::max<uint64_t>(1, (256ull << 20) / (2 * (m * k + k * n)))) : 1;
        CUDA_OK(cudaMalloc(&a, copies * m * k * 2 + 16));
        CUDA_OK(cudaMalloc(&b, copies * k * n * 2 + 16));
        CUDA_OK(cudaMalloc(&c, m * n * 4));
        const Matrix whole_a = {a, copies * m * k, 0, copies * m, k, k, 1, 0};
        const Matrix whole_b = {b, copies * k * n, 0, copies * k, n, n, 1, 0};
        fill_plain<<<2048, 256>>>(whole_a, 1);
        fill_plain<<<2048, 256>>>(whole_b, 2);
        CUDA_OK(cudaDeviceSynchronize());
    }
    ~Problem() {
        cudaFree(a);
        cudaFree(b);
        cudaFree(c);
    }
    Problem(const Problem &) = delete;

    VyreGemmArguments arguments(int i) const {
        VyreGemmArguments args = {};
        args.a = a + (i % copies) * m * k;
        args.b = b + (i % copies) * k * n;
        args.c = c;
        args.m = m, args.n = n, args.k = k;
        args.lda = k, args.ldb = n, args.ldc = n;
        args.batch = 1;
        args.alpha = 1.0f;
        args.output = f16 ? VYRE_GEMM_OUTPUT_F16 : VYRE_GEMM_OUTPUT_F32;
        return args;
    }

    void ours(Bench &bench, const VyreGemmChoice &choice, int i) const {
        VyreGemmArguments args = arguments(i);
        launch(args, choice, is_vector(args), bench.workspace, bench.stream);
    }

    void opponent(Bench &bench, int i) const {
        const VyreGemmArguments args = arguments(i);
        const float one = 1.0f, zero = 0.0f;
        // Row-major C = A B is column-major C' = B' A'.
        CUBLAS_OK(cublasGemmEx(bench.cublas, CUBLAS_OP_N, CUBLAS_OP_N, (int)n, (int)m, (int)k, &one, args.b, CUDA_R_16F,
                               (int)n, args.a, CUDA_R_16F, (int)k, &zero, c, f16 ? CUDA_R_16F : CUDA_R_32F, (int)n,
                               CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }
};

static int calls_for(double microseconds) {
    return static_cast<int>(std::min(2000.0, std::max(4.0, 8000.0 / microseconds)));
}

static double middle(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

static void compare(Bench &bench, uint64_t m, uint64_t n, uint64_t k, bool f16, bool cold, int units) {
    const Problem problem(m, n, k, f16, cold);
    const VyreGemmChoice choice = vyre_gemm_choose(m, n, k, 1, units, kLoop);
    const auto ours = [&](int i) { problem.ours(bench, choice, i); };
    const auto opponent = [&](int i) { problem.opponent(bench, i); };
    const int calls = calls_for(bench.time(opponent, 20));
    bench.time(ours, 20);
    std::vector<double> mine, theirs;
    for (int round = 0; round < 5; ++round) {
        mine.push_back(bench.time(ours, calls));
        theirs.push_back(bench.time(opponent, calls));
    }
    CUDA_OK(cudaGetLastError());
    const double t = middle(mine), u = middle(theirs);
    double graph = 0;
    if (u < 100) {
        graph = bench.time_graph(opponent, 100) / bench.time_graph(ours, 100);
    }
    std::printf("%5llu %5llu %5llu %s %-8s split %2u  %9.2f us %6.1f TF/s %6.0f GB/s | cuBLAS %9.2f us %6.1f TF/s | "
                "%.2f graph %.2f\n",
                (unsigned long long)m, (unsigned long long)n, (unsigned long long)k, f16 ? "f16" : "f32",
                VYRE_GEMM_ENTRIES[choice.entry].name + 14, choice.split_k, t, 2e-6 * m * n * k / t,
                2e-3 * (m * k + k * n) / t, u, 2e-6 * m * n * k / u, u / t, graph);
    std::fflush(stdout);
}

static void copy_rate(Bench &bench) {
    void *from, *to;
    const size_t bytes = 1ull << 30;
    CUDA_OK(cudaMalloc(&from, bytes));
    CUDA_OK(cudaMalloc(&to, bytes));
    const auto copy = [&](int) { CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, bench.stream)); };
    bench.time(copy, 5);
    std::printf("copy: %.0f GB/s read and written\n", 2e-3 * bytes / bench.time(copy, 20));
    CUDA_OK(cudaFree(from));
    CUDA_OK(cudaFree(to));
}

static int bench(int units) {
    Bench bench;
    copy_rate(bench);
    for (bool f16 : {true, false}) {
        for (uint64_t size : {64, 128, 256, 512, 1024, 2048, 4096, 8192}) {
            compare(bench, size, size, size, f16, false, units);
        }
    }
    std::printf("other shapes\n");
    const uint64_t shapes[][3] = {{1000, 1000, 1000}, {4095, 4095, 4095}, {4097, 1000, 4096}, {128, 4096, 4096},
                                  {32, 4096, 4096},   {64, 64, 65536},    {4096, 64, 4096},   {4096, 4096, 64}};
    for (const auto &shape : shapes) {
        compare(bench, shape[0], shape[1], shape[2], true, false, units);
    }
    std::printf("decode shapes, B from memory\n");
    for (uint64_t size : {4096, 8192, 16384}) {
        for (uint64_t m : {1, 2, 4, 8}) {
            compare(bench, m, size, size, true, true, units);
        }
    }
    return 0;
}

static int tune() {
    Bench bench;
    for (uint64_t size : {64, 128, 256, 512, 1024, 2048, 4096, 8192}) {
        const Problem problem(size, size, size, true, false);
        const auto opponent = [&](int i) { problem.opponent(bench, i); };
        const int calls = calls_for(bench.time(opponent, 20));
        const double theirs = bench.time(opponent, calls);
        const double graph = theirs < 100 ? bench.time_graph(opponent, 100) : 0;
        std::printf("%llu: cuBLAS %.2f us, graph %.2f\n", (unsigned long long)size, theirs, graph);
        for (uint32_t entry = VYRE_GEMM_128X256; entry <= VYRE_GEMM_32X64; ++entry) {
            for (uint32_t split : {1u, 2u, 4u, 8u}) {
                if ((size > 1024 && split != 1) || split * 64 > size) {
                    continue;
                }
                VyreGemmChoice choice = {entry, split, 8, 0};
                choice.grid = vyre_gemm_grid(&choice, size, size, 1);
                const auto ours = [&](int i) { problem.ours(bench, choice, i); };
                bench.time(ours, 5);
                const double mine = bench.time(ours, calls);
                std::printf("  %-8s split %u: %9.2f us %.2f", VYRE_GEMM_ENTRIES[entry].name + 14, split, mine, theirs / mine);
                if (graph > 0) {
                    const double replayed = bench.time_graph(ours, 100);
                    std::printf(" graph %7.2f %.2f", replayed, graph / replayed);
                }
                std::printf("\n");
            }
        }
    }
    CUDA_OK(cudaGetLastError());
    return 0;
}
