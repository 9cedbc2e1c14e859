// NVIDIA sm_90a: wgmma reads both operands from shared memory, so that a warpgroup multiplies 64 x 256
// by 16 in one instruction while cp.async fills the stages behind it. Layouts: PTX ISA, "Asynchronous
// warpgroup level matrix instructions": "Shared memory matrix layout", "Matrix descriptor" and the
// register fragment of D for m64nNk16, which is mma.m16n8k16's in every warp.
#ifndef VYRE_GEMM_TILE_WGMMA_SM90_H
#define VYRE_GEMM_TILE_WGMMA_SM90_H

// A panel of 128-byte rows, swizzled as `swizzled<8>` does: the hardware's 128-byte swizzle.
// `leading` and `stride`: bytes from one 8 x 128-byte block to the next, across and along the rows.
VYRE_INLINE uint64_t matrix_descriptor(uint32_t shared, uint32_t leading, uint32_t stride) {
    return static_cast<uint64_t>(shared >> 4 & 0x3fff) | static_cast<uint64_t>(leading >> 4) << 16 |
           static_cast<uint64_t>(stride >> 4) << 32 | 1ull << 62;
}

// What this thread's copies wrote becomes visible to the matrix unit once a barrier has followed.
VYRE_INLINE void publish_to_matrix_unit() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

VYRE_INLINE void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
VYRE_INLINE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int PENDING>
VYRE_INLINE void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

#define VYRE_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define VYRE_F16(i) VYRE_F4(i), VYRE_F4(i + 4), VYRE_F4(i + 8), VYRE_F4(i + 12)
// A with k contiguous, B with columns contiguous (the last 1: transposed).
VYRE_INLINE void multiply_64x256x16(float (&d)[128], uint64_t a, uint64_t b) {
    asm volatile(
        "{\n.reg .pred accumulate;\nsetp.eq.u32 accumulate, 1, 1;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
        "}, %128, %129, accumulate, 1, 1, 0, 1;\n}\n"
        : VYRE_F16(0), VYRE_F16(16), VYRE_F16(32), VYRE_F16(48), VYRE_F16(64), VYRE_F16(80), VYRE_F16(96), VYRE_F16(112)
        : "l"(a), "l"(b));
}
#undef VYRE_F16
#undef VYRE_F4

// 64 x 256 of the tile in a warpgroup, 16 x 256 of it in each of its warps.
struct WgmmaFragment {
    static constexpr int kCount = 128;
    static constexpr bool kPairs = true, kQuads = true;
    float value[kCount];

    VYRE_INLINE void clear() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            value[i] = 0.0f;
        }
    }

    static VYRE_INLINE uint32_t row(int i, uint32_t lane) { return i % 4 / 2 * 8 + lane / 4; }
    static VYRE_INLINE uint32_t column(int i, uint32_t lane) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }
};

// AsyncBlock's counterpart for 128 x 256: two warpgroups, each 64 rows.
template <int STAGES>
struct WgmmaBlock {
    static constexpr int kRows = 128, kColumns = 256, kStep = 64;
    static constexpr int kThreads = 256;
    static constexpr int kStageA = kRows * kStep * 2, kStageB = kStep * kColumns * 2;
    static constexpr int kSharedBytes = STAGES * (kStageA + kStageB);
    // B's panel is cut into 64 columns each, so that every row has 128 bytes.
    static constexpr int kCutB = kStep * 128;

    template <bool VECTOR>
    static VYRE_INLINE void run(const VyreGemmArguments &args) {
        extern __shared__ __align__(1024) unsigned char blocks[];
        const uint32_t a_panels = shared_address(blocks);
        const uint32_t b_panels = a_panels + STAGES * kStageA;
        const uint32_t lane = threadIdx.x % 32, wave_row = threadIdx.x / 32 * 16;
        const Schedule<kRows, kColumns, kStep> schedule(args);

        for (uint64_t item = blockIdx.x; item < schedule.items; item += gridDim.x) {
            if (item != blockIdx.x) {
                __syncthreads(); // the panels are still being read for the tile before
            }
            const Tile tile = tile_of_item<kRows, kColumns, kStep>(args, schedule, item);
            WgmmaFragment fragment;
            fragment.clear();
            if (tile.k_steps != 0) {
                multiply<VECTOR>(args, tile, fragment, a_panels, b_panels);
            }
            if (args.split_k > 1 && !add_splits<kThreads>(args, tile, true, fragment.value)) {
                continue;
            }
            store_tile<kRows, kColumns>(args, tile, fragment, wave_row, 0, lane);
        }
    }

    template <bool VECTOR>
    static VYRE_INLINE void multiply(const VyreGemmArguments &args, const Tile &tile, WgmmaFragment &fragment,
                                     uint32_t a_panels, uint32_t b_panels) {
        AsyncPanel<kRows, kStep / 8, kThreads, VECTOR> a(
            static_cast<const unsigned short *>(args.a) + tile.batch * args.stride_a + tile.row * args.lda + tile.k_begin,
            args.lda);
        AsyncPanel<kStep, kColumns / 8, kThreads, VECTOR, kCutB> b(
            static_cast<const unsigned short *>(args.b) + tile.batch * args.stride_b + tile.k_begin * args.ldb + tile.column,
            args.ldb);
        uint64_t k_left = tile.k_left;
        uint32_t to_fill = tile.k_steps, fill = 0, use = 0;
        const uint32_t group_row = threadIdx.x / 128 * 64;

        const auto fill_next = [&] {
            if (to_fill != 0) {
                const uint32_t k = least(k_left, kStep);
                a.copy(a_panels + fill * kStageA, tile.rows, k);
                b.copy(b_panels + fill * kStageB, k, tile.columns);
                a.source += kStep;
                b.source += kStep * args.ldb;
                k_left -= k;
                --to_fill;
                fill = fill + 1 == STAGES ? 0 : fill + 1;
            }
            commit_copies();
        };

#pragma unroll 1
        for (int stage = 0; stage < STAGES - 2; ++stage) {
            fill_next();
        }
#pragma unroll 1
        for (uint32_t k_step = 0; k_step < tile.k_steps; ++k_step) {
            // Stage k_step has arrived. All warpgroups have finished the products of k_step - 2: the
            // stage filled next is theirs, while those of k_step - 1 may still be running.
            wait_copies<STAGES - 3>();
            publish_to_matrix_unit();
            __syncthreads();
            fill_next();
            begin_products();
#pragma unroll
            for (int k = 0; k < kStep / 16; ++k) {
                multiply_64x256x16(fragment.value,
                                   matrix_descriptor(a_panels + use * kStageA + group_row * 128 + k * 32, 16, 1024),
                                   matrix_descriptor(b_panels + use * kStageB + k * 16 * 128, kCutB, 1024));
            }
            commit_products();
            wait_products<1>();
            use = use + 1 == STAGES ? 0 : use + 1;
        }
        wait_products<0>();
    }
};

#endif
