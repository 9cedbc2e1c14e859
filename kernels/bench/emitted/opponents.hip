// The programs of the example `emitted`, written by hand: what the kernels that the emitter makes from IR are
// timed against. Same algorithms, same shapes of launches, no checks but those a kernel needs.

#ifndef __CUDACC__
#include <hip/hip_runtime.h>
#endif

typedef unsigned int u32;
typedef unsigned char u8;

// y = a * x + y.
extern "C" __global__ void hand_saxpy(const float* __restrict__ a, const float* __restrict__ x, float* __restrict__ y,
                                      u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        y[i] = fmaf(a[0], x[i], y[i]);
    }
}

// The sum of x, 4096 elements a workgroup of 256, added up in shared memory.
extern "C" __global__ void hand_reduce(const u32* __restrict__ x, u32* __restrict__ total) {
    __shared__ u32 sums[256];
    const u32 base = blockIdx.x * 4096 + threadIdx.x;
    u32 sum = 0;
    for (u32 at = base; at < base + 4096; at += 256) {
        sum += x[at];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (u32 width = 128; width > 0; width /= 2) {
        if (threadIdx.x < width) {
            sums[threadIdx.x] += sums[threadIdx.x + width];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        atomicAdd(total, sums[0]);
    }
}

// Each invocation steps a table of 256 successors a state over a KiB of input, and leaves the last state.
extern "C" __global__ void hand_scan(const u32* __restrict__ table, const u8* __restrict__ input,
                                     u32* __restrict__ states) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 state = 0;
    for (u32 at = i * 1024; at < i * 1024 + 1024; ++at) {
        state = table[state * 256 + input[at]];
    }
    states[i] = state;
}
