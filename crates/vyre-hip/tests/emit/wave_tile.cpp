// The tile of a wave in kernels/gemm/wave_tile.h, its lanes one after the other, over matrix instructions written out
// from the vendors' register tables. UNIT: 0 mma.sync, 1 MFMA, 2 WMMA. Shows that the lanes agree with those tables, not
// that the tables are read right. Exit status 0 if every element is right.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

// What a lane gave to an instruction; its sums are written once all lanes have given.
struct Given {
  float* sums;
  uint32_t a[8], b[8];
};
static std::vector<Given> given[64];
static unsigned current;

template <class A, class B>
static void give(float* sums, const A& a, const B& b) {
  Given all = {sums, {}, {}};
  memcpy(all.a, &a, sizeof a);
  memcpy(all.b, &b, sizeof b);
  given[current].push_back(all);
}

#define VYRE_WAVE_TILE 1
#if UNIT == 0
#define VYRE_WAVE_TILE_MMA 1
static void multiply_16x8x16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  give(d, a, b);
}
#elif UNIT == 1
#define VYRE_WAVE_TILE_MFMA 1
struct MfmaOperand {
  uint32_t words[2];
};
static void mfma_16x16x16(float* d, MfmaOperand a, MfmaOperand b) { give(d, a, b); }
#else
#define VYRE_WAVE_TILE_WMMA 1
struct WmmaOperand {
  uint32_t words[8];
};
static void wmma_16x16x16(float* d, WmmaOperand a, WmmaOperand b) { give(d, a, b); }
#endif
static bool __any(bool value) { return value; }

#include "vyre_externals.h"

typedef VyreWaveUnit Unit;

static float half_of(const uint32_t* words, int k) { return vyre_widen_f16((u16)(words[k / 2] >> k % 2 * 16)); }

static void multiply_all() {
  for (size_t at = 0; at < given[0].size(); at++) {
    float a[16][16], b[16][16];
    for (unsigned l = 0; l < Unit::LANES; l++) {
      const Given& lane = given[l][at];
#if UNIT == 0
      for (int v = 0; v < 8; v++) a[l / 4 + v / 2 % 2 * 8][l % 4 * 2 + v % 2 + v / 4 * 8] = half_of(lane.a, v);
      for (int v = 0; v < 4; v++) b[l % 4 * 2 + v % 2 + v / 2 * 8][l / 4] = half_of(lane.b, v);
#elif UNIT == 1
      for (int v = 0; v < 4; v++) a[l % 16][l / 16 * 4 + v] = half_of(lane.a, v);
      for (int v = 0; v < 4; v++) b[l / 16 * 4 + v][l % 16] = half_of(lane.b, v);
#else
      for (int v = 0; v < 16; v++) {
        // Lanes 16 to 31 repeat lanes 0 to 15.
        if (l >= 16 && (a[l % 16][v] != half_of(lane.a, v) || b[v][l % 16] != half_of(lane.b, v))) exit(2);
        a[l % 16][v] = half_of(lane.a, v);
        b[v][l % 16] = half_of(lane.b, v);
      }
#endif
    }
    for (unsigned l = 0; l < Unit::LANES; l++) {
      for (int v = 0; v < (UNIT == 2 ? 8 : 4); v++) {
#if UNIT == 0
        const unsigned row = l / 4 + v / 2 * 8, column = l % 4 * 2 + v % 2;
#elif UNIT == 1
        const unsigned row = l / 16 * 4 + v, column = l % 16;
#else
        const unsigned row = 2 * v + l / 16, column = l % 16;
#endif
        for (int k = 0; k < 16; k++) given[l][at].sums[v] += a[row][k] * b[k][column];
      }
    }
  }
  for (auto& lane : given) lane.clear();
}

// Filled with NaN, aligned to 64 bytes.
template <class Element>
static Element* elements(u64 count) {
  const u64 bytes = (count * sizeof(Element) + 63) / 64 * 64;
  void* memory = aligned_alloc(64, bytes);
  memset(memory, 0x7f, bytes);
  return (Element*)memory;
}

template <class Element>
static bool is_right(u32 m, u32 n, u32 k, const u32 (&ld)[3], const u32 (&offset)[3], f32 alpha, f32 beta) {
  const u32 lens[3] = {offset[0] + m * ld[0], offset[1] + k * ld[1], offset[2] + m * ld[2]};
  vyre_f16 *a = elements<vyre_f16>(lens[0]), *b = elements<vyre_f16>(lens[1]);
  Element* c = elements<Element>(lens[2]);
  u32 seed = 1;
  const auto whole = [&] { return (f32)((seed = seed * 1664525u + 1013904223u) >> 24) - 128.0f; };
  const auto small = [&] { return (f32)((int)(whole() + 128.0f) % 5 - 2); };
  for (u32 i = 0; i < m * k; i++) vyre_narrow(a[offset[0] + i / k * ld[0] + i % k], small());
  for (u32 i = 0; i < k * n; i++) vyre_narrow(b[offset[1] + i / n * ld[1] + i % n], small());
  for (u32 i = 0; i < lens[2] && beta != 0.0f; i++) vyre_narrow(c[i], small());
  std::vector<Element> expected(c, c + lens[2]);
  for (u32 i = 0; i < m * n; i++) {
    f32 sum = 0.0f;
    for (u32 l = 0; l < k; l++) {
      sum += vyre_widen(a[offset[0] + i / n * ld[0] + l]) * vyre_widen(b[offset[1] + l * ld[1] + i % n]);
    }
    Element& element = expected[offset[2] + i / n * ld[2] + i % n];
    vyre_narrow(element, alpha * sum + (beta == 0.0f ? 0.0f : beta * vyre_widen(element)));
  }
  const VyreProduct<Element> product = {m, n, k, alpha, beta, {{a, lens[0]}, offset[0], ld[0]},
                                        {{b, lens[1]}, offset[1], ld[1]}, {{c, lens[2]}, offset[2], ld[2]}};
  for (u32 tile = 0; tile < vyre_tiles(product); tile++) {
    std::vector<Unit> units(Unit::LANES, Unit{});
    std::vector<VyreWavePanels> panels;
    const VyreTile at = vyre_tile(product, tile);
    for (u32 lane = 0; lane < Unit::LANES; lane++) panels.push_back(vyre_panels(product, at, lane));
    for (u32 left = k; left != 0; left = left > Unit::STEP ? left - Unit::STEP : 0) {
      for (current = 0; current < Unit::LANES; current++) {
        VyreWaveOperands operands;
        vyre_load_step(operands, panels[current], left, current);
        units[current].multiply(operands.a, operands.b);
      }
      multiply_all();
    }
    for (u32 lane = 0; lane < Unit::LANES; lane++) vyre_store_tile(product, at, units[lane], lane);
  }
  const bool right = memcmp(c, expected.data(), lens[2] * sizeof(Element)) == 0;
  if (!right) fprintf(stderr, "%u x %u x %u, rows %u, %u and %u apart\n", m, n, k, ld[0], ld[1], ld[2]);
  free(a), free(b), free(c);
  return right;
}

int main() {
  const u32 sizes[] = {1, 17, 40, 64, 100};
  bool right = true;
  for (u32 m : sizes) {
    for (u32 n : sizes) {
      for (u32 k : sizes) {
        const u32 apart[3] = {(k + 7) / 8 * 8, (n + 7) / 8 * 8, (n + 7) / 8 * 8};
        right &= is_right<f32>(m, n, k, {k, n, n}, {0, 0, 0}, 1.0f, 0.0f);
        right &= is_right<f32>(m, n, k, {k + 3, n + 5, n + 1}, {3, 8, 5}, 2.0f, 0.5f);
        right &= is_right<f32>(m, n, k, apart, {8, 16, 4}, -1.0f, 1.0f);
        right &= is_right<vyre_f16>(m, n, k, apart, {8, 16, 8}, 1.0f, m % 2 == 0 ? 0.0f : 1.0f);
      }
    }
  }
  return right ? 0 : 1;
}
