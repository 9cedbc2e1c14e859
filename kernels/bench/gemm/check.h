// The correctness gates. Every case runs every kernel: vectors and elements, whole and split k.
#pragma once

#include <cmath>
#include <vector>

struct Case {
    uint64_t m, n, k, batch;
    uint64_t pad_a, pad_b, pad_c; // elements after each row
    uint64_t misalign;            // elements before A, B and C
    float alpha, beta;
    bool f16;
    Data data;
    uint64_t seed;
};

static unsigned grid_for(uint64_t elements) {
    const uint64_t blocks = (elements + 255) / 256;
    return static_cast<unsigned>(blocks < 2048 ? (blocks ? blocks : 1) : 2048);
}

struct Operands {
    Matrix a, b, c;
};

struct Checker {
    uint16_t *buffers[3] = {};
    uint64_t capacity = 0;
    Verdict *verdict = nullptr;
    unsigned long long *sum = nullptr;
    Workspace workspace;
    uint64_t runs = 0, failures = 0, elements = 0;
    double worst_f32 = 0, worst_f16 = 0; // Frobenius error as a share of its limit

    Checker() {
        CUDA_OK(cudaMalloc(&verdict, sizeof(Verdict)));
        CUDA_OK(cudaMalloc(&sum, sizeof *sum));
    }

    static Matrix matrix(uint16_t *buffer, uint64_t rows, uint64_t columns, uint64_t pad, uint64_t batch, uint64_t offset,
                         bool aligned) {
        uint64_t ld = columns + pad, stride = rows * ld + pad;
        if (aligned) {
            ld = (ld + 7) / 8 * 8;
            stride = (rows * ld + 7) / 8 * 8 + 8;
        }
        return Matrix{buffer, 2 * kGuard + 8 + batch * stride, aligned ? 0 : offset, rows, columns, ld, batch, stride};
    }

    Operands operands(const Case &x, bool aligned) {
        Operands o;
        for (int pass = 0; pass < 2; ++pass) {
            o.a = matrix(buffers[0], x.m, x.k, x.pad_a, x.batch, x.misalign, aligned);
            o.b = matrix(buffers[1], x.k, x.n, x.pad_b, x.batch, x.misalign, aligned);
            o.c = matrix(buffers[2], x.m, x.n, x.pad_c, x.batch, x.misalign, aligned && x.pad_c % 2 == 0);
            const uint64_t want = std::max(o.a.elements, std::max(o.b.elements, o.c.elements));
            if (want <= capacity) {
                break;
            }
            capacity = want + want / 2;
            for (auto &buffer : buffers) {
                CUDA_OK(cudaFree(buffer));
                CUDA_OK(cudaMalloc(&buffer, capacity * 4));
            }
        }
        return o;
    }

    static VyreGemmArguments arguments(const Case &x, const Operands &o) {
        VyreGemmArguments args = {};
        args.a = o.a.buffer + o.a.start();
        args.b = o.b.buffer + o.b.start();
        args.c = x.f16 ? static_cast<void *>(o.c.buffer + o.c.start())
                       : static_cast<void *>(reinterpret_cast<float *>(o.c.buffer) + o.c.start());
        args.m = x.m, args.n = x.n, args.k = x.k;
        args.lda = o.a.ld, args.ldb = o.b.ld, args.ldc = o.c.ld;
        args.batch = x.batch;
        args.stride_a = o.a.stride, args.stride_b = o.b.stride, args.stride_c = o.c.stride;
        args.alpha = x.alpha, args.beta = x.beta;
        args.output = x.f16 ? VYRE_GEMM_OUTPUT_F16 : VYRE_GEMM_OUTPUT_F32;
        return args;
    }

    void fill(const Case &x, const Operands &o) {
        // What must not be read is NaN.
        const Data data = x.data;
        fill_operand<<<grid_for(o.a.elements), 256>>>(o.a, data, x.seed, 0);
        fill_operand<<<grid_for(o.b.elements), 256>>>(o.b, data, x.seed, 1);
        fill_output<<<grid_for(o.c.elements), 256>>>(o.c, x.f16, x.beta != 0.0f, data, x.seed);
    }

    void launch_checked(const Case &x, const Operands &o, const VyreGemmChoice &choice, bool vector) {
        workspace.reserve(vyre_gemm_workspace_floats(&choice, x.m, x.n, x.batch),
                          vyre_gemm_tiles(choice.entry, x.m, x.n, x.batch) + 1);
        VyreGemmArguments args = arguments(x, o);
        launch(args, choice, vector, workspace, nullptr);
        CUDA_OK(cudaGetLastError());
    }

    void run(const Case &x, VyreGemmChoice choice, bool vector) {
        const Operands o = operands(x, vector);
        fill(x, o);
        launch_checked(x, o, choice, vector);
        CUDA_OK(cudaMemsetAsync(verdict, 0, sizeof(Verdict)));
        judge<<<grid_for(o.c.elements), 256>>>(o.a, o.b, o.c, x.f16, x.alpha, x.beta, x.data, x.seed,
                                               choice.entry <= VYRE_GEMM_32X64, verdict);
        Verdict v;
        CUDA_OK(cudaMemcpy(&v, verdict, sizeof v, cudaMemcpyDeviceToHost));
        ++runs;
        elements += v.checked;
        bool right = v.wrong == 0 && v.canaries == 0 && v.checked == x.m * x.n * x.batch;
        double relative = 0;
        if (x.data == Data::normal && x.beta == 0.0f && v.reference_square > 0) {
            relative = std::sqrt(v.error_square / v.reference_square);
            const double limit = x.f16 ? 2.5e-4 : 1e-7 + 6e-9 * static_cast<double>(x.k);
            double &worst = x.f16 ? worst_f16 : worst_f32;
            // Few outputs say little of a norm: one of them may be near zero by chance.
            if (x.m * x.n * x.batch >= 200) {
                worst = std::max(worst, relative / limit);
                right = right && relative <= limit;
            }
        }
        if (!right && ++failures <= 20) {
            std::printf("WRONG %s%s split %u: m %llu n %llu k %llu batch %llu alpha %g beta %g %s data %d: %llu of %llu "
                        "wrong, %llu canaries; first at %llu (ldc %llu): got %.9g expected %.9g bound %.3g; norm %.3g\n",
                        VYRE_GEMM_ENTRIES[choice.entry].name, vector ? "" : "_element", choice.split_k,
                        (unsigned long long)x.m, (unsigned long long)x.n, (unsigned long long)x.k,
                        (unsigned long long)x.batch, x.alpha, x.beta, x.f16 ? "f16" : "f32", static_cast<int>(x.data),
                        v.wrong, v.checked, v.canaries, v.first, (unsigned long long)o.c.ld, v.got, v.expected, v.bound,
                        relative);
        }
    }

    void run_all_entries(const Case &x) {
        for (uint32_t entry = 0; entry < VYRE_GEMM_ENTRY_COUNT; ++entry) {
            for (uint32_t split : {1u, 3u}) {
                VyreGemmChoice choice = {entry, split, 1 + static_cast<uint32_t>(x.seed % 5), 0};
                choice.grid = vyre_gemm_grid(&choice, x.m, x.n, x.batch);
                // A grid smaller than the work: blocks walk several tiles.
                if (x.seed % 3 == 0 && choice.grid > 5) {
                    choice.grid = 5;
                }
                run(x, choice, true);
                run(x, choice, false);
            }
        }
    }

    // The device's reference against plain fp64 on the host, for the smallest shapes.
    void check_reference() {
        for (uint64_t size : {1, 17, 64}) {
            const Case x = {size, size + 2, size + 5, 1, 3, 1, 0, 1, 1.0f, 0.0f, false, Data::normal, 77 + size};
            const Operands o = operands(x, false);
            fill(x, o);
            std::vector<uint16_t> a(o.a.elements), b(o.b.elements);
            std::vector<double> device(x.m * x.n);
            double *out;
            CUDA_OK(cudaMalloc(&out, device.size() * 8));
            write_reference<<<static_cast<unsigned>((device.size() + 255) / 256), 256>>>(o.a, o.b, o.c, out);
            CUDA_OK(cudaMemcpy(a.data(), o.a.buffer, a.size() * 2, cudaMemcpyDeviceToHost));
            CUDA_OK(cudaMemcpy(b.data(), o.b.buffer, b.size() * 2, cudaMemcpyDeviceToHost));
            CUDA_OK(cudaMemcpy(device.data(), out, device.size() * 8, cudaMemcpyDeviceToHost));
            CUDA_OK(cudaFree(out));
            const auto value = [](uint16_t bits) {
                __half_raw raw;
                raw.x = bits;
                return static_cast<double>(__half2float(__half(raw)));
            };
            for (uint64_t i = 0; i < x.m; ++i) {
                for (uint64_t j = 0; j < x.n; ++j) {
                    double sum = 0, magnitude = 0;
                    for (uint64_t k = 0; k < x.k; ++k) {
                        const double product =
                            value(a[o.a.start() + i * o.a.ld + k]) * value(b[o.b.start() + k * o.b.ld + j]);
                        sum += product;
                        magnitude += std::fabs(product);
                    }
                    if (!(std::fabs(sum - device[i * x.n + j]) <= 1e-13 * magnitude)) {
                        std::printf("WRONG reference %llu: (%llu,%llu) %.17g is %.17g on the host\n",
                                    (unsigned long long)size, (unsigned long long)i, (unsigned long long)j,
                                    device[i * x.n + j], sum);
                        ++failures;
                    }
                }
            }
        }
    }

    void check_repeatable() {
        for (uint32_t entry = 0; entry < VYRE_GEMM_ENTRY_COUNT; ++entry) {
            for (uint32_t split : {1u, 8u}) {
                const Case x = {130, 260, 2100, 1, 4, 4, 0, 0, 0.7f, 0.0f, false, Data::normal, 5};
                VyreGemmChoice choice = {entry, split, 8, 0};
                choice.grid = vyre_gemm_grid(&choice, x.m, x.n, x.batch);
                const Operands o = operands(x, true);
                fill(x, o);
                unsigned long long first = 0;
                for (int i = 0; i < 100; ++i) {
                    fill_output<<<grid_for(o.c.elements), 256>>>(o.c, x.f16, false, x.data, x.seed);
                    launch_checked(x, o, choice, true);
                    CUDA_OK(cudaMemsetAsync(sum, 0, sizeof *sum));
                    digest<<<grid_for(o.c.elements), 256>>>(o.c, x.f16, sum);
                    unsigned long long now;
                    CUDA_OK(cudaMemcpy(&now, sum, sizeof now, cudaMemcpyDeviceToHost));
                    first = i == 0 ? now : first;
                    if (now != first) {
                        std::printf("WRONG %s split %u: run %d has other bits\n", VYRE_GEMM_ENTRIES[entry].name, split, i);
                        ++failures;
                        break;
                    }
                }
            }
        }
    }
};

static Case varied(uint64_t m, uint64_t n, uint64_t k, Data data, uint64_t round) {
    const uint64_t h = mix(m * 1000003 + n * 10007 + k * 101 + round * 7919 + static_cast<uint64_t>(data));
    const float alphas[] = {1.0f, -1.0f, 0.5f, 2.0f, 0.0f, 1.0f}, betas[] = {0.0f, 1.0f, -0.5f, 0.25f, 0.0f};
    Case x = {m, n, k, h % 4 == 0 ? 3u : 1u, (h >> 4) % 12, (h >> 8) % 12, (h >> 12) % 12, (h >> 16) % 8,
              alphas[(h >> 20) % 6], betas[(h >> 24) % 5], (h >> 28) % 2 == 0, data, h};
    return x;
}

static int check(bool quick) {
    Checker checker;
    const auto report = [&](const char *gate) {
        CUDA_OK(cudaDeviceSynchronize());
        std::printf("%-44s runs %7llu elements %11llu failures %llu\n", gate, (unsigned long long)checker.runs,
                    (unsigned long long)checker.elements, (unsigned long long)checker.failures);
        std::fflush(stdout);
    };
    checker.check_reference();
    report("device reference against the host's");

    const std::vector<uint64_t> small = quick ? std::vector<uint64_t>{1, 17, 65} : std::vector<uint64_t>{0, 1, 15, 16, 17, 63, 64, 65};
    for (int round = 0; round < (quick ? 1 : 2); ++round) {
        for (uint64_t m : small) {
            for (uint64_t n : small) {
                for (uint64_t k : small) {
                    checker.run_all_entries(varied(m, n, k, Data::integer, round));
                    if (round == 0) {
                        Case x = varied(m, n, k, Data::normal, 0);
                        checker.run_all_entries(x);
                        x.alpha = 1.0f, x.beta = 0.0f;
                        checker.run_all_entries(x);
                    }
                }
            }
        }
    }
    report("small triples");

    const std::vector<uint64_t> large = quick ? std::vector<uint64_t>{} : std::vector<uint64_t>{1000, 4095, 4097};
    for (uint64_t p : large) {
        for (uint64_t q : large) {
            for (uint64_t r : {1, 17, 64}) {
                checker.run_all_entries(varied(r, p, q, Data::integer, 0));
                checker.run_all_entries(varied(p, r, q, Data::integer, 1));
                checker.run_all_entries(varied(p, q, r, Data::integer, 2));
                Case x = varied(r, p, q, Data::normal, 3);
                x.alpha = 1.0f, x.beta = 0.0f;
                checker.run_all_entries(x);
            }
        }
    }
    if (!large.empty()) {
        report("large pairs");
    }

    const std::vector<uint64_t> odd = quick ? std::vector<uint64_t>{65, 130} : std::vector<uint64_t>{16, 65, 130, 300, 515};
    for (uint64_t size : odd) {
        for (Data data : {Data::special, Data::big, Data::subnormal}) {
            for (int round = 0; round < 3; ++round) {
                Case x = varied(size, size + 3, size / 2, data, round);
                if (data == Data::special) {
                    x.beta = 0.0f, x.alpha = 1.0f;
                    x.k = 5 + round * 9; // or everything is NaN
                }
                checker.run_all_entries(x);
            }
        }
    }
    report(kFlushesSubnormals ? "infinity, NaN, overflow, flushed subnormals" : "infinity, NaN, overflow, subnormals");
    checker.check_repeatable();
    report("100 times the same bits");
    std::printf("Frobenius error, share of its limit: fp32 %.3f, fp16 %.3f\n", checker.worst_f32, checker.worst_f16);
    std::printf(checker.failures == 0 ? "ALL RIGHT\n" : "FAILED\n");
    return checker.failures == 0 ? 0 : 1;
}
