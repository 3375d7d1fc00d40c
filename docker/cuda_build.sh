#!/bin/sh
# Builds Causeway with CUDA, on a machine that needs neither a GPU nor a driver nor a CUDA installation:
#   docker/cuda_build.sh              the program and what starts it, in target/cuda/package
#   docker/cuda_build.sh check        only checks that it would compile
# Needs Rust, a C++ compiler, and Python 3 with pip. A CUDA toolkit of your own is taken where CUDA_HOME names one.
# CUDA_COMPUTE_CAP is the oldest generation of devices that the program is for: 80 unless given (A100 and later).
set -eu
cd "$(dirname "$0")/.."
target=target/cuda
if [ -z "${CUDA_HOME:-}" ]; then
    CUDA_HOME=$PWD/$target/toolkit
    [ -e "$CUDA_HOME/stubs/libnvrtc.so" ] || python3 docker/cuda_toolkit.py "$CUDA_HOME"
fi
export CUDA_HOME CUDA_PATH="$CUDA_HOME" PATH="$CUDA_HOME/bin:$PATH"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}" CARGO_TARGET_DIR=$target
# Each of the compilers that make kernels takes some gigabytes.
export CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-2}"
if [ "${1:-build}" = check ]; then
    exec cargo clippy --release --locked --features cuda --lib --bins -- -D warnings
fi
cargo build --release --locked --features cuda --bin causeway
package=$target/package
rm -rf $package
mkdir -p $package/stubs
cp $target/release/causeway $package/causeway.program
cp docker/causeway-cuda $package/causeway
[ ! -d "$CUDA_HOME/stubs" ] || cp -L "$CUDA_HOME"/stubs/*.so.* $package/stubs/
strip $package/causeway.program
ls -lh $package
