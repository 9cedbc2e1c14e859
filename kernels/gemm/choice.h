/* Which vyre_gemm_f16 kernel to launch for a shape, with what grid, shared memory and split of k.
 * Plain C for the host; the figures it rests on are in docs/gemm.md.
 */
#ifndef VYRE_GEMM_CHOICE_H
#define VYRE_GEMM_CHOICE_H

#include <stdint.h>

/* Add "_element" to a name for operands that are not aligned to 16 bytes. */
typedef struct VyreGemmEntry {
    const char *name;
    uint32_t rows, columns; /* of C in a block */
    uint32_t threads, staged_threads; /* of the asynchronous and of the staged loop */
    uint32_t async_shared;  /* bytes of dynamic shared memory on sm_80 and later */
    /* Time on an H200 (sm_90a), in tenths of a nanosecond: of a k while a multiprocessor has one such
     * block and while it has many, and of what a block does besides. Only their ratios matter. */
    uint32_t alone, shared, once;
} VyreGemmEntry;

enum {
    VYRE_GEMM_128X256,
    VYRE_GEMM_128X128,
    VYRE_GEMM_64X128,
    VYRE_GEMM_64X64,
    VYRE_GEMM_32X64,
    VYRE_GEMM_ROWS1,
    VYRE_GEMM_ROWS4,
    VYRE_GEMM_ROWS8,
    VYRE_GEMM_ENTRY_COUNT,
};

static const VyreGemmEntry VYRE_GEMM_ENTRIES[VYRE_GEMM_ENTRY_COUNT] = {
    {"vyre_gemm_f16_128x256", 128, 256, 256, 256, 4 * (128 + 256) * 64 * 2, 150, 135, 40000},
    {"vyre_gemm_f16_128x128", 128, 128, 128, 256, 4 * (128 + 128) * 32 * 2, 165, 116, 35000},
    {"vyre_gemm_f16_64x128", 64, 128, 256, 256, 4 * (64 + 128) * 64 * 2, 115, 92, 25000},
    {"vyre_gemm_f16_64x64", 64, 64, 128, 128, 4 * (64 + 64) * 64 * 2, 65, 37, 15000},
    {"vyre_gemm_f16_32x64", 32, 64, 256, 128, 4 * (32 + 64) * 64 * 2, 48, 33, 10000},
    {"vyre_gemm_f16_rows1", 1, 64, 256, 256, 0, 0, 0, 0},
    {"vyre_gemm_f16_rows4", 4, 64, 256, 256, 0, 0, 0, 0},
    {"vyre_gemm_f16_rows8", 8, 64, 256, 256, 0, 0, 0, 0},
};

enum {
    VYRE_GEMM_LOOP_ASYNC,    /* NVIDIA sm_80 and later */
    VYRE_GEMM_LOOP_STAGED_CUDA, /* older NVIDIA */
    VYRE_GEMM_LOOP_STAGED_HIP,  /* AMD: LDS is static */
};

static inline uint32_t vyre_gemm_dynamic_shared(const VyreGemmEntry *entry, int loop) {
    if (entry->async_shared == 0 || loop == VYRE_GEMM_LOOP_STAGED_HIP) {
        return 0;
    }
    return loop == VYRE_GEMM_LOOP_ASYNC ? entry->async_shared : (entry->rows + entry->columns) * 160;
}

typedef struct VyreGemmChoice {
    uint32_t entry;
    uint32_t split_k;
    uint32_t tile_group;
    uint32_t grid; /* blocks; zero where there is nothing to write */
} VyreGemmChoice;

static inline uint64_t vyre_gemm_ceil(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

static inline uint64_t vyre_gemm_tiles(uint32_t entry, uint64_t m, uint64_t n, uint64_t batch) {
    return vyre_gemm_ceil(m, VYRE_GEMM_ENTRIES[entry].rows) * vyre_gemm_ceil(n, VYRE_GEMM_ENTRIES[entry].columns) * batch;
}

/* fp32 words of workspace; and one uint32_t counter a tile. Nothing is needed when split_k is 1. */
static inline uint64_t vyre_gemm_workspace_floats(const VyreGemmChoice *choice, uint64_t m, uint64_t n, uint64_t batch) {
    const VyreGemmEntry *entry = &VYRE_GEMM_ENTRIES[choice->entry];
    const uint64_t outputs = (uint64_t)entry->rows * entry->columns;
    /* rows1 has fewer outputs than threads, and every thread keeps one. */
    const uint64_t kept = outputs < 256 ? 256 : outputs;
    return choice->split_k > 1 ? vyre_gemm_tiles(choice->entry, m, n, batch) * choice->split_k * kept : 0;
}

/* The grid for a choice made by hand. */
static inline uint32_t vyre_gemm_grid(const VyreGemmChoice *choice, uint64_t m, uint64_t n, uint64_t batch) {
    const uint64_t items = vyre_gemm_tiles(choice->entry, m, n, batch) * choice->split_k;
    return items < 0x100000 ? (uint32_t)items : 0x100000; /* blocks walk what is left over */
}

/* Time in the table's unit, from the blocks on the busiest multiprocessor. */
static inline uint64_t vyre_gemm_time(const VyreGemmEntry *entry, uint64_t tiles, uint64_t k, uint64_t split,
                                      uint32_t units) {
    const uint64_t blocks = vyre_gemm_ceil(tiles * split, units);
    const uint64_t shared = blocks * entry->shared;
    const uint64_t a_k = shared > entry->alone ? shared : entry->alone;
    /* To write partial sums, meet, and read them all in one block. */
    const uint64_t meeting = split > 1 ? 20000 + split * (entry->rows * entry->columns * 3 / 5) : 0;
    return a_k * vyre_gemm_ceil(k, split) + blocks * entry->once + meeting;
}

/* `units`: multiprocessors or compute units of the device. `loop`: VYRE_GEMM_LOOP_*. */
static inline VyreGemmChoice vyre_gemm_choose(uint64_t m, uint64_t n, uint64_t k, uint64_t batch, uint32_t units,
                                              int loop) {
    VyreGemmChoice choice = {VYRE_GEMM_128X128, 1, 8, 0};
    if (m <= 8) {
        /* As many blocks as fill the device twice over; each with 512 k at least. */
        choice.entry = m <= 1 ? VYRE_GEMM_ROWS1 : m <= 4 ? VYRE_GEMM_ROWS4 : VYRE_GEMM_ROWS8;
        const uint64_t tiles = vyre_gemm_tiles(choice.entry, m, n, batch);
        while (tiles != 0 && tiles * choice.split_k * 2 <= 4ull * units && choice.split_k * 1024 <= k) {
            choice.split_k *= 2;
        }
    } else {
        uint64_t best = UINT64_MAX;
        /* AMD's kernels have no 128x256. */
        const uint32_t first = loop == VYRE_GEMM_LOOP_STAGED_HIP ? VYRE_GEMM_128X128 : VYRE_GEMM_128X256;
        for (uint32_t entry = first; entry <= VYRE_GEMM_32X64; ++entry) {
            const uint64_t tiles = vyre_gemm_tiles(entry, m, n, batch);
            /* A tile's k is split only while there are multiprocessors without one. */
            for (uint32_t split = 1; split == 1 || (split <= 64 && tiles * split <= units && split * 256 <= k); split *= 2) {
                const uint64_t time = vyre_gemm_time(&VYRE_GEMM_ENTRIES[entry], tiles, k, split, units);
                if (time < best) {
                    best = time;
                    choice.entry = entry;
                    choice.split_k = split;
                }
            }
        }
    }
    choice.grid = vyre_gemm_grid(&choice, m, n, batch);
    return choice;
}

#endif
