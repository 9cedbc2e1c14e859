// Launches the kernels as a host of the project does: arguments, choice, workspace.
#pragma once

#include "../../gemm/choice.h"

struct Workspace {
    float *partials = nullptr;
    uint32_t *counters = nullptr;
    uint64_t floats = 0, tiles = 0;

    void reserve(uint64_t want_floats, uint64_t want_tiles) {
        if (want_floats > floats) {
            CUDA_OK(cudaFree(partials));
            CUDA_OK(cudaMalloc(&partials, want_floats * 4));
            floats = want_floats;
        }
        if (want_tiles > tiles) {
            CUDA_OK(cudaFree(counters));
            CUDA_OK(cudaMalloc(&counters, want_tiles * 4));
            CUDA_OK(cudaMemset(counters, 0, want_tiles * 4));
            tiles = want_tiles;
        }
    }
};

using Kernel = void (*)(VyreGemmArguments);

struct LoadedEntry {
    Kernel vector, element;
};

static const LoadedEntry LOADED[VYRE_GEMM_ENTRY_COUNT] = {
    {vyre_gemm_f16_128x256, vyre_gemm_f16_128x256_element}, {vyre_gemm_f16_128x128, vyre_gemm_f16_128x128_element},
    {vyre_gemm_f16_64x128, vyre_gemm_f16_64x128_element},
    {vyre_gemm_f16_64x64, vyre_gemm_f16_64x64_element},     {vyre_gemm_f16_32x64, vyre_gemm_f16_32x64_element},
    {vyre_gemm_f16_rows1, vyre_gemm_f16_rows1_element},     {vyre_gemm_f16_rows4, vyre_gemm_f16_rows4_element},
    {vyre_gemm_f16_rows8, vyre_gemm_f16_rows8_element},
};

#if defined(VYRE_GEMM_FORCE_PLAIN) || defined(VYRE_GEMM_EMULATE)
constexpr int kLoop = VYRE_GEMM_LOOP_STAGED_CUDA;
#else
constexpr int kLoop = VYRE_GEMM_LOOP_ASYNC;
#endif

static void prepare_kernels() {
    for (int i = 0; i < VYRE_GEMM_ENTRY_COUNT; ++i) {
        const int bytes = static_cast<int>(vyre_gemm_dynamic_shared(&VYRE_GEMM_ENTRIES[i], kLoop));
        for (Kernel kernel : {LOADED[i].vector, LOADED[i].element}) {
            CUDA_OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
        }
    }
}

// The arguments must already hold everything but the choice.
static void launch(VyreGemmArguments &args, const VyreGemmChoice &choice, bool vector, Workspace &workspace,
                   cudaStream_t stream) {
    if (choice.grid == 0) {
        return;
    }
    const VyreGemmEntry &entry = VYRE_GEMM_ENTRIES[choice.entry];
    args.split_k = choice.split_k;
    args.tile_group = choice.tile_group;
    args.workspace = workspace.partials;
    args.counters = workspace.counters;
    const uint32_t threads = kLoop == VYRE_GEMM_LOOP_ASYNC ? entry.threads : entry.staged_threads;
    const uint32_t shared = vyre_gemm_dynamic_shared(&entry, kLoop);
    const LoadedEntry &loaded = LOADED[choice.entry];
    (vector ? loaded.vector : loaded.element)<<<choice.grid, threads, shared, stream>>>(args);
}

static bool is_vector(const VyreGemmArguments &args) {
    const uint64_t bits = reinterpret_cast<uint64_t>(args.a) / 2 | reinterpret_cast<uint64_t>(args.b) / 2 | args.lda |
                          args.ldb | (args.batch > 1 ? args.stride_a | args.stride_b : 0);
    return bits % 8 == 0;
}
