# A system: a chroot with a suite of Debian, made once, and the checks that run in it.
#
# The script of a system sets variables and sources this file:
#
#   suite     Debian's name of the system
#   packages  what the checks need besides a minimal system
#   checks    names from the file `checks`, and `wheel`
#   list      another file of checks than `checks`
#
# `run` passes what is checked:
#
#   HEAPLINE_PAIR     folder of the built `aggregator` and `report`
#   HEAPLINE_WHEEL    the built wheel
#   HEAPLINE_PYTEST   folder with the wheels of pytest
#   HEAPLINE_E2E      the built end-to-end tests
#   HEAPLINE_SYSTEMS  folder of the chroots
#
# Standard output gets a line for each check: its name, and `ok`, `FAILED` or the reason for which
# nothing was checked. Standard error gets all else.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
root=$HEAPLINE_SYSTEMS/$(basename "$0")
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

skip() {
    echo "skipped: $*"
    exit 0
}

# Runs a command in the system, as the child of the first process of a new namespace of processes:
# all that the command leaves running ends with it, and all that is mounted is unmounted.
inside() {
    unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" -- sh -c '
        root=$1; shift
        mount --rbind /dev "$root/dev" && exec chroot "$root" /bin/sh -c "\"\$@\"; exit \$?" sh "$@"' sh "$root" "$@"
}

# The machine's own package mirror, from apt.
mirror() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
        awk '$1 == "Debian" { print $2; exit }'
}

make_root() {
    local from scripts=/usr/share/debootstrap/scripts
    from=$(mirror)
    [[ -n $from ]] || skip "apt knows no mirror of Debian (apt-get update)"
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    # A suite younger than debootstrap is made like Debian's newest.
    [[ -e $scripts/$suite ]] || set -- sid
    debootstrap --variant=minbase --keyring="$keyring" "$suite" "$root" "$from" "$scripts/${1:-$suite}" >&2 ||
        skip "debootstrap cannot make $suite here"
    # A mirror may be a copy that was frozen long ago.
    echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/frozen"
    inside apt-get update -qq >&2 || skip "its packages cannot be listed"
    inside env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2 || skip "its packages cannot be installed"
    echo "${packages[@]}" >"$root/packages"
}

# Puts the programs, the tests and what the tests read into the system. The tests run by the C
# library of the machine that built them, and everything that they start by the system's own.
fill_root() {
    rm -rf "$root/heapline" "${root:?}$checkout"
    mkdir -p "$root/heapline/built-by" "$root$checkout/tests" "$root$checkout/python" "$root$checkout/shared-format/tests" \
        "$root$target/tmp"
    cp -r "$HEAPLINE_PAIR" "$root/heapline/programs"
    cp -r "$HEAPLINE_PYTEST" "$root/heapline/pytest"
    cp "$HEAPLINE_E2E" "$root/heapline/e2e"
    cp "$HEAPLINE_WHEEL" "$checkout/tests/wheels" "$root/heapline"
    ldd "$HEAPLINE_E2E" | grep -o '/[^ ]*' | xargs cp -t "$root/heapline/built-by"
    cp -r "$checkout/tests/victims" "$root$checkout/tests"
    cp -r "$checkout/shared-format/tests/fixtures" "$root$checkout/shared-format/tests"
    cp -r "$checkout/python/"{tests,README.md,pyproject.toml} "$root$checkout/python"
}

# Sockets in /tmp are named after processes, whose numbers begin anew in each namespace.
clean() {
    rm -rf "$root"/tmp/heapline-*
    inside env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 CI=true "$@"
}

check_tests() {
    local said tests=("$@") loader=/heapline/built-by
    ((${#tests[@]})) || return
    said=$(clean HEAPLINE_BIN_DIR=/heapline/programs "$loader/ld-linux-x86-64.so.2" --library-path "$loader" \
        /heapline/e2e --exact "${tests[@]}" 2>&1) || true
    echo "$said" >&2
    [[ $said == *"test result: ok. ${#tests[@]} passed; 0 failed; 0 ignored"* ]]
}

check_wheel() {
    local pythons
    mapfile -t pythons < <(cd "$root" && ls usr/bin/python3.* | grep -E '/python3\.[0-9]+$')
    clean bash /heapline/wheels "/heapline/$(basename "$HEAPLINE_WHEEL")" /heapline/pytest \
        "$checkout/python" "${pythons[@]/#//}" >&2
}

((EUID == 0)) || skip "only root can make a chroot"
for tool in debootstrap unshare chroot apt-get; do
    [[ -x $(command -v $tool) ]] || skip "$tool is not installed"
done
[[ -e $keyring ]] || skip "debian-archive-keyring is not installed"
unshare --mount --pid --fork true 2>/dev/null || skip "no namespaces here (unshare)"

mkdir -p "$HEAPLINE_SYSTEMS"
exec {lock}>"$root.lock"
flock "$lock"
[[ $(cat "$root/packages" 2>/dev/null) == "${packages[*]}" ]] || make_root
target=$(realpath -m "${CARGO_TARGET_DIR:-$checkout/target}")
fill_root

echo "glibc $(clean ldd --version | awk 'NR == 1 { print $NF }')"
for check in "${checks[@]}"; do
    printf '\n== %s: %s\n' "$(basename "$0")" "$check" >&2
    mapfile -t tests < <(awk -v check="$check" '$1 == check { print $2 }' "$here/${list:-checks}")
    if [[ $check == wheel ]]; then result=$(check_wheel && echo ok || echo FAILED)
    else result=$(check_tests "${tests[@]}" && echo ok || echo FAILED); fi
    echo "$check $result"
done
