#!/bin/bash -p
# Runs one cycle of the heartbeat, from any working directory and in cron's bare environment.
# Makes .venv on first use, and anew when requirements.lock changed. (-p: no BASH_ENV.)
set -euo pipefail

WAIT_SECONDS=60

main() {
    enter_own_folder
    open_lock
    local environment=(.venv requirements)
    [[ ${1-} != --demo ]] || environment=(.venv-demo requirements-demo)
    lock --shared || start_over "$@"
    is_built "${environment[@]}" || { build "${environment[@]}"; start_over "$@"; }
    # -I: no PYTHON* variable, no user site-packages, nothing of this folder on the import path.
    # The lock goes along, as file descriptor 9.
    exec "$PWD/${environment[0]}/bin/python" -I "$PWD/heartbeat_public.py" "$@"
}

enter_own_folder() {
    script=${BASH_SOURCE[0]}
    [[ ! -L $script ]] || script=$(readlink -f -- "$script")
    [[ $script == */* ]] || script=./$script
    unset CDPATH
    cd -P -- "${script%/*}"
}

# A file that only this user can open, so that no neighbour holds it up; the folder itself where
# this user may not make one.
open_lock() {
    [[ -e .lock ]] || (umask 077 && : >.lock) 2>/dev/null || true
    if [[ -w .lock ]]; then exec 9<>.lock; else exec 9<.; fi
}

# After waiting or building: an upgrade may have come in between, of this file too.
start_over() {
    exec "./${script##*/}" "$@"
}

# lock --shared: nobody upgrades as long as it is held; an upgrade is `flock .lock git pull`.
# lock --exclusive: nor does a cycle run. False where it had to wait.
lock() {
    command -v flock >/dev/null || fail "flock is not in PATH ($PATH); cron expands no variable in it"
    flock "$1" --timeout 1 9 && return
    say "waiting for an upgrade, an installation or a cycle of an older version to end"
    flock "$1" --timeout "$WAIT_SECONDS" 9 ||
        fail "$PWD is still locked after $WAIT_SECONDS s; lslocks shows by which process"
    return 1
}

# is_built VENV NAME: whether it was built from just this NAME.txt and NAME.lock; forks nothing.
is_built() {
    # Bash ends at once where $(<FILE) has no file to read.
    [[ -x $1/bin/python && -r $1/built-from && -r $2.txt && -r $2.lock ]] &&
        [[ $(<"$1/built-from") == "$(<"$2.txt")$(<"$2.lock")" ]]
}

# build VENV NAME: beside the old one, which is exchanged when the new one is complete.
# A subshell, so that its end, however it comes, clears up.
build() (
    lock --exclusive || true
    # Whoever upgraded before the first start made it, as its umask has it.
    [[ ! -O .lock ]] || chmod 600 .lock
    if is_built "$@"; then exit; fi
    check_lock "$2"
    choose_python
    new=$1.new old=$1.old
    # Of a signal of its own bash may die before it clears up, or while it does.
    trap 'rm -rf "$new" "$old"; exit 1' HUP INT TERM
    trap 'rm -rf "$new" "$old"' EXIT
    rm -rf "$new" "$old"
    say "making $1 with $python"
    install "$new" "$2.lock" || fail "cannot make $PWD/$1 from $2.lock: $(reason)"
    # The power may go: what says "complete" must not outlive what it speaks of.
    sync --file-system "$new"
    printf '%s' "$(<"$2.txt")$(<"$2.lock")" >"$new/built-from"
    [[ ! -e $1 ]] || mv "$1" "$old"
    mv "$new" "$1"
)

# pip would install what the lock says and never look at the pins.
check_lock() {
    local pin lock
    [[ -r $1.txt && -r $1.lock ]] || fail "$1.txt and $1.lock are needed: git checkout $1.{txt,lock}"
    lock=$(<"$1.lock")
    while read -r pin _ || [[ $pin ]]; do
        [[ $pin != *==* || $'\n'$lock == *$'\n'"$pin "* ]] ||
            fail "$1.lock does not fit $1.txt: $pin is not in it; its first lines say how it is made"
    done <"$1.txt"
}

# pip in a step of its own: venv would not show why it failed. Only wheels: sources would be built
# with packages that no lock lists. PIP_* variables count, PYTHON* do not.
install() {
    keep_output "$python" -I -m venv --without-pip "$1" &&
        keep_output "$1/bin/python" -I -m ensurepip &&
        keep_output "$1/bin/python" -I -m pip install --no-input --disable-pip-version-check \
            --only-binary :all: --require-hashes --requirement "$2"
}

keep_output() {
    output=$("$@" 2>&1)
}

# Says in one line why the last of them failed.
reason() {
    local package=$'\n +([^ ]+) from ' error=$'(^|\n)(ERROR|Error): ([^\n]*)'
    case $output in
    *"DO NOT MATCH THE HASHES"*)
        [[ $output =~ $package ]] || BASH_REMATCH=([1]="a package")
        echo "the bytes of ${BASH_REMATCH[1]} are not the locked ones"
        ;;
    *"No space left"* | *"[Errno 28]"*) echo "no space left on the disk" ;;
    *"Retrying (Retry"*) echo "no network: the package index does not answer" ;;
    *)
        [[ $output =~ $error ]] || BASH_REMATCH=([3]="${output##*$'\n'}")
        echo "${BASH_REMATCH[3]}"
        ;;
    esac
}

# Sets `python` to one that is new enough and can make virtual environments.
choose_python() {
    local candidate found detail why=''
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        found=$("$candidate" -I -c "$PROBE" 2>/dev/null) || continue
        detail=${found#* }
        case ${found%% *} in
        good) python=$detail && return ;;
        bare) why=${why:-"$candidate-venv is missing: apt-get install $candidate-venv"} ;;
        old) why=${why:-"needs Python 3.10 or newer, found $detail: apt-get install python3.12-venv"} ;;
        esac
    done
    fail "${why:-"Python is missing: apt-get install python3-venv"}"
}

# The real path has the version in its name on Debian, so that it breaks, and .venv is made anew,
# when a system upgrade replaces that version.
PROBE='
import os, sys
version = "%d.%d.%d" % tuple(sys.version_info[:3])
if sys.version_info < (3, 10):
    print("old " + version)
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("bare " + version)
    else:
        print("good " + os.path.realpath(sys.executable))
'

say() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
}

fail() {
    say "$1"
    exit 1
}

# tests/run.sh sources this file for is_built and build.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
fi
