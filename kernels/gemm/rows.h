// Few rows of A (decode shapes, M <= 8): every byte of B is used once or a few times, so the loop is
// built around reading B at the memory's rate. No matrix unit, no tile of B in shared memory: a lane
// reads 8 columns of a k row and multiplies them by that k of every row of A.
#ifndef VYRE_GEMM_ROWS_H
#define VYRE_GEMM_ROWS_H

template <int ROWS>
struct RowsBlock {
    static constexpr int kThreads = 256;
    static constexpr int kColumns = 64;                          // of C in a block: 8 lanes of 8
    static constexpr int kLanesK = kThreads / (kColumns / 8);    // k rows read at once
    static constexpr int kUnroll = 8;                            // loads in flight a thread
    static constexpr int kStep = kLanesK * kUnroll;              // k rows a step
    static constexpr int kGroups = kThreads / 32;                // partial sums a column after the lanes' exchange
    static constexpr int kOutputs = ROWS * kColumns;
    static constexpr int kPerThread = (kOutputs + kThreads - 1) / kThreads;
    static_assert(kStep == kThreads, "one k of A a thread and step");
    // A's step as [k][row], later the groups' sums.
    static constexpr int kPanelBytes = kStep * ROWS * 4;
    static constexpr int kSumBytes = kGroups * kOutputs * 4;
    static constexpr int kSharedBytes = kPanelBytes > kSumBytes ? kPanelBytes : kSumBytes;

    template <bool VECTOR>
    static VYRE_INLINE void run(const VyreGemmArguments &args) {
        __shared__ __attribute__((aligned(16))) float shared[kSharedBytes / 4];
        const Schedule<ROWS, kColumns, kStep> schedule(args);
        for (uint64_t item = blockIdx.x; item < schedule.items; item += gridDim.x) {
            const Tile tile = tile_of_item<ROWS, kColumns, kStep>(args, schedule, item);
            float sums[kPerThread];
            multiply<VECTOR>(args, tile, shared, sums);
            if (args.split_k > 1 && !add_splits<kThreads>(args, tile, true, sums)) {
                continue;
            }
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) {
                const uint32_t output = threadIdx.x + i * kThreads;
                const uint32_t row = output / kColumns, column = output % kColumns;
                if (row < tile.rows && column < tile.columns) {
                    store_element(args, tile.batch * args.stride_c + (tile.row + row) * args.ldc + tile.column + column,
                                  sums[i]);
                }
            }
        }
    }

    template <bool VECTOR>
    static VYRE_INLINE void multiply(const VyreGemmArguments &args, const Tile &tile, float *shared,
                                     float (&sums)[kPerThread]) {
        const uint32_t lane_k = threadIdx.x / 8, first = threadIdx.x % 8 * 8;
        const uint32_t inside = elements_inside(tile.columns, first, 8);
        const unsigned short *a = static_cast<const unsigned short *>(args.a) + tile.batch * args.stride_a +
                                  tile.row * args.lda + tile.k_begin + threadIdx.x;
        const unsigned short *b = static_cast<const unsigned short *>(args.b) + tile.batch * args.stride_b +
                                  (tile.k_begin + lane_k) * args.ldb + tile.column + first;
        float accumulators[ROWS][8];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                accumulators[r][j] = 0.0f;
            }
        }
        uint64_t k_left = tile.k_left;
#pragma unroll 1
        for (uint32_t k_step = 0; k_step < tile.k_steps; ++k_step) {
            const uint32_t k = least(k_left, kStep);
            uint32_t words[kUnroll][4];
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                load_elements<8, VECTOR>(words[u], b + u * kLanesK * args.ldb, lane_k + u * kLanesK < k ? inside : 0);
            }
            __syncthreads(); // the panel's last readers are done
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const uint32_t bits = threadIdx.x < k && r < tile.rows ? a[r * args.lda] : 0;
                shared[threadIdx.x * ROWS + r] = half_bits_to_float(bits);
            }
            __syncthreads();
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                const float *a_row = shared + (lane_k + u * kLanesK) * ROWS;
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    const float b_value = half_bits_to_float(words[u][j / 2] >> j % 2 * 16 & 0xffff);
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        accumulators[r][j] = fmaf(a_row[r], b_value, accumulators[r][j]);
                    }
                }
            }
            a += kStep;
            b += kStep * args.ldb;
            k_left -= k;
        }
        // The four k lanes of each column in 32 lanes, then the groups of 32.
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float sum = accumulators[r][j];
                sum += exchange_lane(sum, 8);
                sum += exchange_lane(sum, 16);
                if (threadIdx.x % 32 < 8) {
                    shared[threadIdx.x / 32 * kOutputs + r * kColumns + first + j] = sum;
                }
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            const uint32_t output = threadIdx.x + i * kThreads;
            sums[i] = 0.0f;
            if (kOutputs % kThreads == 0 || output < kOutputs) {
#pragma unroll
                for (int group = 0; group < kGroups; ++group) {
                    sums[i] += shared[group * kOutputs + output];
                }
            }
        }
    }
};

#endif
