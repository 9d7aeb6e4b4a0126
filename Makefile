# Every task of the project is one target here; people and continuous integration use the same ones.
# `make` alone lists them. All of them make what they need first: a virtual environment, then the release extension.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= results
FUZZ_SECONDS ?= 60

# rustup's own place, for shells that have not read its profile line yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Every Python package in the version that constraints.txt states, whatever asks for it.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One interpreter for all builds, so that nothing is compiled twice because another one was found.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
# Only the environment of this checkout counts.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME CONDA_PREFIX

.PHONY: help build test lint format rust-test python-test bench quick rivals fuzz docs wheel lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

$(VENV)/made: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	    f"t2s needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")'
	@$(PYTHON) packaging/check_rust.py
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet maturin
	@touch $@

$(VENV)/tools: $(VENV)/made pyproject.toml
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

build: $(VENV)/made  ## install the package, with its release extension, into the virtual environment
	@$(PYTHON) packaging/check_rust.py
	@echo "building the release extension (a few minutes the first time)"
	@. $(BIN)/activate && maturin develop --release --locked --quiet > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }

test: $(VENV)/tools lint rust-test python-test  ## all of it: format, lints, cargo test, types, stub, pytest

lint: $(VENV)/tools build  ## formatting, clippy, ruff, layers, mypy, and the stub against the extension
	cargo fmt --all --check
	$(BIN)/python packaging/check_layers.py
	packaging/check_targets.sh
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest t2s._core

rust-test:  ## cargo test
	cargo test --workspace --locked --quiet
	cargo run --package t2s-core --example echo --locked --quiet >/dev/null

python-test: $(VENV)/tools build  ## pytest against the release extension
	@packaging/test_peers.sh
	$(BIN)/pytest

format: $(VENV)/tools  ## write the formatting that lint wants
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: build  ## the main job: all scenarios of scenarios.toml, with a report in results/
	$(BIN)/t2s bench scenarios.toml --out $(OUT)

quick: build  ## the same in 40 seconds, for a first look
	$(BIN)/t2s bench scenarios.toml --quick --out $(OUT)

rivals: build  ## measure the tunnel beside its rivals and beside none, as root; RIVALS="--quick" passes flags on
	$(BIN)/python rivals/tunnels.py --out $(OUT)/rivals $(RIVALS)

fuzz:  ## fuzz Stack::handle_packet for FUZZ_SECONDS (wants a nightly Rust)
	@cargo +nightly --version >/dev/null 2>&1 || { echo "make fuzz wants a nightly Rust: rustup toolchain install nightly"; exit 1; }
	mkdir -p fuzz/corpus/handle_packet fuzz/artifacts
	cd fuzz && RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	  -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cdebug-assertions --cfg fuzzing" \
	  cargo +nightly run --release --locked --target $$(rustc -vV | sed -n 's/^host: //p') --bin handle_packet -- \
	  corpus/handle_packet -artifact_prefix=artifacts/ -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=1024 -max_len=4096

docs: $(VENV)/tools build  ## the Python API in docs/html, the Rust API in target/doc
	$(BIN)/pdoc t2s --output-directory docs/html
	cargo doc --package t2s-core --package t2s-sys --package t2s-tunnel --package t2s-lab --no-deps --locked

wheel: $(VENV)/made  ## one wheel for all CPython >= 3.11, in dist/
	$(BIN)/maturin build --release --locked --out dist

lock: $(VENV)/made  ## write constraints.txt anew with the newest versions of everything
	$(PYTHON) -m venv --clear $(VENV)-lock
	env -u PIP_CONSTRAINT $(VENV)-lock/bin/python -m pip install --quiet --upgrade pip maturin
	env -u PIP_CONSTRAINT $(VENV)-lock/bin/python -m pip install --quiet --group dev \
	  $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])')
	{ sed -n '/^#/p' constraints.txt; $(VENV)-lock/bin/python -m pip freeze --all --route-exclude setuptools; } > $(VENV)-lock/constraints.txt
	mv $(VENV)-lock/constraints.txt constraints.txt
	rm -r $(VENV)-lock

clean:  ## remove what the other targets made
	rm -rf $(VENV) target fuzz/target dist docs/html results
	find python -name '*.so' -o -name '__pycache__' -type d -prune | xargs rm -rf
