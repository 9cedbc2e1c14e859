// What a ring on a GPU is measured against: the least that a resident kernel can do, and launches.

#ifndef __CUDACC__
#include <hip/hip_runtime.h>
#endif

typedef unsigned int u32;

// The physical limit of a resident kernel: one thread answers each new word of the host's by the same word, with
// nothing between one look and the next. Leaves after the answer to all ones, or after so many looks in a row that saw
// nothing new: the host may have died.
extern "C" __global__ void echo(const u32* asked, u32* answered, u32 most_looks) {
    u32 seen = 0;
    for (u32 looks = 0; looks < most_looks; ++looks) {
        u32 now;
#ifdef __CUDACC__
        asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(now) : "l"(asked) : "memory");
#else
        now = __hip_atomic_load(asked, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
#endif
        if (now == seen) {
            continue;
        }
#ifdef __CUDACC__
        asm volatile("st.relaxed.sys.global.u32 [%0], %1;" : : "l"(answered), "r"(now) : "memory");
#else
        __hip_atomic_store(answered, now, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
#endif
        if (now == ~0u) {
            return;
        }
        seen = now;
        looks = 0;
    }
}

// The least that a launch can do and be counted.
extern "C" __global__ void count(u32* total, u32 value) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicAdd(total, value);
    }
}

// One piece of work, a unit to a thread, 256 threads a block. Its result is added to `total`.
extern "C" __global__ void work(u32* total, u32 seed, u32 units, u32 rounds) {
    __shared__ u32 sums[256];
    const u32 at = blockIdx.x * 256 + threadIdx.x;
    u32 x = 0;
    if (at < units) {
        x = seed ^ at;
        for (u32 round = 0; round < rounds; ++round) {
            x = (x ^ x >> 15) * 0x85ebca6bu;
        }
    }
    sums[threadIdx.x] = x;
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

// Scans pieces of one KiB from `first` on, a piece to a thread, up to `end`. A state is the place of its row.
extern "C" __global__ void scan(const u32* __restrict__ table, const u32* __restrict__ input, u32* __restrict__ states,
                                u32 first, u32 end, u32 entry) {
    const u32 piece = first + blockIdx.x * blockDim.x + threadIdx.x;
    if (piece >= end) {
        return;
    }
    u32 state = entry;
    for (u32 at = piece * 256; at < piece * 256 + 256; ++at) {
        const u32 bytes = input[at];
        state = table[state + (bytes & 0xffu)];
        state = table[state + (bytes >> 8 & 0xffu)];
        state = table[state + (bytes >> 16 & 0xffu)];
        state = table[state + (bytes >> 24)];
    }
    states[piece] = state;
}
