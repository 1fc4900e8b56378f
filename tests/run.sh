#!/bin/bash -p
# Runs every check and every test; arguments go to pytest. PYTHON=... chooses an interpreter.
set -euo pipefail
cd -P -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
# shellcheck source=run-heartbeat-public.sh
source ./run-heartbeat-public.sh

venv=.venv-dev
if [[ -n ${PYTHON-} ]]; then
    venv=$venv-${PYTHON##*/}
    choose_python() { python=$PYTHON; }
fi
is_built "$venv" requirements-dev.txt requirements.txt ||
    build "$venv" requirements-dev.txt requirements.txt

# Cron's PATH has no place for dockerd, pgbouncer and the like.
export PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin
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
check mypy run mypy ./*.py tasks
check shellcheck "$venv/bin/shellcheck" -x run-heartbeat-public.sh tests/run.sh .ci/run
check pytest run pytest "$@"

if ((${#failed[@]})); then
    printf '\nfailed: %s\n' "$(IFS=,; echo "${failed[*]}")"
    exit 1
fi
