// The fp16 matrix product as a kernel worker: `gemm_f16 --server`, or `gemm_f16 --once REQUEST RESPONSE`.
//
//     hipcc -O3 -std=c++17 -ffp-contract=off --offload-arch=gfx90a kernels/server/gemm_f16.cpp -o gemm_f16
//     nvcc -x cu -O3 -std=c++17 --fmad=false -arch=sm_90 kernels/server/gemm_f16.cpp -o gemm_f16
//
// Request, little endian: m, n, k, batch as u64; alpha, beta as f32; output (0: fp32, 1: fp16) and zero as u32; then A,
// batch times m x k fp16; B, batch times k x n fp16; and C, batch times m x n of the output's type, if beta is not
// zero. All row-major and dense. Response: C = alpha * A * B + beta * C.
#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define hipError_t cudaError_t
#define hipSuccess cudaSuccess
#define hipErrorOutOfMemory cudaErrorMemoryAllocation
#define hipGetErrorString cudaGetErrorString
#define hipGetLastError cudaGetLastError
#define hipGetDeviceCount cudaGetDeviceCount
#define hipSetDevice cudaSetDevice
#define hipDeviceGetAttribute cudaDeviceGetAttribute
#define hipDeviceAttributeMultiprocessorCount cudaDevAttrMultiProcessorCount
#define hipMalloc cudaMalloc
#define hipFree cudaFree
#define hipMemset cudaMemset
#define hipMemcpy cudaMemcpy
#define hipMemcpyHostToDevice cudaMemcpyHostToDevice
#define hipMemcpyDeviceToHost cudaMemcpyDeviceToHost
#define hipDeviceSynchronize cudaDeviceSynchronize
#else
#include <hip/hip_runtime.h>
#endif

#include "../gemm_f16.hip"

#include "../gemm/choice.h"
#include "../vyre_worker.hpp"

#include <memory>

namespace {

using vyre_worker::Bytes;
using vyre_worker::Refusal;
using vyre_worker::Response;

enum : uint32_t {
    kBadRequest = vyre_worker::kRefusedUser,
    kOutOfMemory,
};

// What a device reports after a fault stays, whatever is called next: this process ends, and another is started.
void check(hipError_t error, const char *call) {
    if (error == hipSuccess) {
        return;
    }
    if (error == hipErrorOutOfMemory) {
        (void)hipGetLastError();
        throw Refusal{kOutOfMemory, std::string(call) + ": no device memory; ask for less, or free some"};
    }
    std::fprintf(stderr, "%s: %s\n", call, hipGetErrorString(error));
    std::exit(vyre_worker::kExitFailure);
}

struct Shape {
    uint64_t m, n, k, batch;
    float alpha, beta;
    uint32_t output, zero;
};
static_assert(sizeof(Shape) == 48, "as documented above, on the little-endian machines that have GPUs");

// batch * rows * columns * element, if that is a length at all.
uint64_t length(uint64_t batch, uint64_t rows, uint64_t columns, uint64_t element) {
    unsigned long long bytes = element;
    if (__builtin_mul_overflow(bytes, batch, &bytes) || __builtin_mul_overflow(bytes, rows, &bytes) ||
        __builtin_mul_overflow(bytes, columns, &bytes)) {
        throw Refusal{kBadRequest, "the matrices have more bytes than an address can count"};
    }
    return bytes;
}

// Device memory that is kept from one request to the next.
class Buffer {
  public:
    // At least so many bytes. `fresh` says that they are new.
    void *reserve(uint64_t bytes, bool *fresh = nullptr) {
        const bool grows = bytes > bytes_;
        if (grows) {
            bytes_ = 0;
            check(hipFree(address_), "hipFree");
            address_ = nullptr;
            check(hipMalloc(&address_, bytes), "hipMalloc");
            bytes_ = bytes;
        }
        if (fresh != nullptr) {
            *fresh = grows;
        }
        return address_;
    }
    void *upload(const uint8_t *from, uint64_t bytes) {
        void *to = reserve(bytes);
        if (bytes != 0) {
            check(hipMemcpy(to, from, bytes, hipMemcpyHostToDevice), "hipMemcpy to the device");
        }
        return to;
    }

  private:
    void *address_ = nullptr;
    uint64_t bytes_ = 0;
};

using Kernel = void (*)(VyreGemmArguments);

#if defined(__CUDACC__)
#define VYRE_WIDE(name) name
#else
#define VYRE_WIDE(name) nullptr // AMD's kernels have no 128x256, and choice.h does not choose it there
#endif

const Kernel kVector[VYRE_GEMM_ENTRY_COUNT] = {
    VYRE_WIDE(vyre_gemm_f16_128x256), vyre_gemm_f16_128x128, vyre_gemm_f16_64x128, vyre_gemm_f16_64x64,
    vyre_gemm_f16_32x64,              vyre_gemm_f16_rows1,   vyre_gemm_f16_rows4,  vyre_gemm_f16_rows8,
};
const Kernel kElement[VYRE_GEMM_ENTRY_COUNT] = {
    VYRE_WIDE(vyre_gemm_f16_128x256_element), vyre_gemm_f16_128x128_element, vyre_gemm_f16_64x128_element,
    vyre_gemm_f16_64x64_element,              vyre_gemm_f16_32x64_element,   vyre_gemm_f16_rows1_element,
    vyre_gemm_f16_rows4_element,              vyre_gemm_f16_rows8_element,
};

class Gemm {
  public:
    explicit Gemm(uint32_t device) {
        int devices = 0;
        const hipError_t error = hipGetDeviceCount(&devices);
        if (error != hipSuccess || device >= static_cast<uint32_t>(devices)) {
            const std::string why = error == hipSuccess ? "" : std::string(": ") + hipGetErrorString(error);
            throw Refusal{vyre_worker::kRefusedStart, "device " + std::to_string(device) + " of " +
                                                          std::to_string(devices) + " does not exist" + why};
        }
        const int index = static_cast<int>(device);
        check(hipSetDevice(index), "hipSetDevice");
        check(hipDeviceGetAttribute(&units_, hipDeviceAttributeMultiprocessorCount, index), "hipDeviceGetAttribute");
#if defined(__CUDACC__)
        int major = 0;
        check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "cudaDeviceGetAttribute");
        loop_ = major >= 8 ? VYRE_GEMM_LOOP_ASYNC : VYRE_GEMM_LOOP_STAGED_CUDA;
        for (int i = 0; i < VYRE_GEMM_ENTRY_COUNT; ++i) {
            const int bytes = static_cast<int>(vyre_gemm_dynamic_shared(&VYRE_GEMM_ENTRIES[i], loop_));
            for (const Kernel kernel : {kVector[i], kElement[i]}) {
                check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                      "cudaFuncSetAttribute");
            }
        }
#endif
    }

    void run(Bytes request, Response &response) {
        Shape s;
        if (request.size < sizeof s) {
            throw Refusal{kBadRequest, "request of " + std::to_string(request.size) + " bytes; its head alone has 48"};
        }
        std::memcpy(&s, request.data, sizeof s);
        if (s.output > 1 || s.zero != 0 || s.m == 0 || s.n == 0 || s.k == 0 || s.batch == 0) {
            throw Refusal{kBadRequest, "sizes must not be zero, output must be 0 (fp32) or 1 (fp16), the last word zero"};
        }
        const uint64_t a = length(s.batch, s.m, s.k, 2), b = length(s.batch, s.k, s.n, 2);
        const uint64_t c = length(s.batch, s.m, s.n, s.output == 0 ? 4 : 2), c_sent = s.beta == 0.0f ? 0 : c;
        const uint64_t operands = request.size - sizeof s;
        if (a > operands || b > operands - a || c_sent != operands - a - b) {
            throw Refusal{kBadRequest, std::to_string(operands) + " bytes of operands do not fit the sizes in the head"};
        }
        // Before any work: it throws if there is no room.
        uint8_t *out = response.reserve(c);

        const uint8_t *data = request.data + sizeof s;
        VyreGemmArguments args = {};
        args.a = a_.upload(data, a);
        args.b = b_.upload(data + a, b);
        c_.reserve(c);
        args.c = c_.upload(data + a + b, c_sent);
        args.m = s.m, args.n = s.n, args.k = s.k, args.batch = s.batch;
        args.lda = s.k, args.ldb = s.n, args.ldc = s.n;
        args.stride_a = s.m * s.k, args.stride_b = s.k * s.n, args.stride_c = s.m * s.n;
        args.alpha = s.alpha, args.beta = s.beta;
        args.output = s.output == 0 ? VYRE_GEMM_OUTPUT_F32 : VYRE_GEMM_OUTPUT_F16;
        launch(args);
        check(hipGetLastError(), "launch");
        check(hipDeviceSynchronize(), "product");
        check(hipMemcpy(out, args.c, c, hipMemcpyDeviceToHost), "hipMemcpy from the device");
    }

  private:
    void launch(VyreGemmArguments &args) {
        const VyreGemmChoice choice =
            vyre_gemm_choose(args.m, args.n, args.k, args.batch, static_cast<uint32_t>(units_), loop_);
        const VyreGemmEntry &entry = VYRE_GEMM_ENTRIES[choice.entry];
        args.split_k = choice.split_k;
        args.tile_group = choice.tile_group;
        const uint64_t floats = vyre_gemm_workspace_floats(&choice, args.m, args.n, args.batch);
        if (floats != 0) {
            bool fresh = false;
            const uint64_t tiles = vyre_gemm_tiles(choice.entry, args.m, args.n, args.batch);
            args.workspace = static_cast<float *>(partials_.reserve(floats * 4));
            args.counters = static_cast<uint32_t *>(counters_.reserve(tiles * 4, &fresh));
            if (fresh) {
                // Every launch leaves them zero.
                check(hipMemset(args.counters, 0, tiles * 4), "hipMemset");
            }
        }
        // Allocations are aligned to more than 16 bytes, and so is each row and problem if its length is.
        const uint64_t elements = args.lda | args.ldb | (args.batch > 1 ? args.stride_a | args.stride_b : 0);
        const Kernel kernel = (elements % 8 == 0 ? kVector : kElement)[choice.entry];
        const uint32_t threads = loop_ == VYRE_GEMM_LOOP_ASYNC ? entry.threads : entry.staged_threads;
        kernel<<<choice.grid, threads, vyre_gemm_dynamic_shared(&entry, loop_)>>>(args);
    }

    int units_ = 0;
    int loop_ = VYRE_GEMM_LOOP_STAGED_HIP;
    Buffer a_, b_, c_, partials_, counters_;
};

} // namespace

int main(int argc, char **argv) {
    return vyre_worker::main(argc, argv, [](const vyre_worker::Start &start) -> vyre_worker::Handler {
        const auto gemm = std::make_shared<Gemm>(start.device);
        return [gemm](Bytes request, Response &response) { gemm->run(request, response); };
    });
}
