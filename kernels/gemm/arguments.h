/* The one by-value argument of every vyre_gemm_f16 kernel, in plain C for host and device.
 *
 * C = alpha * A * B + beta * C for `batch` independent problems, all matrices row-major:
 * A is m x k with lda >= k, B is k x n with ldb >= n, C is m x n with ldc >= n. Every
 * length, leading dimension and stride counts elements.
 *
 *  - k == 0 or alpha == 0: C = beta * C, and neither A nor B is read.
 *  - beta == 0: C is written and never read, so a NaN in it does not survive.
 *  - Nothing between the row length and the leading dimension is read or written.
 *
 * The kernel trusts what it is given: pointers and shapes are checked by whoever launches it.
 */
#ifndef VYRE_GEMM_ARGUMENTS_H
#define VYRE_GEMM_ARGUMENTS_H

#include <stdint.h>

enum {
    VYRE_GEMM_OUTPUT_F32 = 0,
    VYRE_GEMM_OUTPUT_F16 = 1,
};

typedef struct VyreGemmArguments {
    const void *a;     /* fp16 */
    const void *b;     /* fp16 */
    void *c;           /* fp32 or fp16, as `output` says */
    float *workspace;  /* partial tiles when split_k > 1; see vyre_gemm_workspace_floats */
    uint32_t *counters; /* one word a tile when split_k > 1: zero before the first launch, and
                           left zero by every launch, so that it is cleared once */
    uint64_t m, n, k;
    uint64_t lda, ldb, ldc;
    uint64_t batch;
    uint64_t stride_a, stride_b, stride_c; /* from one problem of the batch to the next */
    float alpha, beta;
    uint32_t output;
    uint32_t split_k;    /* >= 1: how many blocks share one tile's k range */
    uint32_t tile_group; /* >= 1: rows of tiles walked together, column by column, for L2 reuse */
    uint32_t reserved;   /* zero */
} VyreGemmArguments;

#if defined(__cplusplus)
static_assert(sizeof(VyreGemmArguments) == 144, "the host's mirror has this size");
static_assert(__builtin_offsetof(VyreGemmArguments, m) == 40, "the host's mirror has this layout");
static_assert(__builtin_offsetof(VyreGemmArguments, alpha) == 120, "the host's mirror has this layout");
#endif

#endif
