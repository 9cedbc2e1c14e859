// Inputs, reference and verdict, all on the device. Inputs are functions of (seed, position), so that
// the verdict needs no second copy of what a kernel may have overwritten.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdint.h>

#define CUDA_OK(call)                                                                                      \
    do {                                                                                                   \
        const cudaError_t status = (call);                                                                 \
        if (status != cudaSuccess) {                                                                       \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status)); \
            std::exit(2);                                                                                  \
        }                                                                                                  \
    } while (0)

enum class Data {
    integer,   // -2..2: every sum is exact in fp32 in any order
    normal,    // standard normal
    special,   // integers with infinities and NaN strewn in
    big,       // integers whose sums leave fp16's range
    subnormal, // A of multiples of 2^-24, B of multiples of 1024: exact
};

// gfx90a's matrix unit takes fp16 subnormals as zero; all others keep them.
#if defined(VYRE_GEMM_EMULATE_FLUSH)
constexpr bool kFlushesSubnormals = true;
#else
constexpr bool kFlushesSubnormals = false;
#endif

constexpr uint32_t kGuard = 64;              // elements around each buffer
constexpr uint32_t kCanaryF32 = 0x7fc0beef;  // both are NaN
constexpr uint16_t kCanaryF16 = 0x7eef;

__host__ __device__ inline uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

// The matrix element (row, column) of problem `batch`; `which` tells A, B and C apart.
__device__ inline float element(Data data, uint64_t seed, int which, uint64_t batch, uint64_t row, uint64_t column) {
    const uint64_t h = mix(seed * 3 + which + mix(batch + mix(row * 0x9e3779b97f4a7c15ull + column)));
    const float integer = static_cast<float>(static_cast<int>(h % 5) - 2);
    switch (data) {
    case Data::normal: {
        const float u = (static_cast<float>(h >> 40) + 1.0f) * 0x1p-24f, v = static_cast<float>(h & 0xffffff) * 0x1p-24f;
        return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
    }
    case Data::special: {
        const uint64_t rare = (h >> 20) % 64;
        return rare == 0 ? INFINITY : rare == 1 ? -INFINITY : rare == 2 ? NAN : integer;
    }
    case Data::big:
        return integer * 100.0f;
    case Data::subnormal:
        return which == 0 ? integer * 0x1p-24f : integer * 1024.0f;
    default:
        return integer;
    }
}

struct Matrix {
    uint16_t *buffer; // kGuard + offset elements before the matrix
    uint64_t elements; // of the whole buffer
    uint64_t offset;   // misalignment asked for
    uint64_t rows, columns, ld, batch, stride;
    __host__ __device__ uint64_t start() const { return kGuard + offset; }
};

// Which element of the matrix lies at `at` of the buffer; false in padding and guards.
__device__ inline bool inside(const Matrix &x, uint64_t at, uint64_t &batch, uint64_t &row, uint64_t &column) {
    if (at < x.start() || x.rows == 0 || x.columns == 0) {
        return false;
    }
    at -= x.start();
    batch = x.batch > 1 ? at / x.stride : 0;
    const uint64_t rest = at - batch * (x.batch > 1 ? x.stride : 0);
    row = rest / x.ld;
    column = rest % x.ld;
    return batch < x.batch && row < x.rows && column < x.columns;
}

__global__ void fill_operand(Matrix x, Data data, uint64_t seed, int which) {
    for (uint64_t at = blockIdx.x * 256ull + threadIdx.x; at < x.elements; at += gridDim.x * 256ull) {
        uint64_t batch, row, column;
        x.buffer[at] = inside(x, at, batch, row, column)
                           ? __half_as_ushort(__float2half_rn(element(data, seed, which, batch, row, column)))
                           : 0x7e01; // NaN
    }
}

// C0 where it is read, NaN where it must not be, canaries around.
__global__ void fill_output(Matrix x, bool f16, bool is_read, Data data, uint64_t seed) {
    for (uint64_t at = blockIdx.x * 256ull + threadIdx.x; at < x.elements; at += gridDim.x * 256ull) {
        uint64_t batch, row, column;
        const bool in = inside(x, at, batch, row, column);
        const float value = in && is_read ? element(data, seed, 2, batch, row, column) : NAN;
        if (f16) {
            x.buffer[at] = in ? __half_as_ushort(__float2half_rn(value)) : kCanaryF16;
        } else {
            reinterpret_cast<uint32_t *>(x.buffer)[at] = in ? __float_as_uint(value) : kCanaryF32;
        }
    }
}

struct Verdict {
    unsigned long long wrong, canaries, checked;
    unsigned long long first; // position in the buffer plus one
    double got, expected, bound;
    double error_square, reference_square;
};

__device__ inline float load_output(const Matrix &c, bool f16, uint64_t at) {
    return f16 ? __half2float(__ushort_as_half(c.buffer[at])) : reinterpret_cast<const float *>(c.buffer)[at];
}

__device__ inline double operand(uint16_t bits, bool flush) {
    return flush && (bits & 0x7c00) == 0 ? 0.0 : static_cast<double>(__half2float(__ushort_as_half(bits)));
}

// The fp64 reference of one element, and sum |a||b|.
__device__ inline double reference(const Matrix &a, const Matrix &b, uint64_t batch, uint64_t row, uint64_t column,
                                   bool flush, double &magnitude) {
    const uint16_t *a_at = a.buffer + a.start() + batch * a.stride + row * a.ld;
    const uint16_t *b_at = b.buffer + b.start() + batch * b.stride + column;
    double sum = 0;
    magnitude = 0;
    for (uint64_t k = 0; k < a.columns; ++k) {
        const double product = operand(a_at[k], flush) * operand(b_at[k * b.ld], flush);
        sum += product;
        magnitude += fabs(product);
    }
    return sum;
}

__global__ void write_reference(Matrix a, Matrix b, Matrix c, double *out) {
    const uint64_t at = blockIdx.x * 256ull + threadIdx.x;
    if (at < c.rows * c.columns) {
        double magnitude;
        out[at] = reference(a, b, 0, at / c.columns, at % c.columns, false, magnitude);
    }
}

__global__ void judge(Matrix a, Matrix b, Matrix c, bool f16, float alpha, float beta, Data data, uint64_t seed,
                      bool matrix_unit, Verdict *verdict) {
    double error_square = 0, reference_square = 0;
    for (uint64_t at = blockIdx.x * 256ull + threadIdx.x; at < c.elements; at += gridDim.x * 256ull) {
        uint64_t batch, row, column;
        if (!inside(c, at, batch, row, column)) {
            const bool kept = f16 ? c.buffer[at] == kCanaryF16 : reinterpret_cast<const uint32_t *>(c.buffer)[at] == kCanaryF32;
            if (!kept) {
                atomicAdd(&verdict->canaries, 1ull);
            }
            continue;
        }
        double magnitude = 0;
        const bool flush = kFlushesSubnormals && matrix_unit;
        double expected = alpha == 0.0f ? 0.0 : alpha * reference(a, b, batch, row, column, flush, magnitude);
        double old = 0;
        if (beta != 0.0f) {
            // As C stored it before the launch.
            const float value = element(data, seed, 2, batch, row, column);
            old = f16 ? __half2float(__float2half_rn(value)) : value;
            expected += beta * old;
        }
        const float got = load_output(c, f16, at);
        bool right;
        double bound = 0;
        if (data == Data::normal) {
            bound = (0.5 * sqrt(static_cast<double>(a.columns)) + 4) * 0x1p-24 *
                        (fabs(alpha) * magnitude + fabs(beta) * fabs(old)) +
                    // Half a unit of the last place: 2^-11 relative, and no finer than the subnormals.
                    (f16 ? fmax(0x1p-11 * fabs(expected), 0x1p-25) : 0.0);
            const double error = fabs(static_cast<double>(got) - expected);
            right = error <= bound; // false for NaN
            error_square += error * error;
            reference_square += expected * expected;
        } else {
            const float exact = f16 ? __half2float(__float2half_rn(static_cast<float>(expected))) : static_cast<float>(expected);
            right = isnan(exact) ? isnan(got) : __float_as_uint(exact) == __float_as_uint(got);
        }
        atomicAdd(&verdict->checked, 1ull);
        if (!right && atomicAdd(&verdict->wrong, 1ull) == 0) {
            verdict->first = at + 1;
            verdict->got = got;
            verdict->expected = expected;
            verdict->bound = bound;
        }
    }
    if (reference_square != 0) {
        atomicAdd(&verdict->error_square, error_square);
        atomicAdd(&verdict->reference_square, reference_square);
    }
}

// FNV over the whole buffer, one word a thread: the same bits give the same sum.
__global__ void digest(Matrix c, bool f16, unsigned long long *sum) {
    unsigned long long mine = 0;
    for (uint64_t at = blockIdx.x * 256ull + threadIdx.x; at < c.elements; at += gridDim.x * 256ull) {
        const uint32_t bits = f16 ? c.buffer[at] : reinterpret_cast<const uint32_t *>(c.buffer)[at];
        mine += mix(at * 0x9e3779b97f4a7c15ull + bits);
    }
    atomicAdd(sum, mine);
}
