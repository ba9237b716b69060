#!/usr/bin/env bash
# Puts together what the feature `cuda` needs to be built: nvcc, headers, the CUDA runtime, and static
# libraries in place of the driver's and the like. Needs no graphics card, driver or root, but Linux on
# x86-64, Python 3 with pip, and a C++ compiler. With NVIDIA's own toolkit installed it is not needed.
#
#   cuda-toolkit.sh [--kernels all|used|none] [DIR]        (DIR: ~/.cache/sala-cuda-13)
#
# Prints the variables of a build as `export` lines, and nothing else on standard output:
#
#   eval "$(scripts/cuda-toolkit.sh)" && cargo build --release --features cuda,cudnn
#
# --kernels says which of candle's kernels are compiled; `cuda/nvcc-partial` explains it. Builds of different
# kinds want a CARGO_TARGET_DIR each, because cargo does not notice that the compiler has changed.
#
# CUDA_COMPUTE_CAP is the architecture to compile for, 80 unless it is set. PTX is compiled for the card in the
# machine when it is first used, so a build runs on that architecture and later ones.
#
# What is there already stays; a folder takes about 270 MB, and the download 105. Wheels on disk are used with
# PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
python=${PYTHON:-python3}
say() { printf '%s\n' "$*" >&2; }
fail() { say "cuda-toolkit.sh: $*"; exit 1; }

kernels=all dest=${XDG_CACHE_HOME:-$HOME/.cache}/sala-cuda-13
while [ $# -gt 0 ]; do
    case $1 in
    --kernels) kernels=${2:-}; shift 2 || fail "--kernels wants all, used or none" ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
    -*) fail "unknown option $1" ;;
    *) dest=$1; shift ;;
    esac
done
case $kernels in all | used | none) ;; *) fail "--kernels: all, used or none wanted, got \`$kernels\`" ;; esac
[ "$(uname -sm)" = "Linux x86_64" ] || fail "Linux on x86-64 wanted, this is $(uname -sm)"
for program in "$python" cc ar flock; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done

dest=$(realpath -m "$dest")
mkdir -p "$dest"
# Two builds that start together must not unpack over each other.
exec 9>"$dest/.lock"
flock 9

# One version of CUDA, by hash.
wheels='
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cccl==13.0.85 --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
'
digest() { sha256sum | cut -c1-16; }

unpacked=$dest/.unpacked-$(printf '%s' "$wheels" | digest)
if [ ! -e "$unpacked" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    printf '%s' "$wheels" >"$work/wheels.txt"
    say "downloading CUDA 13.0 (105 MB)"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        --require-hashes -r "$work/wheels.txt" -d "$work/wheels" >&2
    say "unpacking it into $dest"
    for wheel in "$work"/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$work/tree"
    done
    cp -R "$work/tree/nvidia/cu13/." "$dest/"
    # The zip module drops what may be executed.
    chmod -R +x "$dest/bin" "$dest/nvvm/bin"
    # Where build scripts and nvcc look.
    ln -sfn lib "$dest/lib64"
    mkdir -p "$dest/nvvm/lib64"
    ln -sfn ../../lib/libnvvm.so.4 "$dest/nvvm/lib64/libnvvm.so.4"
    ln -sfn libnvvm.so.4 "$dest/nvvm/lib64/libnvvm.so"
    # The runtime goes into the program.
    rm -f "$dest"/lib/libcudart.so
    ln -sfn libcudart_static.a "$dest/lib/libcudart.a"
    rm -rf "$work"
    trap - EXIT
    touch "$unpacked"
fi

shopt -s nullglob
sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-*/src)
if [ ${#sources[@]} -eq 0 ]; then
    cargo fetch --locked --manifest-path "$here/../Cargo.toml" >&2
    sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-*/src)
fi
[ ${#sources[@]} -gt 0 ] || fail "cudarc is not among the crates of Cargo.lock"
made=$dest/lib/stubs/.made-$({ cat "$here/cuda/shims.py"; printf '%s\n' "${sources[@]}"; } | digest)
if [ ! -e "$made" ]; then
    say "making the libraries to link with"
    rm -rf "$dest/lib/stubs"
    "$python" "$here/cuda/shims.py" "$dest/lib/stubs" "${sources[@]}"
    touch "$made"
fi
install -m 755 "$here/cuda/nvcc-partial" "$dest/bin/nvcc-partial"

cat <<LINES
export CUDA_HOME='$dest'
export PATH='$dest/bin':"\$PATH"
export CUDA_COMPUTE_CAP='${CUDA_COMPUTE_CAP:-80}'
export CUDARC_CUDA_VERSION='13000'
export CUDAFORGE_THREADS='$(nproc)'
export NVCC_APPEND_FLAGS='--compress-mode=size'
LINES
if [ "$kernels" = all ]; then
    echo "unset NVCC SALA_CANDLE_KERNELS"
else
    echo "export NVCC='$dest/bin/nvcc-partial' SALA_CANDLE_KERNELS='$kernels'"
fi
