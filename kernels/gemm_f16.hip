// fp16 matrix product with fp32 accumulation; gemm/arguments.h says what is computed, gemm/choice.h
// which kernel to launch with what grid. One source for both vendors: the loop and the matrix unit
// are chosen by the architecture that is compiled for.
#include "gemm/arguments.h"
#include "gemm/gemm_device.h"
#include "gemm/schedule.h"
#include "gemm/epilogue.h"
#include "gemm/block_staged.h"
#include "gemm/rows.h"

// The first three are the bench's, to run on one device what other architectures compile.
#if defined(VYRE_GEMM_FORCE_PLAIN)
#define VYRE_GEMM_UNIT_PLAIN 1
#elif defined(VYRE_GEMM_EMULATE_MFMA)
#define VYRE_GEMM_UNIT_MFMA 1
#elif defined(VYRE_GEMM_EMULATE_WMMA)
#define VYRE_GEMM_UNIT_WMMA 1
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define VYRE_GEMM_UNIT_MMA_SM80 1
#elif defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || \
    defined(__gfx942__) || defined(__gfx950__)
#define VYRE_GEMM_UNIT_MFMA 1
#elif defined(__GFX11__)
#define VYRE_GEMM_UNIT_WMMA 1
#else
#define VYRE_GEMM_UNIT_PLAIN 1
#endif

#if defined(VYRE_GEMM_UNIT_MMA_SM80)
#include "gemm/tile_mma_sm80.h"
#include "gemm/block_async.h"
template <int BM, int BN, int STAGED_THREADS, int THREADS, int RESIDENT, int BK, int STAGES, int KGROUPS>
struct TileBlock {
    static constexpr int kThreads = THREADS, kResident = RESIDENT;
    static constexpr int kWavesM = 2, kWavesN = THREADS / 32 / kWavesM / KGROUPS;
    using Block = AsyncBlock<BM, BN, BK, BM / kWavesM, BN / kWavesN, STAGES, KGROUPS>;
};
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "gemm/tile_wgmma_sm90.h"
template <int STAGED_THREADS>
struct TileBlock<128, 256, STAGED_THREADS, 256, 1, 64, 4, 1> {
    static constexpr int kThreads = 256, kResident = 1;
    using Block = WgmmaBlock<4>;
};
#endif
template <int ROWS>
struct RowsLanes {
    using Lanes = MmaRows<ROWS>;
};
template <>
struct RowsLanes<1> { // waiting for memory either way, with less to do
    using Lanes = LaneRows<1>;
};
#else
template <int ROWS>
struct RowsLanes {
    using Lanes = LaneRows<ROWS>;
};
#if defined(VYRE_GEMM_UNIT_MFMA)
#include "gemm/tile_mfma.h"
template <int WM, int WN>
using UnitFragment = MfmaFragment<WM, WN>;
#elif defined(VYRE_GEMM_UNIT_WMMA)
#include "gemm/tile_wmma.h"
template <int WM, int WN>
using UnitFragment = WmmaFragment<WM, WN>;
#else
#include "gemm/tile_plain.h"
template <int WM, int WN>
using UnitFragment = PlainFragment<WM, WN>;
#endif
// What stands behind STAGED_THREADS is the asynchronous loop's.
template <int BM, int BN, int STAGED_THREADS, int, int, int, int, int>
struct TileBlock {
    static constexpr int kResident = 1;
    static constexpr int kThreads = STAGED_THREADS, kWaves = kThreads / kWaveWidth;
    static constexpr int kWavesM = BM == 32 && kWaves == 2 ? 1 : 2, kWavesN = kWaves / kWavesM;
    using Block = StagedBlock<BM, BN, BM / kWavesM, BN / kWavesN, UnitFragment<BM / kWavesM, BN / kWavesN>>;
};
#endif

// Two entries a tile: 16-byte accesses where a, b, lda, ldb and the strides are multiples of 16
// bytes, and element by element for any alignment.
#define VYRE_GEMM_ENTRY(NAME, VECTOR, BM, BN, ...)                                                       \
    extern "C" __global__ void __launch_bounds__((TileBlock<BM, BN, __VA_ARGS__>::kThreads),             \
                                                      (TileBlock<BM, BN, __VA_ARGS__>::kResident))           \
        NAME(VyreGemmArguments args) {                                                                   \
        using Choice = TileBlock<BM, BN, __VA_ARGS__>;                                                   \
        static_assert(Choice::Block::kThreads == Choice::kThreads, "the launch gives this many threads"); \
        Choice::Block::run<VECTOR>(args);                                                                \
    }
#define VYRE_GEMM_TILE(BM, BN, ...)                                                                      \
    VYRE_GEMM_ENTRY(vyre_gemm_f16_##BM##x##BN, true, BM, BN, __VA_ARGS__)                                \
    VYRE_GEMM_ENTRY(vyre_gemm_f16_##BM##x##BN##_element, false, BM, BN, __VA_ARGS__)

// Two blocks on a multiprocessor keep enough loads in flight; AMD's compiler is left to choose.
#if defined(__CUDACC__)
#define VYRE_GEMM_ROWS_BOUNDS __launch_bounds__(256, 2)
#else
#define VYRE_GEMM_ROWS_BOUNDS __launch_bounds__(256)
#endif
#define VYRE_GEMM_ROWS_ENTRY(NAME, ROWS, VECTOR)                                     \
    extern "C" __global__ void VYRE_GEMM_ROWS_BOUNDS NAME(VyreGemmArguments args) { \
        RowsBlock<ROWS, RowsLanes<ROWS>::Lanes>::run<VECTOR>(args);                  \
    }
#define VYRE_GEMM_ROWS(ROWS)                                             \
    VYRE_GEMM_ROWS_ENTRY(vyre_gemm_f16_rows##ROWS, ROWS, true)           \
    VYRE_GEMM_ROWS_ENTRY(vyre_gemm_f16_rows##ROWS##_element, ROWS, false)

// BM, BN, threads of the staged loop; threads, blocks on a multiprocessor, BK, stages and k groups of
// the asynchronous one. gemm/choice.h says the same to the host.
#if defined(__CUDACC__) // more sums a lane than AMD's compiler finds registers for
VYRE_GEMM_TILE(128, 256, 256, 256, 1, 64, 4, 1)
#endif
VYRE_GEMM_TILE(128, 128, 256, 128, 2, 32, 4, 1)
VYRE_GEMM_TILE(64, 128, 256, 256, 1, 64, 4, 1)
VYRE_GEMM_TILE(64, 64, 128, 128, 3, 64, 4, 1)
VYRE_GEMM_TILE(32, 64, 128, 256, 2, 64, 4, 2)
VYRE_GEMM_ROWS(1)
VYRE_GEMM_ROWS(4)
VYRE_GEMM_ROWS(8)
