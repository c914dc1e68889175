#!/usr/bin/env bash
# Does the steps of deploy/Dockerfile in a temporary folder, without an engine: what is written there is what runs here.
# Each stage is a folder; WORKDIR, COPY, RUN, ENV and ENTRYPOINT are taken from the file, other lines are checked to be known.
# What this does not prove: the base images, users and permissions inside a container.
#
# With DIST_PROFILE=debug the build step packs the binaries that are already in target/debug, which is quicker.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
work=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

stage='' workdir=/ user=root
declare -A environment=()
entrypoint=() command=()

json_list() { python3 -c 'import json, sys; print("\n".join(json.loads(sys.argv[1])))' "$1"; }

copy() { # copy WORDS…: COPY of the Dockerfile, from the repository or from a stage
  local from=$repository words=()
  for word in "$@"; do
    case "$word" in
      --from=*) from=$work/${word#--from=} ;;
      *) words+=("$word") ;;
    esac
  done
  local target=${words[-1]} sources=("${words[@]:0:${#words[@]}-1}")
  case "$target" in
    /*) target=$work/$stage$target ;;
    *) target=$work/$stage$workdir/$target ;;
  esac
  mkdir -p "$target"
  for source in "${sources[@]}"; do
    if [ "$from" = "$repository" ] && [ "$source" = . ]; then
      (cd "$repository" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
        tar --create --null --files-from=-) | tar --extract --directory "$target"
    elif [ -d "$from/$source" ]; then
      cp -R "$from/$source/." "$target/"
    else
      cp "$from/$source" "$target/"
    fi
  done
}

run_step() { # run_step TEXT: RUN of the Dockerfile, with the stage's own paths in place of /out and /src
  local text=$1
  case "$text" in
    "make dist")
      # The same command; the compiler's output is shared with this repository, so that nothing is built twice.
      if [ "${DIST_PROFILE:-release}" = debug ]; then text=scripts/dist.sh; fi
      text="export CARGO_TARGET_DIR='$repository/target'; $text; mkdir -p target/dist; cp '$repository'/target/dist/tidegate-\$(scripts/version.sh)-*.tar.gz target/dist/"
      ;;
    groupadd*)
      command -v groupadd >/dev/null && command -v useradd >/dev/null
      echo "    (users are an image's own: the commands exist, they were not run)"
      return
      ;;
    *) text=${text//\/out/$work/$stage/out} ;;
  esac
  mkdir -p "$work/$stage$workdir"
  (cd "$work/$stage$workdir" && bash -euo pipefail -c "$text")
}

while IFS= read -r line || [ -n "$line" ]; do
  case "$line" in '' | '#'*) continue ;; esac
  word=${line%% *} rest=${line#* }
  echo "==> $line"
  case "$word" in
    FROM)
      case "$rest" in
        *' AS '*) stage=${rest##* AS } ;;
        *) stage=final ;;
      esac
      workdir=/
      mkdir -p "$work/$stage"
      ;;
    WORKDIR) workdir=$rest && mkdir -p "$work/$stage$workdir" ;;
    COPY) read -r -a words <<<"$rest" && copy "${words[@]}" ;;
    RUN) run_step "$rest" ;;
    USER) user=$rest ;;
    ENV) for pair in $rest; do environment[${pair%%=*}]=${pair#*=}; done ;;
    ENTRYPOINT) mapfile -t entrypoint < <(json_list "$rest") ;;
    CMD) mapfile -t command < <(json_list "$rest") ;;
    VOLUME | EXPOSE | STOPSIGNAL) ;;
    *)
      echo "image-steps.sh does not know $word: teach it" >&2
      exit 1
      ;;
  esac
done <deploy/Dockerfile

[ "$user" != root ] || { echo "the image must not run as root" >&2; exit 1; }

# The image's own command, with its paths below the stage's folder and ports of this run.
root=$work/final
read -r public admin < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
[s.bind(("127.0.0.1", 0)) for s in sockets]
print(*[s.getsockname()[1] for s in sockets])')
for name in "${!environment[@]}"; do export "$name=${environment[$name]}"; done
arguments=()
for argument in "${command[@]}"; do
  case "$argument" in
    /*) arguments+=("$root$argument") ;;
    *) arguments+=("$argument") ;;
  esac
done
mkdir -p "$root/var/lib/tidegate"
(cd "$root/var/lib/tidegate" && exec "$root${entrypoint[0]}" "${arguments[@]}" --listen "127.0.0.1:$public" --admin "127.0.0.1:$admin") \
  >"$work/ingestd.log" 2>&1 &
server=$!
for _ in $(seq 200); do
  if curl --silent --fail --output /dev/null "http://127.0.0.1:$admin/readyz"; then break; fi
  kill -0 "$server" 2>/dev/null || { cat "$work/ingestd.log" >&2; exit 1; }
  sleep 0.1
done
"$root/usr/local/bin/ingestctl" --admin "http://127.0.0.1:$admin" status
kill -TERM "$server"
wait "$server"
server=
echo "the image's steps hold: archive built, unpacked, started, ready, drained"
