"""Other people's clients, each of them sending named events by its own protocol.

`send(url, key, names)` returns the names that the client was told are safe, or holds to be so: what it did not report as
failed. Every client runs with settings that make it quick, and otherwise as it comes.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import requests
from harness import REPOSITORY
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

# The programs that send by a client for JavaScript, with their packages.
PROGRAMS = REPOSITORY / "tests" / "clients" / "js"

# What every event carries beside its name: numbers as they are, unicode, what is empty and what is nested.
DATA = {"amount": 12.5, "large": 9007199254740993, "note": "naïve 日本 😀", "empty": "", "items": [{"sku": "a", "count": 2}], "none": None}


def curl(url, key, names):
    """curl, one request for all of them as NDJSON; tries again as `--retry` does."""
    body = "".join(json.dumps({"name": name, **DATA}) + "\n" for name in names)
    command = ["curl", "--silent", "--show-error", "--retry", "4", "--retry-all-errors", "--output", "-", "--write-out", "\n%{http_code}"]
    command += ["--header", "Content-Type: application/x-ndjson", "--header", "X-Elastic-Product-Origin: kibana"]
    command += ["--header", f"Authorization: Bearer {key}", "--data-binary", "@-", f"{url}/v3/send/kibana-ui?debug=true"]
    done = subprocess.run(command, input=body.encode(), capture_output=True, timeout=60)
    answer, _, status = done.stdout.decode().rpartition("\n")
    if status != "200":
        return set()
    # Behind what refusals said before.
    assert answer.endswith('{"status":"ok"}'), answer
    return set(names)


PAGE = """<!doctype html><body><script>
(async () => {
  const told = [];
  for (const event of %(events)s) {
    try {
      const answer = await fetch(%(url)s, {method: "POST", body: JSON.stringify(event),
        headers: {"Content-Type": "application/json", "X-Elastic-Product-Origin": "browser", %(authorization)s}});
      told.push([event.name, answer.status, (await answer.text())]);
    } catch (error) { told.push([event.name, 0, String(error)]); }
  }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


# As root Chromium runs without its sandbox or not at all; it sees no page but ours.
SANDBOX = ["--no-sandbox"] if os.geteuid() == 0 else []


def chromium():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "no chromium: scripts/need.sh test"
    return program


def browser(url, key, names):
    """`fetch` in a page of another origin, in headless Chromium. A browser sends nothing again by itself."""
    return {name for name, status, _ in browser_answers(url, key, names) if status == 200}


def browser_answers(url, key, names):
    events = [{"name": name, **DATA} for name in names]
    authorization = f'"Authorization": "Bearer {key}"' if key else ""
    page = PAGE % {"events": json.dumps(events), "url": json.dumps(f"{url}/v3/send/browser"), "authorization": authorization}
    # A number that JavaScript cannot hold would be changed before it is sent.
    return in_chromium({"/": page.replace("9007199254740993", "9007199254740991")})


def in_chromium(files):
    """Opens the page `files["/"]` in headless Chromium; what it posts to `/told`, as JSON."""
    program = chromium()
    told, done = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, body):
            self.send_response(200)
            kind = "text/javascript" if self.path.endswith(".js") else "text/html"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(files.get(self.path, "").encode())

        def do_POST(self):
            told.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"")
            done.set()

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
    command = [program, "--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    command += SANDBOX
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, subprocess.Popen(
        [*command, f"--user-data-dir={profile}", f"http://127.0.0.1:{listener.server_address[1]}/"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            assert done.wait(60), "the page did not come to its end"
        finally:
            process.terminate()
            listener.shutdown()
            listener.server_close()
            process.wait(20)
    return told


def track(url, key, names):
    """Python's requests, with its own way to try again."""
    told = set()
    with requests.Session() as session:
        retry = Retry(total=4, backoff_factor=0.1, status_forcelist=[429, 503], allowed_methods=None)
        session.mount("http://", HTTPAdapter(max_retries=retry))
        for name in names:
            event = {"event_type": "signup", "event_id": name, "name": name, "note": DATA["note"], "empty": "", "amount": "12.50"}
            try:
                answer = session.post(f"{url}/track", json=event, headers={"Authorization": f"Bearer {key}"}, timeout=30)
            except requests.RequestException:
                continue
            if answer.status_code == 200:
                assert answer.json() == {"message": "success"}, answer.text
                told.add(name)
    return told


SPLUNK = """
import json, logging, sys
from splunk_handler import SplunkHandler
host, port, key = sys.argv[1:4]
handler = SplunkHandler(host=host, port=port, token=key, index="main", hostname="web-1", source="shop", sourcetype="json",
                        protocol="http", verify=False, flush_interval=600.0, retry_count=4, retry_backoff=0.2)
logger = logging.getLogger("shop")
logger.setLevel(logging.INFO)
logger.addHandler(handler)
for line in json.load(sys.stdin):
    logger.info(json.dumps(line))
handler.force_flush()
"""


def splunk(url, key, names):
    """splunk-handler in a program of its own, since it silences other clients' loggers. It prints what it could not send."""
    address = urlsplit(url)
    lines = [{"name": name, **DATA} for name in names]
    done = subprocess.run(
        [sys.executable, "-c", SPLUNK, address.hostname, str(address.port), key],
        input=json.dumps(lines), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set() if "Exception in Splunk logging handler" in done.stdout + done.stderr else set(names)


def segment(url, key, names):
    """segment-analytics-python, gzip, in the background as it comes."""
    from segment.analytics.client import Client

    failed = set()
    client = Client(
        write_key=key, host=url, gzip=True, max_retries=3, upload_interval=0.05,
        on_error=lambda error, items: failed.update(item["messageId"] for item in items),
    )  # fmt: skip
    for name in names:
        client.track("user-1", "Signed Up", {"name": name, **DATA}, message_id=name)
    client.flush()
    client.shutdown()
    return set(names) - failed


def posthog(url, key, names):
    """posthog for Python, gzip, the key in the body."""
    from posthog import Posthog

    failed = set()
    client = Posthog(
        project_api_key=key, host=url, gzip=True, flush_interval=0.05, max_retries=3,
        on_error=lambda error, items: failed.update(item["properties"]["name"] for item in items),
    )  # fmt: skip
    for name in names:
        client.capture("signed up", distinct_id="user-1", properties={"name": name, **DATA})
    client.flush()
    client.shutdown()
    return set(names) - failed


# Not for the screen: each client says what it could not send.
for name in ("segment", "posthog", "backoff"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
