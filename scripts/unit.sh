#!/usr/bin/env bash
# `unit.sh [cargo's arguments]`: the workspace's own tests. With CI=true those that failed are run once more, alone:
# which of them pass then is told by name, and only what fails twice fails the run.
set -uo pipefail
cd "$(dirname "$0")/.."
cargo="${CARGO:-cargo}"
told="$(mktemp)"
trap 'rm -f "$told"' EXIT

"$cargo" test --workspace --locked --no-fail-fast "$@" 2>&1 | tee "$told"
ended=$?
if [ "${CI:-}" != true ] || [ "$ended" -eq 0 ]; then exit "$ended"; fi

# A target that ended in the midst (a build that fails, an abort) is no matter of single tests.
mapfile -t failed < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$told" | sort -u)
[ "${#failed[@]}" -gt 0 ] && [ "$(grep -c '^test result: ' "$told")" -ge "$(grep -cE '^ *(Running|Doc-tests) ' "$told")" ] || exit "$ended"
echo "== once more, alone, what failed: ${failed[*]}"
for test in "${failed[@]}"; do
  again="$("$cargo" test --workspace --locked -- --exact "$test" 2>&1)" || { echo "$again"; echo "== FAILED TWICE: $test"; exit 1; }
  # A doc test has another name than the filter: nothing ran.
  grep -q '^test result: ok. 1 passed' <<<"$again" || { echo "== DID NOT RUN AGAIN: $test"; exit 1; }
done
echo "== FAILED AT FIRST, PASSED ALONE: ${failed[*]}"
