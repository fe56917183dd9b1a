# Everything sets itself up: a fresh clone needs Python 3.11, cargo, gcc and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4

export VIRTUAL_ENV := $(CURDIR)/$(VENV)

MANIFESTS := pyproject.toml Cargo.toml Cargo.lock
RUST := $(MANIFESTS) $(shell find rust -name '*.rs' -o -name Cargo.toml)
PACKAGE := $(RUST) README.md LICENSE $(shell find src -name '*.py' -o -name '*.pyi' -o -name py.typed)

.PHONY: build wheel demo test check interop bench costs soak fuzz clean

build: $(VENV)/.built

# The abi3 wheel, for any Python from 3.11 on: target/wheels/ginnel-*.whl.
wheel: target/wheels/.built

demo: $(VENV)/.built
	@$(BIN)/python -m tools.demo

test: $(VENV)/.built target/wheels/.built
	@scripts/need openvpn wireguard-go tshark iperf3 ethtool nft cc curl ip openssl setpriv dbus-daemon /usr/bin/python3 \
		/usr/share/easy-rsa/easyrsa
	cargo test --workspace --locked --quiet
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(PYTEST)

check: $(VENV)/.built
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cargo fmt --all --check
	cargo fmt --manifest-path rust/fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

# The page of what is tried with stock OpenVPN, made of the table that the tests run.
interop: $(VENV)/.built
	@$(BIN)/python -m tests.interop.page

bench: $(VENV)/.built target/wheels/.built
	@scripts/need root openvpn iperf3 ethtool curl ip setpriv /usr/bin/python3
	@$(BIN)/python -m tests.bench.bench_device
	@$(BIN)/python -m tests.bench.bench_ciphers
	@$(BIN)/python -m tests.bench.bench_lend
	@$(BIN)/python -m tests.bench.bench_handshakes
	@$(BIN)/python -m tests.bench.bench_connect $(BENCH)
	@$(BIN)/ginnel bench $(ROUNDS) --json target/bench.json --chart docs/benchmarks.svg
	@$(BIN)/python -m tests.bench.page target/bench.json

# What a packet costs in instructions and system calls: docs/costs.md.
costs: $(VENV)/.built
	@scripts/need valgrind strace
	@$(BIN)/python -m tests.bench.costs

soak: $(VENV)/.built
	GINNEL_PACKETS=10000000 cargo test --release --locked --quiet -p ginnel-core --test many
	GINNEL_PACKETS=10000000 cargo test --release --locked --quiet -p ginnel-io --test descriptors
	GINNEL_CASES=2000000 cargo test --release --locked --quiet -p ginnel-core --test hostile
	GINNEL_SEEDS=10000 GINNEL_FIRST_PACKETS=1000000 GINNEL_CLIENTS=500 GINNEL_KILLS=50 GINNEL_SIGNALS=100 \
		$(BIN)/pytest -n $(WORKERS) --timeout 3600 tests/test_noisy_wire.py tests/test_endpoint.py \
		tests/test_server_faults.py tests/test_cli_serve.py
	GINNEL_CLIENTS=500 GINNEL_SECONDS=120 GINNEL_LOST=0 $(BIN)/pytest --timeout 3600 tests/test_server_crowd.py
	GINNEL_DEMO_SECONDS=20 GINNEL_REVOKED=1 $(BIN)/pytest tests/test_demo.py tests/interop/test_serve.py \
		-k 'first_minute or revocation'
	GINNEL_REKEYS=100 GINNEL_RECONNECTS=100 $(BIN)/pytest -n $(WORKERS) --timeout 3600 \
		tests/interop/test_renegotiation.py tests/interop/test_restart.py \
		tests/interop/test_serve.py
	GINNEL_PACKETS=1000000 GINNEL_KILLS=200 $(BIN)/pytest -n $(WORKERS) --timeout 3600 \
		tests/test_device_many.py tests/test_device_kills.py
	GINNEL_PACKETS=10000000 $(BIN)/pytest --timeout 3600 tests/test_device_many.py -k deliver
	GINNEL_SENT=1073741824 $(BIN)/pytest --timeout 3600 tests/interop/test_lend_openvpn.py -k both_sides

# Coverage-guided: each target for so many seconds. What it has learnt, and what it finds, is left in target/fuzz.
FUZZ_SECONDS ?= 60
FUZZ := cut join open
SANCOV := -Cpasses=sancov-module -Ccodegen-units=1 $(addprefix -Cllvm-args=-sanitizer-coverage-, \
	level=4 inline-8bit-counters pc-table trace-compares)

fuzz:
	@scripts/need rust cc
	RUSTFLAGS="--cfg fuzzing $(SANCOV)" cargo build --release --locked --quiet --manifest-path rust/fuzz/Cargo.toml \
		--target-dir target/fuzz --target $(shell rustc -vV | sed -n 's/^host: //p')
	@for target in $(FUZZ); do \
		mkdir -p target/fuzz/corpus/$$target; \
		target/fuzz/*/release/$$target target/fuzz/corpus/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -len_control=20 \
			-artifact_prefix=target/fuzz/$$target- -print_final_stats=1 || exit 1; \
	done

clean:
	rm -rf $(VENV) target dist .hypothesis .mypy_cache .pytest_cache .ruff_cache src/ginnel/*.so
	find src tests tools -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.tools: pyproject.toml
	@scripts/need python cc
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --group dev
	@touch $@

# Editable: a change of Python needs no new build.
$(VENV)/.built: $(VENV)/.tools $(RUST)
	@scripts/need rust
	$(BIN)/maturin develop --release --locked --quiet >/dev/null
	@touch $@

# One after the other: maturin's two ways of building share a folder.
target/wheels/.built: $(VENV)/.built $(PACKAGE)
	rm -rf target/wheels
	$(BIN)/maturin build --release --locked --quiet --out target/wheels
	@touch $@
