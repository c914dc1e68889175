#!/usr/bin/env bash
# Fuzzes: `fuzz.sh SECONDS [TARGET…]`, each target that long, JOBS (2) at a time; `fuzz.sh minimise` renews the corpora.
# Each first runs its committed corpus. Logs and what was found on the way: fuzz/target/runs/; crashes: fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?seconds for each target, or minimise}
shift
jobs_max=${JOBS:-2}
cargo=${CARGO:-cargo}
# Not AddressSanitizer: this code forbids `unsafe`, what is looked for panics, and without it three times as much is tried.
sanitizer=${SANITIZER:-none}

if ! "$cargo" +nightly --version >/dev/null 2>&1; then
  echo "SKIPPED: make fuzz: needs a nightly toolchain (rustup toolchain install nightly)"
  [ -z "${CI:-}" ] || exit 1
  exit 0
fi
# About a CPU minute, once.
"$cargo" fuzz --version >/dev/null 2>&1 || "$cargo" install --locked --quiet cargo-fuzz@0.13.2

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  mapfile -t targets < <(cd fuzz/targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi
"$cargo" +nightly fuzz build --sanitizer "$sanitizer"
binaries=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release
mkdir -p fuzz/target/runs

dictionary() { # dictionary TARGET
  case $1 in
    bodies | protocols | otlp | events | requests | lake) echo "-dict=fuzz/dictionaries/json.dict" ;;
    schemas | config | units) echo "-dict=fuzz/dictionaries/$1.dict" ;;
  esac
}

last() { # last LOG NAME: the last figure of that name that libFuzzer printed
  grep -aoE "$2[:=]? +[0-9]+" "$1" | tail -n 1 | grep -oE '[0-9]+$' || echo 0
}

run() { # run TARGET
  local target=$1 log=fuzz/target/runs/$1.log found=fuzz/target/runs/$1
  mkdir -p "$found" "fuzz/corpus/$target" "fuzz/artifacts/$target"
  # shellcheck disable=SC2046
  if "$binaries/$target" -runs=0 "fuzz/corpus/$target" >"$log" 2>&1 &&
    "$binaries/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=8192 \
      -artifact_prefix="fuzz/artifacts/$target/" -print_final_stats=1 $(dictionary "$target") \
      "$found" "fuzz/corpus/$target" >>"$log" 2>&1; then
    echo "fuzz $target: $seconds s, $(last "$log" number_of_executed_units) executions, $(last "$log" cov) edges, $(last "$log" ft) features: nothing found"
  else
    echo "fuzz $target: FOUND something; the end of $log:"
    grep -aE "panicked|assertion|ERROR|Test unit written|left:|right:" "$log" | tail -n 8
    return 1
  fi
}

minimise() { # minimise TARGET: the committed corpus becomes the least that reaches as much; findings stay
  local target=$1 least
  least=$(mktemp -d)
  mkdir -p "fuzz/target/runs/$target" "fuzz/corpus/$target"
  "$binaries/$target" -set_cover_merge=1 -use_counters=0 -max_len=1024 "$least" "fuzz/corpus/$target" "fuzz/target/runs/$target" \
    >"fuzz/target/runs/$target.merge.log" 2>&1
  find "fuzz/corpus/$target" -type f ! -name 'found-*' -delete
  mv "$least"/* "fuzz/corpus/$target/"
  rmdir "$least"
  echo "fuzz $target: $(find "fuzz/corpus/$target" -type f | wc -l) inputs, $(du -sb "fuzz/corpus/$target" | cut -f1) bytes"
}

each=run
[ "$seconds" != minimise ] || each=minimise
failed=$(mktemp)
for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs_max" ]; do
    sleep 0.2
  done
  { "$each" "$target" || echo "$target" >>"$failed"; } &
done
wait
status=0
[ ! -s "$failed" ] || status=1
rm "$failed"
exit "$status"
