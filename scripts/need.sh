#!/usr/bin/env bash
# Makes sure that what a target needs is here: `need.sh build`, `need.sh test`, `need.sh redis`. On Debian it installs what is missing.
set -euo pipefail

packages=()
want() { # want COMMAND PACKAGE
  command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}

case "${1:?build, test or redis}" in
  build)
    want cc build-essential # zstd, ring, zlib, librdkafka and its OpenSSL are C
    perl -MIPC::Cmd -MFindBin -e 1 >/dev/null 2>&1 || packages+=(perl) # OpenSSL's own build
    ;;
  test)
    want curl curl
    want chromium chromium # a browser that sends
    want openssl openssl
    want strace strace
    want redis-server redis-server
    want rsyslogd rsyslog
    compgen -G '/usr/lib/*/rsyslog/omelasticsearch.so' >/dev/null || packages+=(rsyslog-elasticsearch)
    want javac default-jdk-headless # S3Proxy, Apache Kafka and OpenSearch, which Maven fetches
    want mvn maven
    want mkfs.ext4 e2fsprogs
    want node nodejs # public clients in JavaScript
    want npm npm
    compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || packages+=(libfaketime)
    want python3 python3
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || packages+=(python3-venv)
    ;;
  redis)
    want redis-server redis-server
    want redis-cli redis-tools
    ;;
  *)
    echo "need.sh: build, test or redis, not $1" >&2
    exit 2
    ;;
esac

if [ "${1}" = build ] && ! command -v cargo >/dev/null 2>&1; then
  echo "cargo is missing: install Rust first (rustup; rust-toolchain.toml names the version)" >&2
  exit 1
fi
if [ "${1}" = test ] && ! command -v go >/dev/null 2>&1; then
  # Debian's is older than the OpenTelemetry Collector wants.
  echo "go is missing: install Go first (https://go.dev/dl; tests/clients/go/go.mod names the version)" >&2
  exit 1
fi
[ ${#packages[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
  echo "missing, and there is no apt-get to install it with: ${packages[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "missing, and only root may install it: ${packages[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing ${packages[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
