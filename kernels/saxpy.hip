// y = a * x + y over n elements, written by hand: the opponent of the kernel that the emitter makes from IR.
//
// One thread per element, the grid covers n. Products are contracted by hand, so that the compiler's own
// contraction setting does not matter.

#ifndef __CUDACC__
#include <hip/hip_runtime.h>
#endif

extern "C" __global__ void saxpy(float a, const float* __restrict__ x, float* __restrict__ y,
                                 unsigned long long n) {
    const unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        y[i] = fmaf(a, x[i], y[i]);
    }
}
