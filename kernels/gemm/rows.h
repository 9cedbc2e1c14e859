// Few rows of A (decode shapes, M <= 8): every byte of B is used once or a few times, so the loop is
// built around reading B at the memory's rate: straight into registers, many loads in flight.
#ifndef VYRE_GEMM_ROWS_H
#define VYRE_GEMM_ROWS_H

constexpr int kRowsThreads = 256;
constexpr int kRowsColumns = 64; // of C in a block: 8 lanes of 8
constexpr int kRowsStep = 256;   // k in a step: 8 loads of 16 bytes a thread, one k of A
constexpr int kRowsGroups = 8;   // partial sums of each output when the loop ends: one each 32 threads

// Where a step's operands lie, moved on from step to step.
struct RowsStep {
    const unsigned short *a, *b; // this thread's k of A's first row; the step's first k and the first column of B
    uint32_t k;                  // inside the matrix
    uint32_t inside;             // columns of the thread's 8
};

// No matrix unit: a lane reads 8 columns of a k row and multiplies them by that k of every row of A.
template <int ROWS>
struct LaneRows {
    static constexpr int kPanelBytes = kRowsStep * ROWS * 4; // A's step as [k][row], in fp32
    float sums[ROWS][8];

    static VYRE_INLINE uint32_t first_column() { return threadIdx.x % 8 * 8; }

    VYRE_INLINE void clear() {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                sums[r][j] = 0.0f;
            }
        }
    }

    template <bool VECTOR>
    VYRE_INLINE void step(const VyreGemmArguments &args, const RowsStep &at, uint32_t rows, float *shared) {
        const uint32_t lane_k = threadIdx.x / 8;
        uint32_t words[8][4];
#pragma unroll
        for (int u = 0; u < 8; ++u) {
            const uint32_t row = hide(lane_k) + u * 32;
            load_elements<8, VECTOR>(words[u], at.b + row * args.ldb, row < at.k ? at.inside : 0);
        }
        __syncthreads(); // the panel's last readers are done
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const uint32_t row = hide(r);
            const uint32_t bits = threadIdx.x < at.k && row < rows ? at.a[row * args.lda] : 0;
            shared[threadIdx.x * ROWS + r] = half_bits_to_float(bits);
        }
        __syncthreads();
#pragma unroll
        for (int u = 0; u < 8; ++u) {
            const float *a_row = shared + (lane_k + u * 32) * ROWS;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float b_value = half_bits_to_float(words[u][j / 2] >> j % 2 * 16 & 0xffff);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    sums[r][j] = fmaf(a_row[r], b_value, sums[r][j]);
                }
            }
        }
    }

    // The four k lanes of each column in 32 lanes, then one sum a group.
    VYRE_INLINE void store_groups(float *shared) const {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float sum = sums[r][j];
                sum += exchange_lane(sum, 8);
                sum += exchange_lane(sum, 16);
                if (threadIdx.x % 32 < 8) {
                    shared[(threadIdx.x / 32 * ROWS + r) * kRowsColumns + first_column() + j] = sum;
                }
            }
        }
    }
};

// ROWS: of A, at most. Lanes: LaneRows, or MmaRows of tile_mma_sm80.h.
template <int ROWS, class Lanes>
struct RowsBlock {
    static constexpr int kOutputs = ROWS * kRowsColumns;
    static constexpr int kPerThread = (kOutputs + kRowsThreads - 1) / kRowsThreads;
    static constexpr int kSumBytes = kRowsGroups * kOutputs * 4;
    static constexpr int kSharedBytes = Lanes::kPanelBytes > kSumBytes ? Lanes::kPanelBytes : kSumBytes;

    template <bool VECTOR>
    static VYRE_INLINE void run(const VyreGemmArguments &args) {
        __shared__ __attribute__((aligned(16))) float shared[kSharedBytes / 4];
        const Schedule<ROWS, kRowsColumns, kRowsStep> schedule(args);
        for (uint64_t item = blockIdx.x; item < schedule.items; item += gridDim.x) {
            const Tile tile = tile_of_item<ROWS, kRowsColumns, kRowsStep>(args, schedule, item);
            float sums[kPerThread];
            multiply<VECTOR>(args, tile, shared, sums);
            if (args.split_k > 1 && !add_splits<kRowsThreads>(args, tile, true, sums)) {
                continue;
            }
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) {
                const uint32_t output = threadIdx.x + i * kRowsThreads;
                const uint32_t row = output / kRowsColumns, column = output % kRowsColumns;
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
        const uint32_t first = Lanes::first_column();
        RowsStep at;
        at.a = static_cast<const unsigned short *>(args.a) + tile.batch * args.stride_a + tile.row * args.lda +
               tile.k_begin + threadIdx.x;
        at.b = static_cast<const unsigned short *>(args.b) + tile.batch * args.stride_b + tile.k_begin * args.ldb +
               tile.column + first;
        at.inside = elements_inside(tile.columns, first, 8);
        uint64_t k_left = tile.k_left;
        Lanes lanes;
        lanes.clear();
#pragma unroll 1
        for (uint32_t k_step = 0; k_step < tile.k_steps; ++k_step) {
            at.k = least(k_left, kRowsStep);
            lanes.template step<VECTOR>(args, at, tile.rows, shared);
            at.a += kRowsStep;
            at.b += kRowsStep * args.ldb;
            k_left -= at.k;
        }
        __syncthreads();
        lanes.store_groups(shared);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kPerThread; ++i) {
            const uint32_t output = threadIdx.x + i * kRowsThreads;
            sums[i] = 0.0f;
            if (kOutputs % kRowsThreads == 0 || output < kOutputs) {
#pragma unroll
                for (int group = 0; group < kRowsGroups; ++group) {
                    sums[i] += shared[group * kOutputs + output];
                }
            }
        }
    }
};

#endif
