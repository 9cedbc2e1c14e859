// Checks and measures kernels/gemm_f16.hip on an NVIDIA device; run.sh builds and runs it.
//   gemm_bench check [quick]   correctness gates
//   gemm_bench bench           chosen kernels against cuBLAS, in this process, on the same data
//   gemm_bench tune            every kernel at every size
#if defined(VYRE_GEMM_EMULATE_MFMA) || defined(VYRE_GEMM_EMULATE_WMMA)
#include "emulate_amd.h"
#endif
#include "../../gemm_f16.hip"

#include <algorithm>
#include <cstring>

#include "verify.h"
#include "launch.h"
#include "check.h"
#if !defined(VYRE_GEMM_CHECK_ONLY)
#include "measure.h"
#endif

int main(int count, char **words) {
    const char *mode = count > 1 ? words[1] : "";
    cudaDeviceProp device;
    CUDA_OK(cudaGetDeviceProperties(&device, 0));
    std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
    prepare_kernels();
    if (std::strcmp(mode, "check") == 0) {
        return check(count > 2 && std::strcmp(words[2], "quick") == 0);
    }
#if !defined(VYRE_GEMM_CHECK_ONLY)
    if (std::strcmp(mode, "bench") == 0) {
        return bench(device.multiProcessorCount);
    }
    if (std::strcmp(mode, "tune") == 0) {
        return tune();
    }
#endif
    std::fprintf(stderr, "usage: gemm_bench check [quick] | bench | tune\n");
    return 2;
}
