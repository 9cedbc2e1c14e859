#!/bin/sh
# Builds the GEMM bench with nvcc and runs it on the first CUDA device.
#   run.sh check | bench | tune      NVCC and CUDA_ARCH (default 90a) may be set.
# `check` also runs what AMD's and older devices would compile, with their matrix instructions
# written out in CUDA: see emulate_amd.h for what that shows.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
nvcc=${NVCC:-nvcc}
arch=${CUDA_ARCH:-90a}

build() { # NAME FLAGS...
    name=$1
    shift
    "$nvcc" -O3 -std=c++17 -gencode "arch=compute_$arch,code=sm_$arch" "$@" -o "$out/$name" "$here/gemm_bench.cu"
}

build gemm_bench -lcublas
"$out/gemm_bench" "${1:-check}"
if [ "${1:-check}" = check ]; then
    build plain -DVYRE_GEMM_CHECK_ONLY -DVYRE_GEMM_FORCE_PLAIN
    build mfma -DVYRE_GEMM_CHECK_ONLY -DVYRE_GEMM_EMULATE_MFMA
    build wmma -DVYRE_GEMM_CHECK_ONLY -DVYRE_GEMM_EMULATE_WMMA
    build mfma_flush -DVYRE_GEMM_CHECK_ONLY -DVYRE_GEMM_EMULATE_MFMA -DVYRE_GEMM_EMULATE_FLUSH
    for name in plain mfma mfma_flush wmma; do
        echo "$name:"
        "$out/$name" check quick
    done
fi
