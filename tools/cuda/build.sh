#!/usr/bin/env bash
# Builds a program that starts on any x86-64 Linux and computes on an NVIDIA GPU where there is one:
#     tools/cuda/build.sh [arguments of `cargo build`]
# Needs Rust, a C compiler and python3 with venv; nvcc comes from PyPI. The program is
# target/cuda/release/secateur.
#
# candle 0.11.1 links CUDA's libraries, so that what is built with it does not start without them,
# and compiles kernels for quantised models that are not used here, most of the time. Copies of
# candle-core and candle-kernels, made of the registry's sources and patched here, do neither
# (candle's issue 3900).
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$PWD/target/cuda
mkdir -p "$target"

nvcc_version=13.0
if ! [ -x "$target/nvcc/bin/pip" ]; then
    python3 -m venv "$target/nvcc"
fi
if ! [ -e "$target/nvcc/$nvcc_version" ]; then
    "$target/nvcc/bin/pip" install --quiet \
        "nvidia-cuda-nvcc==$nvcc_version.*" "nvidia-cuda-crt==$nvcc_version.*" \
        "nvidia-nvvm==$nvcc_version.*" "nvidia-cuda-runtime==$nvcc_version.*" \
        "nvidia-cuda-cccl==$nvcc_version.*" "nvidia-curand==10.4.*"
    touch "$target/nvcc/$nvcc_version"
fi
CUDA_HOME=$(echo "$target"/nvcc/lib/python3*/site-packages/nvidia/cu13)
export CUDA_HOME CUDA_PATH=$CUDA_HOME NVCC=$CUDA_HOME/bin/nvcc PATH=$CUDA_HOME/bin:$PATH
# candle's kernels are kept as PTX, which newer cards translate.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

# The workspace again, with its own lock file and the patches.
workspace=$target/workspace
mkdir -p "$workspace"
for name in crates models tests data docs README.md CHANGELOG.md; do
    ln -sfn "../../../$name" "$workspace/$name"
done
cp Cargo.lock "$workspace/"
cargo fetch --quiet --locked
sources=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/candle-kernels-0.11.1 | head -1)
registry=$(dirname "$sources")
python3 tools/cuda/patch.py "$registry" "$target/patched"
{
    cat Cargo.toml
    echo '[patch.crates-io]'
    echo 'candle-core = { path = "../patched/candle-core" }'
    echo 'candle-kernels = { path = "../patched/candle-kernels" }'
} >"$workspace/Cargo.toml"
cd "$workspace"
CARGO_TARGET_DIR=$target cargo build --release --features cudnn "$@"
