// Kernels that end a device context, each in its own way: what the isolation tests run in a worker, whose death
// they are about. Never run one in a process that matters.

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include <hip/hip_runtime.h>
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

// A store to memory that nobody has.
extern "C" __global__ void fault_illegal_address(u32 seed) {
    volatile u32* wild = reinterpret_cast<volatile u32*>(0x10000000000ull + 64ull * seed);
    *wild = seed;
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
extern "C" __global__ void fault_hang(u32 seed) {
    volatile u32 spin = seed;
    while (spin != 0xffffffffu) {
        spin = seed;
    }
}
