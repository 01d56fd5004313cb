#!/bin/bash
# Times from the request to preserved evidence, on the lab's VM: healthy, QMP dead, everything dead, and what the autopsy adds. The whole
# process is timed, from its start to the `preserved` event on its output; the bounds are printed beside. Needs root; nothing is changed
# outside the lab's own mounts. A loaded machine makes all of it slower: look at the load, which is printed first.
#
#   tests/bench/evidence.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build -q --release -p pve-verb
cargo build -q -p lab --bin qm --bin bench-evidence
exec "${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/debug/bench-evidence" "${1:-5}"
