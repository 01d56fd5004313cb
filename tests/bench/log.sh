#!/bin/bash
# What a long audit log costs: verifying a million records against `sha256sum` of the same files, and appending at 10 against at a million.
# Both sides run here, one after the other, with the files in the page cache. Needs root and 3 GB; changes nothing outside its own mounts.
#
#   tests/bench/log.sh [RECORDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
records=${1:-1000000}
target=${CARGO_TARGET_DIR:-target}/x86_64-unknown-linux-gnu/release
cargo build -q --release -p pve-verb
cargo build -q --release -p lab --bin bench-log
if [ -z "${BENCH_INSIDE:-}" ]; then
    BENCH_INSIDE=1 exec unshare -m "$0" "$records"
fi

mount --make-rprivate /
place=$(mktemp -d "${BENCH_DISK:-/var/tmp}/bench-log.XXXXXX")
trap 'rm -rf "$place"' EXIT
for folder in etc/pve-verb run/pve-verb var/lib/pve-verb var/log/pve-verb; do
    mkdir -p "$place/$folder" "/$folder"
    chmod 700 "$place/$folder"
    case $folder in
        run/*) mount -t tmpfs -o mode=0700 bench "/$folder" ;;
        *) mount --bind "$place/$folder" "/$folder" ;;
    esac
done
bench=$target/bench-log
verb=$target/pve-verb
"$verb" init > /dev/null

append() { "$bench" time 300 "$verb" review --note bench; }
seconds() { local began; began=$(date +%s%N); "$@" > /dev/null; echo $((($(date +%s%N) - began) / 1000000)); }
best() { local n; for n in 1 2 3; do seconds "$@"; done | sort -n | head -1; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

"$bench" time 10 "$verb" review --note bench > /dev/null
few=$(append)
"$bench" grow "$records"
rm -rf /run/pve-verb/*
first=$("$bench" time 1 "$verb" review --note bench)
many=$(append)
echo "append (whole process, median of 300): $few us at 10 records, $many us at $records; ratio $(ratio "$many" "$few")"
echo "the first append after a boot, at $records records: $first us"

cat /var/log/pve-verb/*.jsonl > /dev/null
hash=$(best sha256sum /var/log/pve-verb/audit-*.jsonl)
check=$(best "$verb" log verify)
all=$(seconds "$verb" log verify --all)
memory=$({ /usr/bin/time -f %M "$verb" log verify > /dev/null; } 2>&1 || echo unknown)
echo "$(du -cm /var/log/pve-verb/*.jsonl | tail -1 | cut -f1) MiB in $(ls /var/log/pve-verb/*.jsonl | wc -l) segments"
echo "sha256sum $hash ms; log verify $check ms, ratio $(ratio "$check" "$hash"); --all $all ms, ratio $(ratio "$all" "$hash"); memory $memory KiB"
