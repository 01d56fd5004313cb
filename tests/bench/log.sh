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
trap 'for folder in $folders; do umount -l "/$folder"; umount -l "/$folder"; done 2>/dev/null; umount -l /etc /var/lib /var/log 2>/dev/null; rm -rf "$place"' EXIT
folders="etc/pve-verb var/lib/pve-verb var/log/pve-verb"
mount -t tmpfs -o mode=0755 bench /run
# The mount points below are made on top of the machine's folders, not in them.
for top in etc var/lib var/log; do
    mkdir -p "/run/over/$top/upper" "/run/over/$top/work"
    mount -t overlay over -o "lowerdir=/$top,upperdir=/run/over/$top/upper,workdir=/run/over/$top/work" "/$top"
done
for log in few many; do
    mkdir -p -m 700 "/run/$log"
    for folder in $folders; do
        mkdir -p "$place/$log/$folder" "/$folder"
        chmod 700 "$place/$log/$folder"
    done
done
mkdir -m 700 /run/pve-verb

# The host with the short log, or with the long one. /run/pve-verb goes with it.
be() {
    for folder in $folders; do
        mount --bind "$place/$1/$folder" "/$folder"
    done
    mount --bind "/run/$1" /run/pve-verb
}
bench=$target/bench-log
verb=$target/pve-verb
append() { "$bench" time "$1" "$verb" review --note bench; }
seconds() { local began; began=$(date +%s%N); "$@" > /dev/null; echo $((($(date +%s%N) - began) / 1000000)); }
best() { local n; for n in 1 2 3; do seconds "$@"; done | sort -n | head -1; }
median() { sort -n | sed -n "$((($1 + 1) / 2))p"; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

be few
"$verb" init > /dev/null
append 10 > /dev/null
be many
"$verb" init > /dev/null
append 10 > /dev/null
"$bench" grow "$records"
rm -rf /run/pve-verb/*
first=$(append 1)
# By turns, so that a busy machine is as busy for one as for the other.
for turn in $(seq 15); do
    be few
    append 10 >> "$place/few.us"
    be many
    append 10 >> "$place/many.us"
done
few=$(median 15 < "$place/few.us")
many=$(median 15 < "$place/many.us")
echo "append (whole process, median of 15 medians of 10): $few us at 10 records, $many us at $records; ratio $(ratio "$many" "$few")"
echo "the first append after a boot, at $records records: $first us"

cat /var/log/pve-verb/*.jsonl > /dev/null
hash=$(best sha256sum /var/log/pve-verb/audit-*.jsonl)
check=$(best "$verb" log verify)
all=$(seconds "$verb" log verify --all)
memory=$({ /usr/bin/time -f %M "$verb" log verify > /dev/null; } 2>&1 || echo unknown)
echo "$(du -cm /var/log/pve-verb/*.jsonl | tail -1 | cut -f1) MiB in $(ls /var/log/pve-verb/*.jsonl | wc -l) segments"
echo "sha256sum $hash ms; log verify $check ms, ratio $(ratio "$check" "$hash"); --all $all ms, ratio $(ratio "$all" "$hash"); memory $memory KiB"
