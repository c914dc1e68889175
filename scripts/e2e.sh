#!/usr/bin/env bash
# `e2e.sh PYTHON [pytest's arguments]`: the end-to-end tests. With CI=true those that failed are run once more, alone:
# which of them pass then is told by name, and only what fails twice fails the run.
set -uo pipefail
python="$(realpath -s "${1:?the Python of the tests}")"
shift
cd "$(dirname "$0")/../tests/e2e"

"$python" -m pytest "$@"
ended=$?
# 1: tests failed. Anything else is no matter of a test.
if [ "${CI:-}" != true ] || [ "$ended" -ne 1 ]; then exit "$ended"; fi

failed="$(cat .pytest_cache/v/cache/lastfailed)"
echo "== once more, alone, what failed: $failed"
"$python" -m pytest -n 0 --last-failed --last-failed-no-failures none || exit $?
echo "== FAILED AT FIRST, PASSED ALONE: $failed"
