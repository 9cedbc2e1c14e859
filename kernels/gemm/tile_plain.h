// No matrix unit: each lane multiplies its own elements in fp32 (v_fma_mix_f32 on gfx906 and gfx1030
// takes the halves as they are; nothing is rounded between product and sum).
#ifndef VYRE_GEMM_TILE_PLAIN_H
#define VYRE_GEMM_TILE_PLAIN_H

template <int WM, int WN>
struct PlainFragment {
    // Lanes as kLanesM x 8 over the wave's part; a lane's elements are that far apart, so that lanes
    // read neighbouring rows of the panels.
    static constexpr int kLanesN = 8, kLanesM = kWaveWidth / kLanesN;
    static constexpr int kRows = WM / kLanesM, kColumns = WN / kLanesN;
    static constexpr int kCount = kRows * kColumns;
    static constexpr bool kPairs = false;
    static_assert(WM % kLanesM == 0 && WN % kLanesN == 0, "every lane holds the same number of elements");

    float value[kCount];

    VYRE_INLINE void clear() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            value[i] = 0.0f;
        }
    }

    VYRE_INLINE void multiply(const unsigned short *a, const unsigned short *b, uint32_t lane) {
        a += lane / kLanesN * kStagedPitch;
        b += lane % kLanesN * kStagedPitch;
#pragma unroll 1
        for (int k = 0; k < kStagedK; k += 2) {
            uint32_t b_pair[kColumns];
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                b_pair[j] = *reinterpret_cast<const uint32_t *>(b + j * kLanesN * kStagedPitch + k);
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                const uint32_t a_pair = *reinterpret_cast<const uint32_t *>(a + i * kLanesM * kStagedPitch + k);
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    float &sum = value[i * kColumns + j];
                    sum = fmaf(half_bits_to_float(a_pair & 0xffff), half_bits_to_float(b_pair[j] & 0xffff), sum);
                    sum = fmaf(half_bits_to_float(a_pair >> 16), half_bits_to_float(b_pair[j] >> 16), sum);
                }
            }
        }
    }

    static VYRE_INLINE uint32_t row(int i, uint32_t lane) { return i / kColumns * kLanesM + lane / kLanesN; }
    static VYRE_INLINE uint32_t column(int i, uint32_t lane) { return i % kColumns * kLanesN + lane % kLanesN; }
};

#endif
