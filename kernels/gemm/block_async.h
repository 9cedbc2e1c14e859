// One block's loop where global memory is copied to shared memory without passing registers
// (sm_80 and later): STAGES panels in flight, one barrier a step.
#ifndef VYRE_GEMM_BLOCK_ASYNC_H
#define VYRE_GEMM_BLOCK_ASYNC_H

// A thread's share of copying a panel of ROWS rows of CHUNKS 16-byte chunks into swizzled shared
// memory, with zeros for all that lies outside the matrix. CUT: bytes from one 128-byte wide part of
// the panel to the next; whole rows follow each other where it is zero.
template <int ROWS, int CHUNKS, int THREADS, bool VECTOR, int CUT = 0>
struct AsyncPanel {
    static constexpr int kPitch = CUT == 0 ? CHUNKS * 16 : 128;
    static constexpr int kStride = THREADS / CHUNKS; // rows between a thread's chunks
    static constexpr int kCopies = ROWS / kStride;
    static_assert(THREADS % CHUNKS == 0 && ROWS % kStride == 0, "every thread copies the same number of chunks");
    static_assert(kStride % 8 == 0, "the swizzle is the same for all of a thread's chunks");

    const unsigned short *source;
    uint64_t stride; // elements from one of the thread's chunks to the next
    uint32_t shared, row, first;

    VYRE_INLINE AsyncPanel(const unsigned short *corner, uint64_t ld) {
        row = threadIdx.x / CHUNKS;
        first = threadIdx.x % CHUNKS * 8;
        source = corner + row * ld + first;
        stride = kStride * ld;
        if constexpr (CUT == 0) {
            shared = swizzled<CHUNKS>(row, threadIdx.x % CHUNKS);
        } else {
            shared = threadIdx.x % CHUNKS / 8 * CUT + swizzled<8>(row, threadIdx.x % 8);
        }
    }

    // `rows` and `columns`: how much of the panel lies inside the matrix.
    VYRE_INLINE void copy(uint32_t panel, uint32_t rows, uint32_t columns) const {
        const uint32_t inside = elements_inside(columns, first, 8);
        const unsigned short *from = source;
        // Loads by elements wait in registers: two chunks of them at a time.
#pragma unroll VECTOR ? kCopies : 2
        for (int i = 0; i < kCopies; ++i) {
            const uint32_t count = row + i * kStride < rows ? inside : 0;
            const uint32_t to = panel + shared + i * kStride * kPitch;
            if constexpr (VECTOR) {
                copy_async(to, from, count * 2);
            } else {
                uint32_t e[8];
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    e[j] = j < count ? from[j] : 0;
                }
                store_shared(to, make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16, e[4] | e[5] << 16, e[6] | e[7] << 16));
            }
            from += stride;
        }
    }
};

template <int BM, int BN, int BK, int WM, int WN, int STAGES, int KGROUPS>
struct AsyncBlock {
    static constexpr int kPositions = BM / WM * (BN / WN); // of waves in the tile
    static constexpr int kGroupThreads = kPositions * 32;  // of the waves that take the same k steps
    static constexpr int kThreads = kGroupThreads * KGROUPS;
    static constexpr int kStageA = BM * BK * 2, kStageB = BK * BN * 2;
    static constexpr int kSharedBytes = STAGES * (kStageA + kStageB);
    static constexpr int kSteps = BK / 16 / KGROUPS;
    static_assert(kSteps % 2 == 0, "the operand buffers alternate over a stage's steps");
    static_assert((KGROUPS - 1) * BM * BN * 4 <= kSharedBytes, "the groups' sums fit where the panels were");
    using Fragment = MmaSm80Fragment<WM, WN, BK, BN, KGROUPS>;

    template <bool VECTOR>
    static VYRE_INLINE void run(const VyreGemmArguments &args) {
        VYRE_SHARED_BYTES(panels, kSharedBytes);
        const uint32_t a_panels = shared_address(panels);
        const uint32_t b_panels = a_panels + STAGES * kStageA;
        const uint32_t lane = threadIdx.x % 32, wave = threadIdx.x / 32 % kPositions;
        const uint32_t wave_row = wave / (BN / WN) * WM, wave_column = wave % (BN / WN) * WN;
        const Schedule<BM, BN, BK> schedule(args);

        for (uint64_t item = blockIdx.x; item < schedule.items; item += gridDim.x) {
            if (item != blockIdx.x) {
                __syncthreads(); // the panels are still being read for the tile before
            }
            const Tile tile = tile_of_item<BM, BN, BK>(args, schedule, item);
            Fragment fragment;
            fragment.clear();
            if (tile.k_steps != 0) {
                multiply<VECTOR>(args, tile, fragment, a_panels, b_panels, wave_row, wave_column, lane);
            }
            const bool stores = KGROUPS == 1 || threadIdx.x < kGroupThreads;
            if constexpr (KGROUPS > 1) {
                add_groups(fragment, reinterpret_cast<float *>(panels));
            }
            if (args.split_k > 1 && !add_splits<kGroupThreads>(args, tile, stores, fragment.value)) {
                continue;
            }
            if (stores) {
                store_tile<BM, BN>(args, tile, fragment, wave_row, wave_column, lane);
            }
        }
    }

    // The first group's threads get the sums of all groups, always added in the same order.
    static VYRE_INLINE void add_groups(Fragment &fragment, float *sums) {
        __syncthreads(); // no wave reads the panels any more
        if (threadIdx.x >= kGroupThreads) {
#pragma unroll
            for (int i = 0; i < Fragment::kCount; ++i) {
                sums[((threadIdx.x / kGroupThreads - 1) * Fragment::kCount + i) * kGroupThreads +
                     threadIdx.x % kGroupThreads] = fragment.value[i];
            }
        }
        __syncthreads();
        if (threadIdx.x < kGroupThreads) {
#pragma unroll
            for (int i = 0; i < (KGROUPS - 1) * Fragment::kCount; ++i) {
                fragment.value[i % Fragment::kCount] += sums[i * kGroupThreads + threadIdx.x];
            }
        }
    }

    template <bool VECTOR>
    static VYRE_INLINE void multiply(const VyreGemmArguments &args, const Tile &tile, Fragment &fragment,
                                     uint32_t a_panels, uint32_t b_panels, uint32_t wave_row, uint32_t wave_column,
                                     uint32_t lane) {
        AsyncPanel<BM, BK / 8, kThreads, VECTOR> a(
            static_cast<const unsigned short *>(args.a) + tile.batch * args.stride_a + tile.row * args.lda + tile.k_begin,
            args.lda);
        AsyncPanel<BK, BN / 8, kThreads, VECTOR> b(
            static_cast<const unsigned short *>(args.b) + tile.batch * args.stride_b + tile.k_begin * args.ldb + tile.column,
            args.ldb);
        uint64_t k_left = tile.k_left; // from the next stage to be filled
        uint32_t to_fill = tile.k_steps;
        uint32_t fill = 0, use = 0; // stage numbers

        const auto fill_next = [&] {
            if (to_fill != 0) {
                const uint32_t k = least(k_left, BK);
                a.copy(a_panels + fill * kStageA, tile.rows, k);
                b.copy(b_panels + fill * kStageB, k, tile.columns);
                a.source += BK;
                b.source += BK * args.ldb;
                k_left -= k;
                --to_fill;
                fill = fill + 1 == STAGES ? 0 : fill + 1;
            }
            // Also when nothing was copied: the waits below count groups.
            commit_copies();
        };

#pragma unroll 1
        for (int stage = 0; stage < STAGES - 1; ++stage) {
            fill_next();
        }
        fragment.begin(wave_row, wave_column, threadIdx.x / kGroupThreads, lane);
        wait_copies<STAGES - 2>();
        __syncthreads();
        fragment.load(0, 0, a_panels, b_panels);

#pragma unroll 1
        for (uint32_t k_step = 0; k_step < tile.k_steps; ++k_step) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step == kSteps - 1) {
                    // The next stage has arrived, for every thread's copies; and all waves have
                    // loaded the last of this stage, so that it may be filled again.
                    wait_copies<STAGES - 2>();
                    __syncthreads();
                    use = use + 1 == STAGES ? 0 : use + 1;
                }
                fragment.load((step + 1) % 2, (step + 1) % kSteps, a_panels + use * kStageA, b_panels + use * kStageB);
                if (step == 0) {
                    fill_next();
                }
                fragment.multiply(step % 2);
            }
        }
    }
};

#endif
