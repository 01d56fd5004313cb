#!/bin/bash
# What an admin's script keeps of a wedged VM before it touches it: the usual commands one after the other, each answer a file, all of it on
# disk in the end.
#   evidence-by-hand.sh FOLDER
set -uo pipefail
mkdir -p "$1" && cd "$1" || exit 1
keep() { local name=$1; shift; "$@" >"$name" 2>&1 </dev/null || true; }
hmp() { printf '%s\n' "$2" | qm monitor 102 >"$1" 2>/dev/null || true; }
keep status.txt qm status 102 --verbose
keep config.txt qm config 102
keep pending.txt qm pending 102
keep snapshots.txt qm listsnapshot 102
hmp block.txt 'info block'
hmp blockstats.txt 'info blockstats'
hmp cpus.txt 'info cpus'
keep ping.txt qm guest cmd 102 ping
keep fsinfo.txt qm guest cmd 102 get-fsinfo
pid=$(cat /run/qemu-server/102.pid)
keep process.txt cat "/proc/$pid/status"
keep threads.txt ps -L -o tid,stat,wchan:32,comm -p "$pid"
keep pressure.txt cat /proc/pressure/io
keep meminfo.txt cat /proc/meminfo
keep tasks.txt cat /var/log/pve/tasks/active
keep journal.txt journalctl --no-pager -n 200
keep kernel.txt dmesg
sync -- *
