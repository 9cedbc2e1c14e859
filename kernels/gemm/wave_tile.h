// One wave's tile of C, 16 rows by 64 columns, for items: A and B go from global memory straight into operands. No
// workgroup memory is taken from the program that calls, and no barrier holds up waves when an item is cut short.
//
// The sum over k has no order of its own, and which column of the tile is which of an instruction is ours to choose. Both
// are chosen so that a lane loads consecutive elements of rows, exchanges none with other lanes, and ends with consecutive
// columns of C: instruction j takes columns j, j + COLUMNS, j + 2 * COLUMNS... of the tile.
//
// VYRE_WAVE_TILE is defined where there is a matrix unit; the layouts of the operands are in instructions.h's sources.

#ifndef VYRE_GEMM_WAVE_TILE_H
#define VYRE_GEMM_WAVE_TILE_H

#include "../vyre_device.h"

#if VYRE_CUDA && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define VYRE_WAVE_TILE 1
#define VYRE_WAVE_TILE_MMA 1
#elif defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || \
    defined(__gfx942__) || defined(__gfx950__)
#define VYRE_WAVE_TILE 1
#define VYRE_WAVE_TILE_MFMA 1
#elif defined(__GFX11__)
#define VYRE_WAVE_TILE 1
#define VYRE_WAVE_TILE_WMMA 1
#endif

#if VYRE_WAVE_TILE

#include "instructions.h"

// Words that are moved by one access.
template <u32 COUNT>
struct alignas(COUNT * 4) VyreWords {
  u32 word[COUNT];
};

// Consecutive halves; zeros past `inside`. Where all are inside and `aligned`, by accesses of up to 16 bytes.
template <u32 WORDS>
VYRE_FUNCTION void vyre_load_halves(u32 (&words)[WORDS], const vyre_f16* from, u32 inside, bool aligned) {
  constexpr u32 ACCESS = WORDS < 4 ? WORDS : 4;
  if (aligned && inside >= 2 * WORDS) {
#pragma unroll
    for (u32 i = 0; i < WORDS; i += ACCESS) {
      const VyreWords<ACCESS> access = *(const VyreWords<ACCESS>*)(from + 2 * i);
#pragma unroll
      for (u32 j = 0; j < ACCESS; j++) words[i + j] = access.word[j];
    }
    return;
  }
#pragma unroll
  for (u32 i = 0; i < WORDS; i++) {
    const u32 low = 2 * i < inside ? from[2 * i].bits : 0, high = 2 * i + 1 < inside ? from[2 * i + 1].bits : 0;
    words[i] = low | high << 16;
  }
}

// Halves `j` of two words, as one word.
VYRE_FUNCTION u32 vyre_pair(u32 first, u32 second, u32 j) {
#if VYRE_CUDA
  return __byte_perm(first, second, j == 0 ? 0x5410 : 0x7632);
#else
  return j == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
#endif
}

#if VYRE_WAVE_TILE_MMA
// Lane 4 g + q has rows g and g + 8 of A and columns 8 g to 8 g + 7 of B, both at k = 8 q to 8 q + 7.
struct VyreWaveUnit {
  static const u32 LANES = 32, STEP = 32;
  static const u32 A_ROWS = 2, A_HALVES = 8, B_ROWS = 8, B_HALVES = 8;
  static const u32 ROWS = 2, COLUMNS = 16;
  f32 sums[8][4];

  static VYRE_METHOD u32 a_row(u32 i, u32 lane) { return i * 8 + lane / 4; }
  static VYRE_METHOD u32 k(u32 lane) { return lane % 4 * 8; }
  static VYRE_METHOD u32 b_column(u32 lane) { return lane / 4 * 8; }
  static VYRE_METHOD u32 row(u32 i, u32 lane) { return i * 8 + lane / 4; }
  static VYRE_METHOD u32 column(u32 lane) { return lane % 4 * 16; }
  VYRE_METHOD f32 sum(u32 i, u32 j) const { return sums[j % 8][i * 2 + j / 8]; }

  VYRE_METHOD void multiply(const u32 (&a)[A_ROWS][A_HALVES / 2], const u32 (&b)[B_ROWS][B_HALVES / 2]) {
#pragma unroll
    for (u32 k = 0; k < 8; k += 4) {
      const u32 operand[4] = {a[0][k / 2], a[1][k / 2], a[0][k / 2 + 1], a[1][k / 2 + 1]};
#pragma unroll
      for (u32 j = 0; j < 8; j++) {
        multiply_16x8x16(sums[j], operand, vyre_pair(b[k][j / 2], b[k + 1][j / 2], j % 2),
                         vyre_pair(b[k + 2][j / 2], b[k + 3][j / 2], j % 2));
      }
    }
  }
};
#elif VYRE_WAVE_TILE_MFMA
// Lane 16 y + x has row x of A and columns 4 x to 4 x + 3 of B, both at k = 8 y to 8 y + 7.
struct VyreWaveUnit {
  static const u32 LANES = 64, STEP = 32;
  static const u32 A_ROWS = 1, A_HALVES = 8, B_ROWS = 8, B_HALVES = 4;
  static const u32 ROWS = 4, COLUMNS = 4;
  f32 sums[4][4];

  static VYRE_METHOD u32 a_row(u32, u32 lane) { return lane % 16; }
  static VYRE_METHOD u32 k(u32 lane) { return lane / 16 * 8; }
  static VYRE_METHOD u32 b_column(u32 lane) { return lane % 16 * 4; }
  static VYRE_METHOD u32 row(u32 i, u32 lane) { return lane / 16 * 4 + i; }
  static VYRE_METHOD u32 column(u32 lane) { return lane % 16 * 4; }
  VYRE_METHOD f32 sum(u32 i, u32 j) const { return sums[j][i]; }

  VYRE_METHOD void multiply(const u32 (&a)[A_ROWS][A_HALVES / 2], const u32 (&b)[B_ROWS][B_HALVES / 2]) {
#pragma unroll
    for (u32 k = 0; k < 8; k += 4) {
#pragma unroll
      for (u32 j = 0; j < 4; j++) {
        const VyreWords<2> left = {{a[0][k / 2], a[0][k / 2 + 1]}};
        const VyreWords<2> right = {{vyre_pair(b[k][j / 2], b[k + 1][j / 2], j % 2),
                                     vyre_pair(b[k + 2][j / 2], b[k + 3][j / 2], j % 2)}};
        mfma_16x16x16(sums[j], __builtin_bit_cast(MfmaOperand, left), __builtin_bit_cast(MfmaOperand, right));
      }
    }
  }
};
#else
// Lanes x and 16 + x have row x of A and columns 4 x to 4 x + 3 of B at all of 16 k.
struct VyreWaveUnit {
  static const u32 LANES = 32, STEP = 16;
  static const u32 A_ROWS = 1, A_HALVES = 16, B_ROWS = 16, B_HALVES = 4;
  static const u32 ROWS = 8, COLUMNS = 4;
  f32 sums[4][8];

  static VYRE_METHOD u32 a_row(u32, u32 lane) { return lane % 16; }
  static VYRE_METHOD u32 k(u32) { return 0; }
  static VYRE_METHOD u32 b_column(u32 lane) { return lane % 16 * 4; }
  static VYRE_METHOD u32 row(u32 i, u32 lane) { return i * 2 + lane / 16; }
  static VYRE_METHOD u32 column(u32 lane) { return lane % 16 * 4; }
  VYRE_METHOD f32 sum(u32 i, u32 j) const { return sums[j][i]; }

  VYRE_METHOD void multiply(const u32 (&a)[A_ROWS][A_HALVES / 2], const u32 (&b)[B_ROWS][B_HALVES / 2]) {
    const WmmaOperand left = __builtin_bit_cast(WmmaOperand, a[0]);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      u32 right[8];
#pragma unroll
      for (u32 i = 0; i < 8; i++) right[i] = vyre_pair(b[2 * i][j / 2], b[2 * i + 1][j / 2], j % 2);
      wmma_16x16x16(sums[j], left, __builtin_bit_cast(WmmaOperand, right));
    }
  }
};
#endif

// What a lane loads for one step over k.
struct VyreWaveOperands {
  u32 a[VyreWaveUnit::A_ROWS][VyreWaveUnit::A_HALVES / 2];
  u32 b[VyreWaveUnit::B_ROWS][VyreWaveUnit::B_HALVES / 2];
};

// Where a tile's operands lie, and how much of it is inside the matrices.
struct VyreWavePanels {
  const vyre_f16 *a, *b;  // the lane's first of the step's
  u32 lda, ldb;
  u32 rows, columns;      // of C from the lane's own first on
  bool aligned;
};

// Loads the step at which `k` are left, and goes on to the next. Nothing is loaded if none is left.
VYRE_FUNCTION void vyre_load_step(VyreWaveOperands& to, VyreWavePanels& panels, u32 left, u32 lane) {
  typedef VyreWaveUnit Unit;
  const u32 k = Unit::k(lane), inside = left > k ? left - k : 0;
#pragma unroll
  for (u32 i = 0; i < Unit::A_ROWS; i++) {
    const u32 row = Unit::a_row(i, lane);
    vyre_load_halves(to.a[i], panels.a + (u64)row * panels.lda, row < panels.rows ? inside : 0, panels.aligned);
  }
#pragma unroll
  for (u32 i = 0; i < Unit::B_ROWS; i++) {
    vyre_load_halves(to.b[i], panels.b + (u64)i * panels.ldb, i < inside ? panels.columns : 0, panels.aligned);
  }
  panels.a += Unit::STEP;
  panels.b += (u64)Unit::STEP * panels.ldb;
}

#endif
#endif
