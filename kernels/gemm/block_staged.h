// One block's loop everywhere else: global memory to registers, registers to one of two shared
// buffers, while the other is multiplied. Both panels lie with k contiguous ([row][k], [column][k]),
// so that every fragment load is 16 bytes of one row.
#ifndef VYRE_GEMM_BLOCK_STAGED_H
#define VYRE_GEMM_BLOCK_STAGED_H

constexpr int kStagedK = 32;
// Halves from row to row of a panel: 80 bytes put eight consecutive rows on different banks for
// 16-byte accesses, and keep each of them aligned.
constexpr int kStagedPitch = kStagedK + 8;

// COUNT consecutive elements as 32-bit words, zeros past `inside`.
template <int COUNT, bool VECTOR>
VYRE_INLINE void load_elements(uint32_t (&words)[COUNT / 2], const unsigned short *from, uint32_t inside) {
    if (VECTOR && inside == COUNT) {
        if constexpr (COUNT == 8) {
            const uint4 all = *reinterpret_cast<const uint4 *>(from);
            words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
        } else {
            const uint2 all = *reinterpret_cast<const uint2 *>(from);
            words[0] = all.x, words[1] = all.y;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
        const uint32_t limit = hide(inside);
        const uint32_t low = i < limit ? from[i] : 0;
        const uint32_t high = i + 1 < limit ? from[i + 1] : 0;
        words[i / 2] = low | high << 16;
    }
}

// A: each thread takes chunks of 8 k of one row.
template <int BM, int THREADS, bool VECTOR>
struct StagedA {
    static constexpr int kChunks = kStagedK / 8;
    static constexpr int kCopies = (BM * kChunks + THREADS - 1) / THREADS;
    uint32_t words[kCopies][4];

    VYRE_INLINE void load(const unsigned short *corner, uint64_t ld, uint32_t rows, uint32_t k) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const uint32_t unit = threadIdx.x + i * THREADS;
            const uint32_t row = unit / kChunks, first = unit % kChunks * 8;
            load_elements<8, VECTOR>(words[i], corner + row * ld + first, row < rows ? elements_inside(k, first, 8) : 0);
        }
    }

    VYRE_INLINE void store(unsigned short *panel) const {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const uint32_t unit = threadIdx.x + i * THREADS;
            if (BM * kChunks % THREADS == 0 || unit < BM * kChunks) {
                *reinterpret_cast<uint4 *>(panel + unit / kChunks * kStagedPitch + unit % kChunks * 8) =
                    make_uint4(words[i][0], words[i][1], words[i][2], words[i][3]);
            }
        }
    }
};

// B: each thread takes squares of 4 k by 4 columns and turns them. Neighbouring threads take
// neighbouring k, so that their stores fill whole rows of the panel without bank conflicts.
template <int BN, int THREADS, bool VECTOR>
struct StagedB {
    static constexpr int kSquares = kStagedK / 4 * (BN / 4);
    static constexpr int kCopies = (kSquares + THREADS - 1) / THREADS;
    uint32_t words[kCopies][4][2]; // [k][two columns]

    VYRE_INLINE void load(const unsigned short *corner, uint64_t ld, uint32_t k, uint32_t columns) {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const uint32_t unit = threadIdx.x + i * THREADS;
            const uint32_t row = unit % (kStagedK / 4) * 4, column = unit / (kStagedK / 4) * 4;
            const uint32_t inside = elements_inside(columns, column, 4);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                load_elements<4, VECTOR>(words[i][j], corner + (row + j) * ld + column, row + j < k ? inside : 0);
            }
        }
    }

    VYRE_INLINE void store(unsigned short *panel) const {
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const uint32_t unit = threadIdx.x + i * THREADS;
            if (kSquares % THREADS != 0 && unit >= kSquares) {
                continue;
            }
            const uint32_t row = unit % (kStagedK / 4) * 4, column = unit / (kStagedK / 4) * 4;
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const int shift = c % 2 * 16;
                const uint32_t e0 = words[i][0][c / 2] >> shift & 0xffff, e1 = words[i][1][c / 2] >> shift & 0xffff;
                const uint32_t e2 = words[i][2][c / 2] >> shift & 0xffff, e3 = words[i][3][c / 2] >> shift & 0xffff;
                *reinterpret_cast<uint2 *>(panel + (column + c) * kStagedPitch + row) =
                    make_uint2(e0 | e1 << 16, e2 | e3 << 16);
            }
        }
    }
};

// Fragment: the matrix unit's part, see tile_mfma.h, tile_wmma.h, tile_plain.h.
template <int BM, int BN, int WM, int WN, class Fragment>
struct StagedBlock {
    static constexpr int kThreads = BM / WM * (BN / WN) * kWaveWidth;
    static constexpr int kPanelA = BM * kStagedPitch, kPanelB = BN * kStagedPitch; // halves
    static constexpr int kSharedBytes = 2 * (kPanelA + kPanelB) * 2;

    template <bool VECTOR>
    static VYRE_INLINE void run(const VyreGemmArguments &args) {
        VYRE_SHARED_BYTES(panels, kSharedBytes);
        unsigned short *a_panels = reinterpret_cast<unsigned short *>(panels);
        unsigned short *b_panels = a_panels + 2 * kPanelA;
        const uint32_t lane = threadIdx.x % kWaveWidth, wave = threadIdx.x / kWaveWidth;
        const uint32_t wave_row = wave / (BN / WN) * WM, wave_column = wave % (BN / WN) * WN;
        const Schedule<BM, BN, kStagedK> schedule(args);

        for (uint64_t item = blockIdx.x; item < schedule.items; item += gridDim.x) {
            const Tile tile = tile_of_item<BM, BN, kStagedK>(args, schedule, item);
            Fragment fragment;
            fragment.clear();
            if (tile.k_steps != 0) {
                multiply<VECTOR>(args, tile, fragment, a_panels, b_panels, wave_row, wave_column, lane);
            }
            if (args.split_k > 1 && !add_splits<kThreads>(args, tile, true, fragment.value)) {
                continue;
            }
            store_tile<BM, BN>(args, tile, fragment, wave_row, wave_column, lane);
        }
    }

    template <bool VECTOR>
    static VYRE_INLINE void multiply(const VyreGemmArguments &args, const Tile &tile, Fragment &fragment,
                                     unsigned short *a_panels, unsigned short *b_panels, uint32_t wave_row,
                                     uint32_t wave_column, uint32_t lane) {
        const unsigned short *a_corner = static_cast<const unsigned short *>(args.a) + tile.batch * args.stride_a +
                                         tile.row * args.lda + tile.k_begin;
        const unsigned short *b_corner = static_cast<const unsigned short *>(args.b) + tile.batch * args.stride_b +
                                         tile.k_begin * args.ldb + tile.column;
        StagedA<BM, kThreads, VECTOR> a;
        StagedB<BN, kThreads, VECTOR> b;
        uint64_t k_left = tile.k_left;
        a.load(a_corner, args.lda, tile.rows, least(k_left, kStagedK));
        b.load(b_corner, args.ldb, least(k_left, kStagedK), tile.columns);
        a.store(a_panels);
        b.store(b_panels);
        __syncthreads();
#pragma unroll 1
        for (uint32_t k_step = 0; k_step < tile.k_steps; ++k_step) {
            const bool more = k_step + 1 < tile.k_steps;
            const uint32_t use = k_step % 2, fill = use ^ 1;
            if (more) {
                a_corner += kStagedK;
                b_corner += kStagedK * args.ldb;
                k_left -= kStagedK;
                a.load(a_corner, args.lda, tile.rows, least(k_left, kStagedK));
                b.load(b_corner, args.ldb, least(k_left, kStagedK), tile.columns);
            }
            fragment.multiply(a_panels + use * kPanelA + wave_row * kStagedPitch,
                              b_panels + use * kPanelB + wave_column * kStagedPitch, lane);
            if (more) {
                a.store(a_panels + fill * kPanelA);
                b.store(b_panels + fill * kPanelB);
            }
            // Also after the last step: the next tile fills the first buffer at once.
            __syncthreads();
        }
    }
};

#endif
