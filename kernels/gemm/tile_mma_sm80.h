// NVIDIA sm_80 and later: mma.sync m16n8k16 on fragments that ldmatrix brings from swizzled shared
// memory, which cp.async fills. Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
#ifndef VYRE_GEMM_TILE_MMA_SM80_H
#define VYRE_GEMM_TILE_MMA_SM80_H

#include "instructions.h"

VYRE_INLINE uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies `bytes` (0 to 16) and fills the rest of the 16 with zeros; reads nothing beyond `bytes`.
VYRE_INLINE void copy_async(uint32_t shared, const void *global, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(bytes)
                 : "memory");
}

VYRE_INLINE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int PENDING>
VYRE_INLINE void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

VYRE_INLINE void store_shared(uint32_t shared, uint4 value) {
    asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};\n" ::"r"(shared), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
                 : "memory");
}

VYRE_INLINE void load_matrices(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

VYRE_INLINE void load_matrices_transposed(uint32_t (&r)[4], uint32_t shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

// The byte at which 16-byte chunk `chunk` of row `row` lies in a panel of CHUNKS chunks a row: eight
// consecutive rows of one chunk column fall on eight different bank groups, which is what ldmatrix
// reads at a time. Only bits that `row & 7` determines are changed.
template <int CHUNKS>
VYRE_INLINE uint32_t swizzled(uint32_t row, uint32_t chunk) {
    static_assert(CHUNKS >= 4 && (CHUNKS & (CHUNKS - 1)) == 0, "a power of two, at least half a bank line");
    const uint32_t twist = CHUNKS == 4 ? (row >> 1) & 3 : row & 7;
    return (row * CHUNKS + (chunk ^ twist)) * 16;
}

// A wave's WM x WN part of the tile, and the operands of two k steps: one is multiplied while the
// other is loaded. KGROUPS waves share the part, each taking every KGROUPS-th k step.
template <int WM, int WN, int BK, int BN, int KGROUPS>
struct MmaSm80Fragment {
    static constexpr int kCount = WM * WN / 32;
    static constexpr int kTilesM = WM / 16, kTilesN = WN / 8;
    static constexpr bool kPairs = true, kQuads = kTilesN % 4 == 0; // four neighbouring tiles to trade
    static_assert(WM % 16 == 0 && WN % 16 == 0, "whole fragments, two columns of them to an ldmatrix");

    float value[kCount];
    uint32_t a[2][kTilesM][4];
    uint32_t b[2][kTilesN / 2][4];
    uint32_t a_offset, b_offset; // this lane's part of the ldmatrix addresses

    // `row` and `column`: the wave's corner inside the tile; `k_group`: its first k step.
    VYRE_INLINE void begin(uint32_t row, uint32_t column, uint32_t k_group, uint32_t lane) {
        a_offset = swizzled<BK / 8>(row + lane % 16, k_group * 2 + lane / 16);
        b_offset = swizzled<BN / 8>(k_group * 16 + lane % 16, column / 8 + lane / 16);
    }

    VYRE_INLINE void clear() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            value[i] = 0.0f;
        }
    }

    // Loads this wave's k step `step` of the stage whose panels start at these shared addresses. The steps lie in
    // bits of the chunk number that the lane's own part leaves clear, so XOR adds them under the
    // swizzle; 16 rows further the swizzle repeats.
    VYRE_INLINE void load(int buffer, int step, uint32_t a_panel, uint32_t b_panel) {
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
            load_matrices(a[buffer][i], a_panel + (a_offset ^ (step * KGROUPS * 32)) + i * 16 * BK * 2);
        }
#pragma unroll
        for (int j = 0; j < kTilesN / 2; ++j) {
            load_matrices_transposed(b[buffer][j], b_panel + (b_offset ^ (j * 32)) + step * KGROUPS * 16 * BN * 2);
        }
    }

    VYRE_INLINE void multiply(int buffer) {
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) {
#pragma unroll
            for (int jj = 0; jj < kTilesN; ++jj) {
                // Back and forth, so that neighbours in time share an operand.
                const int j = i % 2 ? kTilesN - 1 - jj : jj;
                multiply_16x8x16(value + (i * kTilesN + j) * 4, a[buffer][i], b[buffer][j / 2][j % 2 * 2],
                                 b[buffer][j / 2][j % 2 * 2 + 1]);
            }
        }
    }

    // Where accumulator i of a lane lies: two neighbours in row lane/4, two in the row 8 below.
    static VYRE_INLINE uint32_t row(int i, uint32_t lane) { return i / 4 / kTilesN * 16 + i % 4 / 2 * 8 + lane / 4; }
    static VYRE_INLINE uint32_t column(int i, uint32_t lane) { return i / 4 % kTilesN * 8 + lane % 4 * 2 + i % 2; }
};

// The decode shapes' lanes (rows.h): B's columns are the instruction's 16 rows and A's rows its 8
// columns. The order of k and of the columns inside one instruction is ours to choose, and is chosen
// so that registers loaded from B need no exchange between lanes: lane 4g + q reads columns 8g..8g+7
// of the four k rows 4q..4q+3 of 16, and a byte permutation pairs neighbouring k.
template <int ROWS>
struct MmaRows {
    static constexpr int kPitch = kRowsStep + 8;           // halves; 8 rows of A on different banks
    static constexpr int kPanelBytes = 8 * kPitch * 2;     // A's step as [row][k]
    static_assert(ROWS <= 8, "one instruction's columns");
    float sums[4][4]; // [pair of columns j, j + 1][column, row of A]

    static VYRE_INLINE uint32_t first_column() { return threadIdx.x % 32 / 4 * 8; }

    VYRE_INLINE void clear() {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            sums[i / 4][i % 4] = 0.0f;
        }
    }

    template <bool VECTOR>
    VYRE_INLINE void step(const VyreGemmArguments &args, const RowsStep &at, uint32_t rows, float *shared) {
        unsigned short *panel = reinterpret_cast<unsigned short *>(shared);
        const uint32_t lane_k = threadIdx.x / 32 * 32 + threadIdx.x % 4 * 4;
        uint32_t words[2][4][4];
#pragma unroll
        for (int u = 0; u < 8; ++u) {
            const uint32_t row = lane_k + u / 4 * 16 + u % 4;
            load_elements<8, VECTOR>(words[u / 4][u % 4], at.b + row * args.ldb, row < at.k ? at.inside : 0);
        }
        unsigned short a[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            a[r] = threadIdx.x < at.k && r < rows ? at.a[r * args.lda] : 0;
        }
        __syncthreads(); // the panel's last readers are done
#pragma unroll
        for (int r = 0; r < 8; ++r) {
            panel[r * kPitch + threadIdx.x] = r < ROWS ? a[r] : 0;
        }
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t(&w)[4][4] = words[half];
            const uint2 a_words =
                *reinterpret_cast<const uint2 *>(panel + threadIdx.x % 32 / 4 * kPitch + lane_k + half * 16);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                // The low and the high halves of word j are columns 2j and 2j + 1.
                const uint32_t operand[4] = {
                    __byte_perm(w[0][j], w[1][j], 0x5410), __byte_perm(w[0][j], w[1][j], 0x7632),
                    __byte_perm(w[2][j], w[3][j], 0x5410), __byte_perm(w[2][j], w[3][j], 0x7632)};
                multiply_16x8x16(sums[j], operand, a_words.x, a_words.y);
            }
        }
    }

    VYRE_INLINE void store_groups(float *shared) const {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t row = threadIdx.x % 4 * 2 + i % 2;
            if (row < ROWS) {
                shared[(threadIdx.x / 32 * ROWS + row) * kRowsColumns + first_column() + i / 2] = sums[i / 4][i % 4];
            }
        }
    }
};

#endif
