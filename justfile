# What this project does often. `just` lists the recipes.

_default:
    @just --list

# The comparison on the embedded images, about two minutes on two cores
compare *ARGS:
    cargo run --release -- {{ARGS}}

# Choose the hyper-parameters of the default comparison on the validation part
tune *ARGS:
    cargo run --release -- tune {{ARGS}}

# Forward passes and training steps, beside PyTorch with `--python PATH`
speed *ARGS:
    cargo run --release -- speed {{ARGS}}

# All tests
test:
    cargo test --workspace

# Format
fmt:
    cargo fmt --all

# Lints, warnings denied
lint:
    cargo clippy --workspace --all-targets --features hub -- -D warnings

# Lints of the code for NVIDIA graphics cards, without one
lint-cuda:
    eval "$(scripts/cuda-toolkit.sh --kernels none)" && \
    cargo clippy --workspace --all-targets --features sala-bench/cuda,sala-bench/cudnn -- -D warnings

# Documentation of the three crates
doc:
    cargo doc --workspace --no-deps --open

# Licences, duplicate versions and sources of the dependencies (wants cargo-deny)
deny:
    cargo deny check bans licenses sources

# Remake the embedded subset from the official files
dataset SOURCE="/usr/share/datasets/fashion-mnist":
    python3 datasets/make_fashion_mnist_subset.py {{SOURCE}} datasets/fashion-mnist

# Everything that CI runs
ci:
    bash .ci/run
