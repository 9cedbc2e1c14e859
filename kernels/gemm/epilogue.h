// alpha * accumulator + beta * C, in fp32, rounded once to C's type.
#ifndef VYRE_GEMM_EPILOGUE_H
#define VYRE_GEMM_EPILOGUE_H

VYRE_INLINE float blend(const VyreGemmArguments &args, float sum, float old) {
    return fmaf(args.alpha, sum, args.beta * old);
}

// alpha == 0 drops the product as a whole: the sum is 0 then, and 0 * alpha keeps the sign plain.
VYRE_INLINE float scaled(const VyreGemmArguments &args, float sum) { return args.alpha * sum; }

struct OutputF32 {
    float *c;
    VYRE_INLINE float load(uint64_t at) const { return c[at]; }
    VYRE_INLINE void store(uint64_t at, float value) const { c[at] = value; }
    VYRE_INLINE void store_pair(uint64_t at, float first, float second) const {
        *reinterpret_cast<float2 *>(c + at) = make_float2(first, second);
    }
};

struct OutputF16 {
    unsigned short *c;
    VYRE_INLINE float load(uint64_t at) const { return half_bits_to_float(c[at]); }
    VYRE_INLINE void store(uint64_t at, float value) const {
        c[at] = static_cast<unsigned short>(float_to_half_bits(value));
    }
    VYRE_INLINE void store_pair(uint64_t at, float first, float second) const {
        *reinterpret_cast<uint32_t *>(c + at) = float_to_half_bits(first) | float_to_half_bits(second) << 16;
    }
};

// One element, for kernels whose accumulators are no matrix fragments. `at` counts elements from C.
VYRE_INLINE void store_element(const VyreGemmArguments &args, uint64_t at, float sum) {
    if (args.output == VYRE_GEMM_OUTPUT_F16) {
        const OutputF16 output{static_cast<unsigned short *>(args.c)};
        output.store(at, args.beta == 0.0f ? scaled(args, sum) : blend(args, sum, output.load(at)));
    } else {
        const OutputF32 output{static_cast<float *>(args.c)};
        output.store(at, args.beta == 0.0f ? scaled(args, sum) : blend(args, sum, output.load(at)));
    }
}

// A wave's fragment into the tile of C at `origin`. `row` and `column` are the wave's corner inside
// the tile; Fragment says where accumulator i of this lane lies from there. WHOLE: no element of the
// tile lies outside C.
template <class Fragment, bool PAIRS, bool WHOLE, class Output>
VYRE_INLINE void store_fragment(const VyreGemmArguments &args, const Tile &tile, const Fragment &fragment,
                                const Output &output, uint32_t row, uint32_t column, uint32_t lane) {
    constexpr int kStep = PAIRS ? 2 : 1;
#pragma unroll
    for (int i = 0; i < Fragment::kCount; i += kStep) {
        const uint32_t r = hide(row) + Fragment::row(i, lane);
        const uint32_t c = hide(column) + Fragment::column(i, lane);
        if (!WHOLE && (r >= tile.rows || c >= tile.columns)) {
            continue;
        }
        const uint64_t at = r * args.ldc + c;
        const bool both = PAIRS && (WHOLE || c + 1 < tile.columns);
        float first = fragment.value[i];
        float second = PAIRS ? fragment.value[i + kStep - 1] : 0.0f;
        if (args.beta == 0.0f) {
            first = scaled(args, first);
            second = scaled(args, second);
        } else {
            first = blend(args, first, output.load(at));
            if (both) {
                second = blend(args, second, output.load(at + 1));
            }
        }
        if (both) {
            output.store_pair(at, first, second);
        } else {
            output.store(at, first);
        }
    }
}

// 16-byte stores for fragments laid out as mma.m16n8k16's D: the four lanes that hold eight columns of
// a row trade with each other until each holds neighbours. Without them a store instruction fills
// half sectors, and a large tile takes longer to store than 256 k to multiply. The whole tile lies in
// C, beta is 0, C is aligned.
template <class Fragment>
VYRE_INLINE void store_quads(const VyreGemmArguments &args, const Fragment &fragment, const OutputF16 &output,
                             uint32_t row, uint32_t column, uint32_t lane) {
#pragma unroll
    for (int i = 0; i < Fragment::kCount; i += 16) { // four n8 tiles
#pragma unroll
        for (int half = 0; half < 4; half += 2) {    // the rows lane / 4 and 8 further
            float word[4];
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                const int at = i + t * 4 + half;
                word[t] = __uint_as_float(float_to_half_bits(scaled(args, fragment.value[at])) |
                                          float_to_half_bits(scaled(args, fragment.value[at + 1])) << 16);
            }
            // Transpose 4 x 4 over lanes and words: lane q ends with tile q's words of all four lanes.
#pragma unroll
            for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
                for (int t = 0; t < 4; ++t) {
                    if ((t & mask) == 0) {
                        const float got = exchange_lane(lane & mask ? word[t] : word[t + mask], mask);
                        word[t] = lane & mask ? got : word[t];
                        word[t + mask] = lane & mask ? word[t + mask] : got;
                    }
                }
            }
            const uint32_t r = row + Fragment::row(i + half, 0) + lane / 4;
            const uint32_t c = column + Fragment::column(i, 0) + lane % 4 * 8;
            *reinterpret_cast<float4 *>(output.c + r * args.ldc + c) = make_float4(word[0], word[1], word[2], word[3]);
        }
    }
}

template <class Fragment>
VYRE_INLINE void store_quads(const VyreGemmArguments &args, const Fragment &fragment, const OutputF32 &output,
                             uint32_t row, uint32_t column, uint32_t lane) {
    const bool odd = lane % 2 != 0;
#pragma unroll
    for (int i = 0; i < Fragment::kCount; i += 8) { // two n8 tiles: even lanes end with the first's columns
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
            const float a0 = scaled(args, fragment.value[i + half]), a1 = scaled(args, fragment.value[i + half + 1]);
            const float b0 = scaled(args, fragment.value[i + 4 + half]), b1 = scaled(args, fragment.value[i + 5 + half]);
            const float got0 = exchange_lane(odd ? a0 : b0, 1), got1 = exchange_lane(odd ? a1 : b1, 1);
            const uint32_t r = row + Fragment::row(i + half, 0) + lane / 4;
            const uint32_t c = column + Fragment::column(i, 0) + (odd ? 8 : 0) + lane % 4 / 2 * 4;
            *reinterpret_cast<float4 *>(output.c + r * args.ldc + c) =
                odd ? make_float4(got0, got1, b0, b1) : make_float4(a0, a1, got0, got1);
        }
    }
}

// Neighbours in one store where the fragment has them and C's alignment allows it.
template <bool WHOLE, class Fragment, class Output, class Element>
VYRE_INLINE void store_as(const VyreGemmArguments &args, const Tile &tile, const Fragment &fragment, uint32_t row,
                          uint32_t column, uint32_t lane) {
    Element *c = static_cast<Element *>(args.c) + tile.batch * args.stride_c + tile.row * args.ldc + tile.column;
    const Output output{c};
    if constexpr (Fragment::kPairs) {
        const uint64_t bytes = (args.ldc | (args.batch > 1 ? args.stride_c : 0)) * sizeof(Element) |
                               reinterpret_cast<uintptr_t>(args.c);
        if constexpr (WHOLE && Fragment::kQuads) {
            if (bytes % 16 == 0 && args.beta == 0.0f) {
                store_quads(args, fragment, output, row, column, lane);
                return;
            }
        }
        if (bytes % (2 * sizeof(Element)) == 0) {
            store_fragment<Fragment, true, WHOLE>(args, tile, fragment, output, row, column, lane);
            return;
        }
    }
    store_fragment<Fragment, false, WHOLE>(args, tile, fragment, output, row, column, lane);
}

template <bool WHOLE, class Fragment>
VYRE_INLINE void store_typed(const VyreGemmArguments &args, const Tile &tile, const Fragment &fragment, uint32_t row,
                             uint32_t column, uint32_t lane) {
    if (args.output == VYRE_GEMM_OUTPUT_F16) {
        store_as<WHOLE, Fragment, OutputF16, unsigned short>(args, tile, fragment, row, column, lane);
    } else {
        store_as<WHOLE, Fragment, OutputF32, float>(args, tile, fragment, row, column, lane);
    }
}

template <int BM, int BN, class Fragment>
VYRE_INLINE void store_tile(const VyreGemmArguments &args, const Tile &tile, const Fragment &fragment, uint32_t row,
                            uint32_t column, uint32_t lane) {
    if (tile.rows == BM && tile.columns == BN) {
        store_typed<true>(args, tile, fragment, row, column, lane);
    } else {
        store_typed<false>(args, tile, fragment, row, column, lane);
    }
}

#endif
