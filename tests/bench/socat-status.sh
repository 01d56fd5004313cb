#!/bin/bash
# The same as bench-floor, as a careful admin would write it with what Debian has.
#   socat-status.sh LOG
set -euo pipefail
coproc QMP { exec socat - UNIX-CONNECT:/run/qemu-server/102.qmp; }
read -r -t 3 _ <&"${QMP[0]}"
echo '{"execute":"qmp_capabilities"}' >&"${QMP[1]}"
read -r -t 3 _ <&"${QMP[0]}"
echo '{"execute":"query-status"}' >&"${QMP[1]}"
while read -r -t 3 answer <&"${QMP[0]}" && [[ $answer != *'"return"'* ]]; do :; done
kill "$QMP_PID"
state=${answer#*'"status": "'}
state=${state%%'"'*}
echo "$(date -u +%FT%TZ) status of VM 102: $state" | dd of="$1" oflag=append conv=notrunc,fdatasync status=none
echo "$state"
