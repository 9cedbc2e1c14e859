// Which tile a block computes, and how blocks that share a tile's k range add up.
#ifndef VYRE_GEMM_SCHEDULE_H
#define VYRE_GEMM_SCHEDULE_H

// The problem cut into tiles. A work item is one split of one tile of one problem of the batch; a
// grid of any size walks all items with its own width as the stride.
template <int BM, int BN, int BK>
struct Schedule {
    uint64_t tiles_m, tiles_n, tiles, items;
    uint64_t k_tiles; // in the whole k range; zero where A and B must not be read

    VYRE_INLINE explicit Schedule(const VyreGemmArguments &args) {
        tiles_m = ceil_divide(args.m, BM);
        tiles_n = ceil_divide(args.n, BN);
        tiles = tiles_m * tiles_n;
        items = tiles * args.batch * args.split_k;
        k_tiles = args.alpha == 0.0f ? 0 : ceil_divide(args.k, BK);
    }
};

struct Tile {
    uint64_t batch;
    uint64_t index; // of the tile in the whole batch: where its partial sums and its counter live
    uint64_t row, column;
    uint32_t split;
    uint32_t rows, columns;       // of C inside this tile
    uint64_t k_begin;             // first element of the k range
    uint64_t k_left;              // elements from there to the matrix's end
    uint32_t k_steps;             // steps of BK, the last one possibly partial
};

template <int BM, int BN, int BK>
VYRE_INLINE Tile tile_of_item(const VyreGemmArguments &args, const Schedule<BM, BN, BK> &schedule, uint64_t item) {
    Tile tile;
    tile.split = 0;
    if (args.split_k > 1) {
        const uint64_t whole = divide(item, args.split_k);
        tile.split = static_cast<uint32_t>(item - whole * args.split_k);
        item = whole;
    }
    tile.index = item;
    tile.batch = 0;
    if (args.batch > 1) {
        tile.batch = divide(item, schedule.tiles);
        item -= tile.batch * schedule.tiles;
    }
    // Groups of tile rows, each walked column by column: the blocks that run together then share
    // few rows of A and few columns of B, which stay in L2.
    const uint64_t group_tiles = args.tile_group * schedule.tiles_n;
    const uint64_t group = divide(item, group_tiles);
    const uint64_t first_row = group * args.tile_group;
    const uint32_t group_rows = least(schedule.tiles_m - first_row, args.tile_group);
    const uint64_t inside = item - group * group_tiles;
    const uint64_t tile_column = divide(inside, group_rows);
    tile.row = (first_row + (inside - tile_column * group_rows)) * BM;
    tile.column = tile_column * BN;
    tile.rows = least(args.m - tile.row, BM);
    tile.columns = least(args.n - tile.column, BN);

    uint64_t first_step = 0, last_step = schedule.k_tiles;
    if (args.split_k > 1) {
        first_step = divide(schedule.k_tiles * tile.split, args.split_k);
        last_step = divide(schedule.k_tiles * (tile.split + 1ull), args.split_k);
    }
    tile.k_begin = first_step * BK;
    tile.k_left = last_step > first_step ? args.k - tile.k_begin : 0;
    tile.k_steps = static_cast<uint32_t>(last_step - first_step);
    return tile;
}

// Adds the partial sums of the blocks that share a tile. Returns whether this block is the one that
// came last: it then holds the total, always added in the order of the splits, so that the same
// inputs give the same bits whichever block that is. The others are done.
//
// Partial sums are kept in the order of the accumulators, not of C: the last block's threads hold
// the same elements as every other block's, and all accesses are coalesced.
// The first THREADS threads of the block hold sums (`holds`); all of its threads call.
template <int THREADS, int COUNT>
VYRE_INLINE bool add_splits(const VyreGemmArguments &args, const Tile &tile, bool holds,
                            float (&accumulators)[COUNT]) {
    __shared__ uint32_t arrived;
    const uint64_t tile_floats = static_cast<uint64_t>(THREADS) * COUNT;
    float *partials = args.workspace + tile.index * args.split_k * tile_floats + threadIdx.x;
    float *mine = partials + tile.split * tile_floats;
    if (holds) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            mine[i * THREADS] = accumulators[i];
        }
    }
    // Release: every thread's stores, device-wide, before its block's arrival is counted.
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        arrived = atomicAdd(&args.counters[tile.index], 1u);
    }
    __syncthreads();
    if (arrived != args.split_k - 1) {
        return false;
    }
    // Acquire: pairs with the fence above in the blocks that were counted before.
    __threadfence();
    if (threadIdx.x == 0) {
        args.counters[tile.index] = 0;
    }
    if (!holds) {
        return true;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        accumulators[i] = 0.0f;
    }
    // The partial sums of several splits in flight, where registers allow it.
#pragma unroll kPartialsAhead && COUNT <= 32 ? 4 : 1
    for (uint32_t split = 0; split < args.split_k; ++split) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            accumulators[i] += partials[split * tile_floats + i * THREADS];
        }
    }
    return true;
}

#endif
