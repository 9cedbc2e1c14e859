// AMD RDNA 3 (gfx11xx): v_wmma_f32_16x16x16_f16, a wave of 32.
//
// Layouts, from the "RDNA 3" ISA document, "Wave Matrix Multiply Accumulate":
//   A (16 x 16): lane l holds all 16 k of row l % 16; lanes 16 to 31 repeat lanes 0 to 15
//   B (16 x 16): lane l holds all 16 k of column l % 16; repeated likewise
//   C, D (16 x 16): register v of lane l is row 2 * v + l / 16, column l % 16
#ifndef VYRE_GEMM_TILE_WMMA_H
#define VYRE_GEMM_TILE_WMMA_H

#include "instructions.h"

#if !defined(VYRE_GEMM_EMULATE)
VYRE_INLINE WmmaOperand wmma_operand(uint4 low, uint4 high) {
    const uint32_t words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    WmmaOperand operand;
    __builtin_memcpy(&operand, words, sizeof operand);
    return operand;
}
#endif

template <int WM, int WN>
struct WmmaFragment {
    static constexpr int kTilesM = WM / 16, kTilesN = WN / 16;
    static constexpr int kCount = kTilesM * kTilesN * 8;
    static constexpr bool kPairs = false; // neighbouring lanes, not registers, hold neighbouring columns
    static_assert(WM % 16 == 0 && WN % 16 == 0, "whole 16 x 16 tiles");

    float value[kCount];

    VYRE_INLINE void clear() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            value[i] = 0.0f;
        }
    }

    static VYRE_INLINE WmmaOperand operand(const unsigned short *row) {
        const uint4 *words = reinterpret_cast<const uint4 *>(row);
        return wmma_operand(words[0], words[1]);
    }

    VYRE_INLINE void multiply(const unsigned short *a, const unsigned short *b, uint32_t lane) {
        a += lane % 16 * kStagedPitch;
        b += lane % 16 * kStagedPitch;
#pragma unroll 1
        for (int k = 0; k < kStagedK; k += 16) {
            WmmaOperand a_operands[kTilesM];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i) {
                a_operands[i] = operand(a + i * 16 * kStagedPitch + k);
            }
#pragma unroll
            for (int j = 0; j < kTilesN; ++j) {
                const WmmaOperand b_operand = operand(b + j * 16 * kStagedPitch + k);
#pragma unroll
                for (int i = 0; i < kTilesM; ++i) {
                    wmma_16x16x16(value + (i * kTilesN + j) * 8, a_operands[i], b_operand);
                }
            }
        }
    }

    static VYRE_INLINE uint32_t row(int i, uint32_t lane) { return i / 8 / kTilesN * 16 + i % 8 * 2 + lane / 16; }
    static VYRE_INLINE uint32_t column(int i, uint32_t lane) { return i / 8 % kTilesN * 16 + lane % 16; }
};

#endif
