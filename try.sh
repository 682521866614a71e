#!/usr/bin/env bash
# Builds Heapline, records a real program with it, and prints where its memory was at the peak.
#
# The recorded program is the `report` of Heapline while it reads a snapshot of `sort`. The two
# snapshots go to the folder `try` in the build folder. Nothing is installed.
set -euo pipefail
cd "$(dirname "$0")"

cargo build --release --locked -p heapline-aggregator -p heapline-tools

build=${CARGO_TARGET_DIR:-target}
programs=$(cd "$build/release" && pwd)
mkdir -p "$build/try"

printf '\n== Record: sort, then report while it reads the snapshot of sort\n\n'
"$programs/aggregator" run -o "$build/try/sort.snap.zst" -- sort docs/laboratory.md -o /dev/null
"$programs/aggregator" run -o "$build/try/report.snap.zst" -- \
    "$programs/report" "$build/try/sort.snap.zst" -o /dev/null

printf '\n== Report: the memory of report at its peak\n\n'
tools/report "$build/try/report.snap.zst" --at peak --source --limit 5

# Counts and mode of the snapshot, from the JSON: the first domain is malloc's.
json=$(tools/report "$build/try/report.snap.zst" --format json)
mode=$(sed -n 's/^ *"mode": "\(.*\)",$/\1/p' <<<"$json")
allocs=$(sed -n 's/^ *"allocs": \([0-9]*\),$/\1/p' <<<"$json")
allocs=${allocs%%$'\n'*}

case $programs in
    "$PWD"/*) on_path="\$PWD${programs#"$PWD"}" ;;
    *) on_path=$programs ;;
esac
cat <<END

Heapline works here: $allocs allocations recorded, mode: $mode.
The programs aggregator and report are in $programs. To have them on PATH:

    export PATH="$on_path:\$PATH"
END
