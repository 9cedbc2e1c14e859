// Kernels that end a device context, each in its own way: what the isolation tests run in a worker, whose death
// they are about. Never run one in a process that matters.

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <hip/hip_runtime.h>
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// A store to memory that nobody has. The address comes from memory, so that no compiler knows it.
__device__ u64 wild_address = 0xdead0000ull;

extern "C" __global__ void fault_illegal_address(u32 seed) {
    volatile u64* from = &wild_address;
    *reinterpret_cast<volatile u32*>(*from) = seed;
}

// A call of what is no function: the compiler cannot see that the address is not one.
extern "C" __global__ void fault_illegal_instruction(u32 seed) {
    u64 nowhere = 0x7000000000ull + 16ull * seed;
#if defined(__CUDACC__)
    asm volatile("" : "+l"(nowhere));
#else
    asm volatile("" : "+v"(nowhere));
#endif
    reinterpret_cast<void (*)(u32)>(nowhere)(seed);
}

// The instruction that is there to fault.
extern "C" __global__ void fault_trap(u32 seed) {
    if (seed != 0xffffffffu) {
#if defined(__CUDACC__)
        __trap();
#else
        __builtin_trap();
#endif
    }
}

// A kernel without an end, and without a look at any abort flag.
__device__ u32 never = 0;

extern "C" __global__ void fault_hang(u32 seed) {
    while (atomicAdd(&never, 0u) != 0xffffffffu) {
    }
    never = seed;
}
