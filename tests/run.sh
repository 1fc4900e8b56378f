#!/bin/bash -p
# Runs every check and every test; arguments go to pytest. --quick, as the first one, leaves out the
# slow tests; --power runs nothing but the power cuts, which nothing else runs. PYTHON=... chooses an
# interpreter, WORKERS=... how many tests run at once (one more than cores, since some wait).
set -euo pipefail
cd -P -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
# shellcheck source=run-heartbeat-public.sh
source ./run-heartbeat-public.sh

venv=.venv-dev
if [[ -n ${PYTHON-} ]]; then
    venv=$venv-${PYTHON##*/}
    choose_python() { python=$PYTHON; }
fi
# Locked only while it installs: a test run keeps nobody from anything.
open_lock
is_built "$venv" requirements-dev || build "$venv" requirements-dev
exec 9<&-

# Cron's PATH has no place for dockerd, pgbouncer and the like.
export PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin
if [[ ${1-} == --quick ]]; then
    set -- -m "not slow" "${@:2}"
elif [[ ${1-} == --power ]]; then
    set -- -m power "${@:2}" tests/faults/power
fi
failed=()

check() {
    printf '\n== %s\n' "$1"
    "${@:2}" || failed+=("$1")
}

run() {
    "$venv/bin/python" -Es -m "$@"
}

check "ruff check" run ruff check .
check "ruff format" run ruff format --check .
check mypy run mypy .
check shellcheck "$venv/bin/shellcheck" -x run-heartbeat-public.sh tests/run.sh .ci/run .ci/newcomer
check pytest run pytest --numprocesses "${WORKERS:-$(($(nproc) + 1))}" --dist loadgroup "$@"

if ((${#failed[@]})); then
    printf '\nfailed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
