"""The certificate is replaced under load: no request fails, and new connections see the new one."""

import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
import time

import requests
from harness import toml, wait_until


def make_certificate(folder, name):
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip


def served_certificate(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        with context.wrap_socket(plain) as tls:
            return hashlib.sha256(tls.getpeercert(binary_form=True)).hexdigest()


class Clients:
    """Clients that send all the time, on connections they keep; they trust both certificates."""

    def __init__(self, server, key, bundle, count=3):
        self.answers, self.faults, self.stopped = [], [], threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(server, key, bundle, n)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, server, key, bundle, number):
        session = requests.Session()
        session.verify, session.trust_env = str(bundle), False
        sent = 0
        while not self.stopped.is_set():
            try:
                body = {"event_type": "under_tls", "client": number, "n": sent}
                headers = {"Authorization": f"Bearer {key}"}
                answer = session.post(f"{server.url}/v1/events", json=body, headers=headers, timeout=30)
                self.answers.append(answer.status_code)
                sent += 1
                if number == 0:  # one of them makes a new connection for each request
                    session.close()
            except requests.RequestException as error:
                self.faults.append(repr(error))
                return

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join(60)


def test_a_certificate_is_replaced_under_load_without_a_failed_request(make_server, tmp_path):
    folder = tmp_path / "certificates"
    make_certificate(folder, "first")
    make_certificate(folder, "second")
    live_cert, live_key, bundle = folder / "live.pem", folder / "live.key", folder / "bundle.pem"
    shutil.copy(folder / "first.pem", live_cert)
    shutil.copy(folder / "first.key", live_key)
    bundle.write_text((folder / "first.pem").read_text() + (folder / "second.pem").read_text())

    server = make_server(edge=f"tls = {{ cert = {toml(live_cert)}, key = {toml(live_key)} }}")
    server.start()
    # `add_tenant` asks the public side, which needs trust of its own here.
    key = server.ctl("tenant", "add", "acme")["key"]
    server.scheme = "https"
    first = served_certificate(server.port)
    clients = Clients(server, key, bundle)
    try:
        wait_until("load is running", lambda: len(clients.answers) > 20 or clients.faults)
        shutil.copy(folder / "second.key", live_key)  # for a moment certificate and key do not match
        time.sleep(0.2)
        shutil.copy(folder / "second.pem", live_cert)
        server.ctl("reload")
        wait_until("the new certificate is served", lambda: served_certificate(server.port) != first, timeout=10)
        seen = len(clients.answers)
        wait_until("load goes on afterwards", lambda: len(clients.answers) > seen + 20 or clients.faults)
        # A broken pair changes nothing.
        second = served_certificate(server.port)
        live_cert.write_text("no certificate")
        server.ctl("reload", status=1)
        assert served_certificate(server.port) == second, "a broken certificate leaves the old one in place"
    finally:
        clients.stop()
    assert clients.faults == [], "no request may fail"
    assert set(clients.answers) == {200}, f"no request may be refused: {sorted(set(clients.answers))}"
    server.settle()
    assert server.count("under_tls") == len(clients.answers), "each answered event is in the lake once"
