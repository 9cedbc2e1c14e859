// What a ring on a GPU is measured against: the least that a resident kernel can do, and launches.
//
// `echo` is the physical limit of a resident kernel: one thread, one slot of four tagged quarters in host memory,
// one completion of 16 bytes, and nothing in between. The slot and the completion are as docs/protocol.md has them.

#ifndef __CUDACC__
#include <hip/hip_runtime.h>
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned char u8;

struct alignas(16) Quarter {
    u64 low;   // two words
    u64 high;  // one word, and above it the tag: lap << 16 | header
};

#ifdef __CUDACC__

// One single-copy-atomic access, so that words and tag belong together without a fence. All of it is used below: a
// load whose words are not all used may be narrowed.
static __device__ __forceinline__ Quarter load_quarter(const Quarter* from) {
    Quarter quarter;
    asm volatile(
        "{\n\t.reg .b128 whole;\n\tld.relaxed.sys.global.b128 whole, [%2];\n\tmov.b128 {%0, %1}, whole;\n\t}"
        : "=l"(quarter.low), "=l"(quarter.high)
        : "l"(from)
        : "memory");
    return quarter;
}

static __device__ __forceinline__ void store_quarter(Quarter* to, Quarter quarter) {
    asm volatile(
        "{\n\t.reg .b128 whole;\n\tmov.b128 whole, {%1, %2};\n\tst.relaxed.sys.global.b128 [%0], whole;\n\t}"
        :
        : "l"(to), "l"(quarter.low), "l"(quarter.high)
        : "memory");
}

#else

// Ordered by the half that has the tag, as on the host: no document promises 16 bytes at once.
static __device__ __forceinline__ Quarter load_quarter(const Quarter* from) {
    Quarter quarter;
    quarter.high = __hip_atomic_load(&from->high, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_SYSTEM);
    quarter.low = __hip_atomic_load(&from->low, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
    return quarter;
}

static __device__ __forceinline__ void store_quarter(Quarter* to, Quarter quarter) {
    __hip_atomic_store(&to->low, quarter.low, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_SYSTEM);
    __hip_atomic_store(&to->high, quarter.high, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_SYSTEM);
}

#endif

static __device__ __forceinline__ u32 lap_of(Quarter quarter) { return (u32)(quarter.high >> 48); }

static __device__ __forceinline__ u32 sum_of(Quarter quarter) {
    return (u32)quarter.low + (u32)(quarter.low >> 32) + (u32)quarter.high;
}

// Answers items in `slot` with the sum of their arguments, lap after lap from 1 on. Leaves at an item whose first
// header is `stop`, or after so many looks in a row at a slot where nothing was published: the host may have died.
extern "C" __global__ void echo(const Quarter* slot, Quarter* completion, u32 stop, u32 most_looks) {
    u32 lap = 1;
    for (u32 looks = 0; looks < most_looks; ++looks) {
        const Quarter a = load_quarter(slot), b = load_quarter(slot + 1);
        const Quarter c = load_quarter(slot + 2), d = load_quarter(slot + 3);
        if (lap_of(a) != lap || lap_of(b) != lap || lap_of(c) != lap || lap_of(d) != lap) {
            continue;
        }
        if (((u32)(a.high >> 32) & 0xffffu) == stop) {
            return;
        }
        Quarter done;
        done.low = sum_of(a) + sum_of(b) + sum_of(c) + sum_of(d);  // of 32 bits
        done.high = (u64)(lap << 16 | 3u) << 32;  // status DONE
        store_quarter(completion, done);
        lap = (lap + 1) & 0xffffu;
        looks = 0;
    }
}

// The least that a launch can do and be counted.
extern "C" __global__ void count(u32* total, u32 value) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        atomicAdd(total, value);
    }
}

// One work item, a unit to a thread, 256 threads a block. Its result is added to `total`.
extern "C" __global__ void work(u32* total, u32 seed, u32 units) {
    __shared__ u32 sums[256];
    const u32 at = blockIdx.x * 256 + threadIdx.x;
    u32 x = 0;
    if (at < units) {
        x = seed ^ at;
        for (u32 round = 0; round < 16; ++round) {
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

// Scans pieces of one KiB from `first` on, a piece to a thread, up to `end`.
extern "C" __global__ void scan(const u32* __restrict__ table, const u8* __restrict__ input, u32* __restrict__ states,
                                u32 first, u32 end, u32 entry) {
    const u32 piece = first + blockIdx.x * blockDim.x + threadIdx.x;
    if (piece >= end) {
        return;
    }
    u32 state = entry;
    for (u32 at = piece * 1024; at < piece * 1024 + 1024; ++at) {
        state = table[state * 256 + input[at]];
    }
    states[piece] = state;
}
