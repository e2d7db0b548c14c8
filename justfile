# Short names for the daily commands (https://just.systems). Everything works without just, too: see README.md and CONTRIBUTING.md.

# List the commands
default:
    @just --list

# Build the daemon and the programs that it embeds
build:
    cargo build --release

# Run the tests without the conformance tests and the virtual machine (root)
test-quick:
    tests/run --quick

# Run the tests (root)
test *options:
    tests/run {{options}}

# Run the tests, also those for arm64 and other long ones (root)
test-all:
    tests/run --all

# Check formatting, lints and the language of documents
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    tests/prose_lint.py

# Format the code
fmt:
    cargo fmt --all

# Run a demo pod and remove everything again (root)
demo:
    cargo run --release -- demo

# Measure berth (root); options are passed to berth-bench
bench *options: build
    bench/run {{options}}

# Build the packages of a release in target/packages
package *options:
    packaging/build {{options}}

# Build the documentation of the code, with private items
doc:
    cargo doc --workspace --exclude berth-proto --no-deps --document-private-items --locked
