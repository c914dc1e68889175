#!/usr/bin/env bash
# Packs the release archive out of binaries already built:
#   <target>/dist/tidegate-<version>-<target triple>.tar.gz, and its SHA-256 beside it.
# The same binaries give the same bytes: names sorted, owner 0, one time for every file.
set -euo pipefail
cd "$(dirname "$0")/.."

target_dir=${CARGO_TARGET_DIR:-target}
profile=${DIST_PROFILE:-release}
version=$(scripts/version.sh)
triple=$(rustc -vV | sed -n 's/^host: //p')
name=tidegate-$version-$triple
binaries=$target_dir/$profile
stage=$target_dir/dist/$name
# 2026-01-01T00:00:00Z, wherever it is packed.
time=${SOURCE_DATE_EPOCH:-1767225600}

rm -rf "$stage"
mkdir -p "$stage"/{bin,config,completions,systemd,docs}
install -m 0755 "$binaries/ingestd" "$binaries/ingestctl" "$stage/bin/"
cp -R config/. "$stage/config/"
cp deploy/tidegate.service "$stage/systemd/"
cp docs/*.md "$stage/docs/"
cp LICENSE README.md CHANGELOG.md "$stage/"
"$binaries/ingestctl" completions bash >"$stage/completions/ingestctl.bash"
"$binaries/ingestctl" completions zsh >"$stage/completions/_ingestctl"
"$binaries/ingestctl" completions fish >"$stage/completions/ingestctl.fish"
find "$stage" -type d -exec chmod 0755 {} +
find "$stage" -type f ! -path "*/bin/*" -exec chmod 0644 {} +

archive=$target_dir/dist/$name.tar.gz
tar --create --directory "$target_dir/dist" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$time" \
  --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime "$name" |
  gzip --no-name --best >"$archive"
(cd "$target_dir/dist" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
echo "$archive"
