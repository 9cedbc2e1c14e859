// External functions of `vyre_foundation::externals`, for emitted kernels that call them: one workgroup does the whole
// call, a wave with the matrix unit a tile at a time where there is one. Large products are for the kernels of their own.

#ifndef VYRE_EXTERNALS_H
#define VYRE_EXTERNALS_H

#include "gemm/wave_tile.h"
#include "vyre_device.h"

// A matrix inside of a buffer: row-major, rows `stride` elements apart.
template <class Element>
struct VyreMatrix {
  VyreBuffer<Element> buffer;
  u64 offset;
  u32 stride;

  // Elements of the buffer from the offset on.
  VYRE_METHOD u64 reach() const { return offset < buffer.len ? buffer.len - offset : 0; }
  // Rows that begin before the end of the buffer, of those from a column on.
  VYRE_METHOD u64 rows(u32 column) const { return reach() > column ? (reach() - column - 1) / stride + 1 : 0; }
  // Elements of a row before the end of the buffer; more than the row has, perhaps.
  VYRE_METHOD u64 columns(u32 row) const {
    const u64 first = (u64)row * stride;
    return reach() > first ? reach() - first : 0;
  }

  // Whether all of so many rows and columns lie in the buffer.
  VYRE_METHOD bool holds(u32 rows, u32 columns) const {
    return rows == 0 || columns == 0 || place(rows - 1, columns - 1) < reach();
  }
  VYRE_METHOD Element* at(u32 row, u32 column) const { return buffer.data + (offset + place(row, column)); }
  // Whether every row begins at a multiple of so many bytes.
  VYRE_METHOD bool is_aligned(u32 bytes) const {
    return ((u64)at(0, 0) | (u64)stride * sizeof(Element)) % bytes == 0;
  }

  // Row and column are below 2^32, so this is no more than 2^64 - 2^32.
  VYRE_METHOD u64 place(u32 row, u32 column) const { return (u64)row * stride + column; }
  VYRE_METHOD f32 load(u32 row, u32 column) const {
    const u64 at = place(row, column);
    return at < reach() ? buffer.get((u32)(offset + at)) : 0.0f;
  }
  VYRE_METHOD void store(u32 row, u32 column, f32 value) const {
    const u64 at = place(row, column);
    if (at < reach()) buffer.put((u32)(offset + at), value);
  }
};

VYRE_FUNCTION u32 vyre_at_most(u32 count, u64 limit) { return limit < count ? (u32)limit : count; }

template <class Element>
struct VyreProduct {
  u32 m, n, k;  // k is 0 where A and B are not read
  f32 alpha, beta;
  VyreMatrix<vyre_f16> a, b;
  VyreMatrix<Element> c;
};

template <class Element>
VYRE_FUNCTION f32 vyre_blend(const VyreProduct<Element>& product, f32 sum, const Element* old) {
  if (product.beta == 0.0f) return vyre_mul(product.alpha, sum);
  return vyre_fma(product.alpha, sum, vyre_mul(product.beta, vyre_widen(*old)));
}

#if VYRE_WAVE_TILE
// Steps over k between two looks at whether to go on: a few microseconds.
#define VYRE_WAVE_STEPS 64u

// Whether all invocations of the workgroup have come here: matrix instructions are for whole waves.
VYRE_FUNCTION bool vyre_all_came(const VyreContext& vyre) {
#if VYRE_CUDA
  return __syncthreads_count(1) == (int)vyre.invocations;
#else
  return true;
#endif
}

// A wave leaves as a whole.
template <class Context>
VYRE_FUNCTION bool vyre_wave_leaves(Context& vyre) {
#if VYRE_CUDA
  const bool leaves = __any_sync(0xffffffffu, vyre_aborted(vyre));
#else
  const bool leaves = __any(vyre_aborted(vyre));
#endif
  if (leaves) vyre_leave(vyre);
  return leaves;
}

// A tile of a product, and how much of it is inside of C.
struct VyreTile {
  u32 row, column, rows, columns;
};

// C has at most 2^32 elements, so there are fewer tiles.
template <class Element>
VYRE_FUNCTION u32 vyre_tiles(const VyreProduct<Element>& product) {
  return ((product.m - 1) / 16 + 1) * ((product.n - 1) / 64 + 1);
}

// Waves side by side share columns of B, which stay in the cache.
template <class Element>
VYRE_FUNCTION VyreTile vyre_tile(const VyreProduct<Element>& product, u32 index) {
  const u32 down = (product.m - 1) / 16 + 1, row = index % down * 16, column = index / down * 64;
  return VyreTile{row, column, vyre_min(product.m - row, 16u), vyre_min(product.n - column, 64u)};
}

template <class Element>
VYRE_FUNCTION VyreWavePanels vyre_panels(const VyreProduct<Element>& product, const VyreTile& tile, u32 lane) {
  const VyreMatrix<vyre_f16>&a = product.a, &b = product.b;
  const u32 k = VyreWaveUnit::k(lane), first = VyreWaveUnit::b_column(lane);
  return VyreWavePanels{a.at(tile.row, k), b.at(k, tile.column + first), a.stride, b.stride, tile.rows,
                        tile.columns > first ? tile.columns - first : 0, a.is_aligned(16) && b.is_aligned(16)};
}

// A lane's part of a tile.
template <class Element>
VYRE_FUNCTION void vyre_store_tile(const VyreProduct<Element>& product, const VyreTile& tile, const VyreWaveUnit& unit,
                                   u32 lane) {
  constexpr u32 COLUMNS = VyreWaveUnit::COLUMNS, SIZE = sizeof(Element);
  constexpr u32 ACCESS = COLUMNS * SIZE < 16 ? COLUMNS : 16 / SIZE;
  struct alignas(ACCESS * SIZE) Run {
    Element element[ACCESS];
  };
  const u32 first = VyreWaveUnit::column(lane);
  Element* to = product.c.at(tile.row, tile.column + first);
  const bool whole = first + COLUMNS <= tile.columns && product.c.is_aligned(16);
#pragma unroll
  for (u32 i = 0; i < VyreWaveUnit::ROWS; i++) {
    const u32 row = VyreWaveUnit::row(i, lane);
    if (row >= tile.rows) continue;
    Element* at = to + (u64)row * product.c.stride;
    if (whole) {
#pragma unroll
      for (u32 j = 0; j < COLUMNS; j += ACCESS) {
        Run run;
        if (product.beta != 0.0f) run = *(const Run*)(at + j);
#pragma unroll
        for (u32 l = 0; l < ACCESS; l++) {
          vyre_narrow(run.element[l], vyre_blend(product, unit.sum(i, j + l), &run.element[l]));
        }
        *(Run*)(at + j) = run;
      }
    } else {
#pragma unroll
      for (u32 j = 0; j < COLUMNS; j++) {
        if (first + j < tile.columns) vyre_narrow(at[j], vyre_blend(product, unit.sum(i, j), at + j));
      }
    }
  }
}

// All of a product whose matrices lie in their buffers, a tile to a wave. Lanes that make no whole wave have no part.
template <class Context, class Element>
VYRE_FUNCTION void vyre_gemm_tiles(Context& vyre, const VyreProduct<Element>& product) {
  typedef VyreWaveUnit Unit;
  const u32 lane = vyre.local % Unit::LANES, wave = vyre.local / Unit::LANES, waves = vyre.invocations / Unit::LANES;
  if (wave >= waves) return;
  u32 steps = 0;
  for (u32 index = wave; index < vyre_tiles(product); index += waves) {
    const VyreTile tile = vyre_tile(product, index);
    VyreWavePanels panels = vyre_panels(product, tile, lane);
    Unit unit = {};
    // One step at a time: operands of two take registers that the lanes of a resident kernel need to be resident.
#pragma unroll 1
    for (u32 left = product.k; left != 0; left = left > Unit::STEP ? left - Unit::STEP : 0) {
      VyreWaveOperands operands;
      vyre_load_step(operands, panels, left, lane);
      unit.multiply(operands.a, operands.b);
      if (++steps % VYRE_WAVE_STEPS == 0 && vyre_wave_leaves(vyre)) return;
    }
    vyre_store_tile(product, tile, unit, lane);
    if (++steps % VYRE_WAVE_STEPS == 0 && vyre_wave_leaves(vyre)) return;
  }
}
#endif

// Each invocation some elements of C. What lies past the ends of the buffers is passed over: rows and columns of C, and
// terms of which both factors are zero.
template <class Context, class Element>
VYRE_FUNCTION void vyre_gemm_elements(Context& vyre, const VyreProduct<Element>& product) {
  const VyreMatrix<vyre_f16>&a = product.a, &b = product.b;
  const VyreMatrix<Element>& c = product.c;
  const u32 rows = vyre_at_most(product.m, c.rows(0)), columns = vyre_at_most(product.n, c.columns(0));
  for (u64 at = vyre.local; at < (u64)rows * columns && !vyre.left; at += vyre.invocations) {
    const u32 row = (u32)(at / columns), column = (u32)(at % columns);
    const u64 factors = a.columns(row) < b.rows(column) ? b.rows(column) : a.columns(row);
    const u32 terms = vyre_at_most(product.k, factors);
    f32 sum = 0.0f;
    for (u32 term = 0; term < terms && !vyre.left; term++) {
      sum = vyre_fma(a.load(row, term), b.load(term, column), sum);
      vyre_round(vyre);
    }
    if (vyre.left) break;
    if (c.place(row, column) < c.reach()) {
      Element* to = c.at(row, column);
      vyre_narrow(*to, vyre_blend(product, sum, to));
    }
    vyre_round(vyre);
  }
}

// C = alpha * A * B + beta * C.
template <class Context, class Element>
VYRE_FUNCTION void vyre_gemm(Context& vyre, u32 m, u32 n, u32 k, u32 lda, u32 ldb, u32 ldc, u64 offset_a, u64 offset_b, u64 offset_c, f32 alpha, f32 beta, const VyreBuffer<vyre_f16>& buffer_a,
                             const VyreBuffer<vyre_f16>& buffer_b, const VyreBuffer<Element>& buffer_c) {
  const VyreProduct<Element> product = {m,
                                        n,
                                        alpha == 0.0f ? 0 : k,
                                        alpha,
                                        beta,
                                        {buffer_a, offset_a, vyre_max(vyre_max(lda, k), 1u)},
                                        {buffer_b, offset_b, vyre_max(vyre_max(ldb, n), 1u)},
                                        {buffer_c, offset_c, vyre_max(vyre_max(ldc, n), 1u)}};
#if VYRE_WAVE_TILE
  const bool inside = product.a.holds(m, product.k) && product.b.holds(product.k, n) && product.c.holds(m, n);
  if (inside && vyre.invocations >= VyreWaveUnit::LANES) {
    if (!vyre_all_came(vyre)) return vyre_leave(vyre);
    if (m != 0 && n != 0) vyre_gemm_tiles(vyre, product);
    return;
  }
#endif
  vyre_gemm_elements(vyre, product);
}

#endif
