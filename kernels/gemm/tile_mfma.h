// AMD CDNA (gfx908, gfx90a, gfx94x, gfx950): v_mfma_f32_32x32x8_f16, a wave of 64.
//
// Layouts, from the matrix-core chapter of AMD's "CDNA 2" and "CDNA 3" ISA documents ("Dense Matrix
// Multiply" register tables; the amd_matrix_instruction_calculator prints the same):
//   A (32 x 8): lane l holds row l % 32, k = 4 * (l / 32) + 0..3
//   B (8 x 32): lane l holds column l % 32, k = 4 * (l / 32) + 0..3
//   C, D (32 x 32): register v of lane l is row 8 * (v / 4) + 4 * (l / 32) + v % 4, column l % 32
// The sum over k has no order of its own: lanes of the lower half take the first 8 of 16 consecutive
// k and those of the upper half the last 8, the same for A and B, and two instructions use them up.
// So every lane reads 16 bytes of one row at a time.
#ifndef VYRE_GEMM_TILE_MFMA_H
#define VYRE_GEMM_TILE_MFMA_H

#if !defined(VYRE_GEMM_EMULATE)
typedef _Float16 MfmaOperand __attribute__((ext_vector_type(4)));
typedef float MfmaAccumulator __attribute__((ext_vector_type(16)));

VYRE_INLINE MfmaOperand mfma_operand(uint32_t low, uint32_t high) {
    const uint2 words = make_uint2(low, high);
    MfmaOperand operand;
    __builtin_memcpy(&operand, &words, sizeof operand);
    return operand;
}

VYRE_INLINE void mfma_32x32x8(float *d, MfmaOperand a, MfmaOperand b) {
    MfmaAccumulator sum;
#pragma unroll
    for (int v = 0; v < 16; ++v) {
        sum[v] = d[v];
    }
    sum = __builtin_amdgcn_mfma_f32_32x32x8f16(a, b, sum, 0, 0, 0);
#pragma unroll
    for (int v = 0; v < 16; ++v) {
        d[v] = sum[v];
    }
}
#endif

template <int WM, int WN>
struct MfmaFragment {
    static constexpr int kTilesM = WM / 32, kTilesN = WN / 32;
    static constexpr int kCount = kTilesM * kTilesN * 16;
    static constexpr bool kPairs = false; // neighbouring lanes, not registers, hold neighbouring columns
    static_assert(WM % 32 == 0 && WN % 32 == 0, "whole 32 x 32 tiles");

    float value[kCount];

    VYRE_INLINE void clear() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            value[i] = 0.0f;
        }
    }

    VYRE_INLINE void multiply(const unsigned short *a, const unsigned short *b, uint32_t lane) {
        a += lane % 32 * kStagedPitch + lane / 32 * 8;
        b += lane % 32 * kStagedPitch + lane / 32 * 8;
#pragma unroll
        for (int k = 0; k < kStagedK; k += 16) {
            uint4 a_words[kTilesM], b_words[kTilesN];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
                a_words[i] = *reinterpret_cast<const uint4 *>(a + i * 32 * kStagedPitch + k);
            }
#pragma unroll
            for (int j = 0; j < kTilesN; ++j) {
                b_words[j] = *reinterpret_cast<const uint4 *>(b + j * 32 * kStagedPitch + k);
            }
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
                for (int j = 0; j < kTilesN; ++j) {
                    float *d = value + (i * kTilesN + j) * 16;
                    mfma_32x32x8(d, mfma_operand(a_words[i].x, a_words[i].y), mfma_operand(b_words[j].x, b_words[j].y));
                    mfma_32x32x8(d, mfma_operand(a_words[i].z, a_words[i].w), mfma_operand(b_words[j].z, b_words[j].w));
                }
            }
        }
    }

    static VYRE_INLINE uint32_t row(int i, uint32_t lane) {
        return i / 16 / kTilesN * 32 + i % 16 / 4 * 8 + lane / 32 * 4 + i % 4;
    }
    static VYRE_INLINE uint32_t column(int i, uint32_t lane) { return i / 16 % kTilesN * 32 + lane % 32; }
};

#endif
