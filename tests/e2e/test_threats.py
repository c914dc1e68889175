"""Hostile clients and broken surroundings, with other people's programs: openssl, cargo-deny, libfaketime."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness import BINARIES, REPOSITORY, check_nothing_missing, http, lake_ids, tally, toml, wait_until
from test_tls_reload import make_certificate


def tls_server(make_server, folder):
    make_certificate(folder, "live")
    cert, key = folder / "live.pem", folder / "live.key"
    return make_server(edge=f"tls = {{ cert = {toml(cert)}, key = {toml(key)} }}").start()


def s_client(server, *arguments, stdin=b""):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=60)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


def test_old_tls_is_refused_and_new_tls_is_taken(make_server, tmp_path):
    server = tls_server(make_server, tmp_path / "certificates")
    for version in ("-tls1", "-tls1_1"):
        status, said = s_client(server, version, "-cipher", "ALL:@SECLEVEL=0")
        assert status != 0 and "Cipher is (NONE)" in said, f"{version}: {said[-1500:]}"
    for version, name in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
        status, said = s_client(server, version)
        assert status == 0 and name in said, f"{version}: {said[-1500:]}"
    for weak in ("NULL", "aNULL", "RC4", "3DES", "AES128-SHA", "AES256-GCM-SHA384"):
        status, said = s_client(server, "-tls1_2", "-cipher", f"{weak}:@SECLEVEL=0")
        assert status != 0, f"{weak} is taken: {said[-1500:]}"


def test_early_data_is_not_taken(make_server, tmp_path):
    server = tls_server(make_server, tmp_path / "certificates")
    session, early = tmp_path / "session", tmp_path / "early"
    early.write_bytes(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    request = early.read_bytes()
    # A session to come back with: tickets arrive with the first answer.
    s_client(server, "-tls1_3", "-sess_out", session, "-ign_eof", stdin=request)
    assert session.exists(), "the server gave no session"
    status, said = s_client(server, "-tls1_3", "-sess_in", session, "-early_data", early, "-ign_eof", stdin=request)
    assert "Early data was accepted" not in said, said[-1500:]
    assert '"ok":true' in said, said[-1500:]


def test_junk_before_and_after_a_handshake_harms_nobody(make_server, tmp_path):
    server = tls_server(make_server, tmp_path / "certificates")
    scale = int(os.environ.get("THREAT_SCALE", "1"))
    for n in range(100 * scale):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            plain.sendall([b"\x16\x03\x01\xff\xff", b"\x15\x03\x01\x00\x02\x02\x28", b"SSH-2.0-x\r\n", os.urandom(200)][n % 4])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for _ in range(20 * scale):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            with context.wrap_socket(plain) as tls:
                tls.sendall(os.urandom(500) + b"\r\n\r\n")
                tls.recv(4096)
    status, said = s_client(server, "-ign_eof", stdin=b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status == 0 and '"ok":true' in said, said[-1500:]


def test_lines_of_text_logs_are_not_broken_either(make_server):
    server = make_server()
    server.starts += 1
    environment = dict(os.environ, TIDEGATE_LOG_LEVEL="trace")
    with open(server.log_file(), "wb") as log:
        server.process = subprocess.Popen(
            [BINARIES / "ingestd", "--config", server.config, "--log-format", "text"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    wait_until("ingestd is ready", lambda: http("GET", f"{server.admin}/readyz", timeout=5).status == 200)
    key = server.add_tenant()
    for end in ("\r\n", "\n", "\x1b[31m", "\x1b]0;x\x07", "\u2028", "\u2029", "\u0085", "\u009b2J", "\x00", "\x08", "\u202e"):
        text = f"canary{end}2026-01-01T00:00:00Z ERROR forged"
        for event in ({"event_type": text}, {"event_type": "t", "event_id": text}, {"event_type": "t", text: 1}):
            server.send(event, key)
        server.send(text.encode(), key)
    server.settle()
    text = server.log_file().read_bytes().decode()
    assert text.count("\n") > 50, "it logs at trace"
    for line in text.split("\n"):
        assert not line.startswith("2026-01-01T00:00:00Z ERROR forged"), line
        broken = [c for c in line if (ord(c) < 32 and c != "\t") or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e"]
        assert not broken, f"{broken}: {line!r}"


def owner_of_its_memory(*arguments):
    """Who may look into an `ingestd` that runs as somebody without rights: the owner of its files in /proc."""
    user = 65534 if os.getuid() == 0 else os.getuid()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chown(folder, user, -1)
        config = Path(folder) / "tidegate.toml"
        config.write_text("")
        listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir", f"{folder}/data"]
        process = subprocess.Popen(
            [BINARIES / "ingestd", *listen, *[str(a).replace("CONFIG", str(config)) for a in arguments]],
            user=user, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TIDEGATE_EDGE__ALSO_LISTEN": "[]"},
        )  # fmt: skip
        try:
            for line in process.stderr:
                if '"ready"' in line:
                    break
            return user, os.stat(f"/proc/{process.pid}/environ").st_uid
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_no_other_program_of_its_user_may_read_its_memory():
    user, owner = owner_of_its_memory("--config", "CONFIG")
    assert owner == 0 != user, f"a program of user {user} may read it"
    # The other way round, so that this test would see it.
    user, owner = owner_of_its_memory("--dev")
    assert owner == user, "with --dev a debugger may"


def planted(folder, manifest, stubs=()):
    """A package of its own under our policy; `stubs` are packages beside it: (name, licence)."""
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "lib.rs").write_text("")
    for name, licence in stubs:
        stub = folder / name
        (stub / "src").mkdir(parents=True)
        (stub / "src" / "lib.rs").write_text("")
        (stub / "Cargo.toml").write_text(
            f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\nlicense = "{licence}"\n'
        )
    (folder / "Cargo.toml").write_text(
        f'[package]\nname = "planted"\nversion = "0.1.0"\nedition = "2021"\nlicense = "MIT"\npublish = false\n\n[dependencies]\n{manifest}'
    )
    environment = dict(os.environ, CARGO_TARGET_DIR=str(folder / "target"))
    environment.pop("RUSTUP_TOOLCHAIN", None)
    command = ["cargo", "deny", "--manifest-path", folder / "Cargo.toml", "--config", REPOSITORY / "deny.toml",
               "check", "bans", "licenses", "sources"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def test_what_the_dependency_policy_forbids_is_found(tmp_path):
    if not shutil.which("cargo-deny"):
        pytest.skip("cargo-deny is not installed (make deny-install)")
    status, said = planted(tmp_path / "good", 'fine = { path = "fine" }\n', [("fine", "MIT")])
    assert status == 0, f"what is allowed is refused: {said[-2000:]}"
    for banned in ("openssl-sys", "native-tls", "bincode", "rustls-pemfile"):
        status, said = planted(tmp_path / banned, f'{banned} = {{ path = "{banned}" }}\n', [(banned, "MIT")])
        assert status != 0 and "banned" in said and banned in said, f"{banned}: {said[-2000:]}"
    for licence in ("GPL-3.0-only", "AGPL-3.0-or-later", "SSPL-1.0"):
        status, said = planted(tmp_path / licence, 'copyleft = { path = "copyleft" }\n', [("copyleft", licence)])
        assert status != 0 and "rejected" in said, f"{licence}: {said[-2000:]}"
    # A source of its own: a repository that nobody allowed.
    repository = tmp_path / "repository"
    (repository / "src").mkdir(parents=True)
    (repository / "src" / "lib.rs").write_text("")
    (repository / "Cargo.toml").write_text('[package]\nname = "elsewhere"\nversion = "1.0.0"\nlicense = "MIT"\n')
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    status, said = planted(tmp_path / "git", f'elsewhere = {{ git = "file://{repository}" }}\n')
    assert status != 0 and "source" in said and "elsewhere" in said, said[-2000:]


FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


def test_a_clock_that_jumps_changes_no_file_twice_and_fools_neither_quota_nor_ids(make_server, tmp_path):
    if FAKETIME is None:
        pytest.skip("libfaketime is not installed")
    offset = tmp_path / "offset"

    def jump(text):
        fresh = tmp_path / "offset.new"
        fresh.write_text(text)
        fresh.rename(offset)

    jump("+0d")
    server = make_server()
    environment = dict(
        os.environ, LD_PRELOAD=str(FAKETIME), FAKETIME_TIMESTAMP_FILE=str(offset), FAKETIME_NO_CACHE="1",
        DONT_FAKE_MONOTONIC="1", FAKETIME_DONT_FAKE_MONOTONIC="1",
    )  # fmt: skip

    def start():
        server.starts += 1
        with open(server.log_file(), "wb") as log:
            server.process = subprocess.Popen(
                [BINARIES / "ingestd", "--config", server.config],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        wait_until("ingestd is ready", lambda: http("GET", f"{server.admin}/readyz", timeout=5).status == 200)

    start()
    key = server.add_tenant()
    slow = server.add_tenant("slow", "--events-per-second", "5")
    sent, hours = set(), set()
    for n, there in enumerate(["+0d", "+1d", "-1d", "+365d", "-2d", "+3600s", "-1s", "+0d"]):
        jump(there)
        ids = [f"{n}-{i}" for i in range(20)]
        # No event says when it was: the receive time, wherever the clock stands, is its hour.
        server.accept([{"event_type": "jump", "event_id": one} for one in ids], key)
        sent.update(ids)
        server.settle()
        files = sorted(str(p.relative_to(server.lake)) for p in server.lake.rglob("*.parquet"))
        hours.update(f.rsplit("/", 1)[0] for f in files)
        reloaded = http("POST", f"{server.admin}/api/v1/reload", b"{}", {"Content-Type": "application/json"})
        assert reloaded.status == 200, reloaded
        # The same ids again after the jump: known, as long as the window has not passed by the clock.
        again = server.send([{"event_type": "jump", "event_id": one} for one in ids], key)
        assert again.json()["deduplicated"] == 20, again
        # A quota counts by a clock that does not jump.
        wait_until("the quota lets one through", lambda: server.send({"event_type": "q"}, slow).status == 200, timeout=20)
        burst = [server.send({"event_type": "q"}, slow).status for _ in range(30)]
        assert burst.count(429) >= 10, f"at {there} the quota let through {burst.count(200)} of 30"
        if n % 3 == 2:
            server.settle()
            before = {p: p.read_bytes() for p in server.lake.rglob("*.parquet")}
            server.kill()
            jump("+12h")
            start()
            server.settle()
            after = {p: p.read_bytes() for p in server.lake.rglob("*.parquet")}
            assert after == before, "a start at another time changes no file and adds none"
    assert len(hours) >= 5, hours
    check_nothing_missing(server, sent)
    places = lake_ids(server)
    assert len({row[:3] for row in places}) == len(places), "an offset stands twice"
    audit = server.audit()
    assert audit["balanced"] and audit["difference"] == 0, json.dumps(audit)[:2000]
    tally("e2e::threats::clock", "clock jump", ["P2", "P3", "P5", "P7"], 8)
