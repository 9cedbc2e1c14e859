// External functions of `vyre_foundation::externals`, for emitted kernels that call them: one workgroup does the whole
// call. They are right for every argument, and plain; large products are for the kernels of their own.

#ifndef VYRE_EXTERNALS_H
#define VYRE_EXTERNALS_H

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

// C = alpha * A * B + beta * C, each invocation some elements of C. What lies past the ends of the buffers is passed
// over: rows and columns of C, and terms of which both factors are zero.
template <class Context, class Element>
VYRE_FUNCTION void vyre_gemm(Context& vyre, u32 m, u32 n, u32 k, u32 lda, u32 ldb, u32 ldc, u64 offset_a, u64 offset_b, u64 offset_c, f32 alpha, f32 beta, const VyreBuffer<vyre_f16>& buffer_a,
                             const VyreBuffer<vyre_f16>& buffer_b, const VyreBuffer<Element>& buffer_c) {
  const VyreMatrix<vyre_f16> a = {buffer_a, offset_a, vyre_max(vyre_max(lda, k), 1u)};
  const VyreMatrix<vyre_f16> b = {buffer_b, offset_b, vyre_max(vyre_max(ldb, n), 1u)};
  const VyreMatrix<Element> c = {buffer_c, offset_c, vyre_max(vyre_max(ldc, n), 1u)};
  const u32 rows = vyre_at_most(m, c.rows(0)), columns = vyre_at_most(n, c.columns(0));
  for (u64 at = vyre.local; at < (u64)rows * columns && !vyre.left; at += vyre.invocations) {
    const u32 row = (u32)(at / columns), column = (u32)(at % columns);
    const u64 factors = a.columns(row) < b.rows(column) ? b.rows(column) : a.columns(row);
    const u32 terms = alpha == 0.0f ? 0 : vyre_at_most(k, factors);
    f32 sum = 0.0f;
    for (u32 term = 0; term < terms && !vyre.left; term++) {
      sum = vyre_fma(a.load(row, term), b.load(term, column), sum);
      vyre_round(vyre);
    }
    if (vyre.left) break;
    const f32 scaled = vyre_mul(alpha, sum);
    c.store(row, column, beta == 0.0f ? scaled : vyre_fma(alpha, sum, vyre_mul(beta, c.load(row, column))));
    vyre_round(vyre);
  }
}

#endif
