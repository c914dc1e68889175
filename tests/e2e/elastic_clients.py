"""Elasticsearch's clients, and programs that send as they do, by the contract of `protocol_clients`."""

import asyncio
import json
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

from elastic_transport import TransportError
from elasticsearch import ApiError, AsyncElasticsearch, Elasticsearch, helpers
from harness import free_ports, wait_until
from protocol_clients import DATA
from tracker_clients import node

INDEX = "logs-py"
# The helpers try single documents again where they are told to.
AGAIN = {"raise_on_error": False, "raise_on_exception": False, "max_retries": 5, "initial_backoff": 1, "max_backoff": 2}


def documents(names):
    for name in names:
        yield {"_op_type": "index", "_index": INDEX, "_id": name, "name": name, **DATA}


def told_by(outcomes):
    told = set()
    try:
        for ok, item in outcomes:
            if ok:
                told.add(item["index"]["_id"])
    except (ApiError, TransportError):
        pass
    return told


def streaming(url, key, names):
    """elasticsearch-py, `helpers.streaming_bulk`, the key as it is."""
    with Elasticsearch(url, api_key=key) as client:
        return told_by(helpers.streaming_bulk(client, documents(names), **AGAIN))


def bulk(url, key, names):
    """`helpers.bulk`, gzip, the key as id and key."""
    with Elasticsearch(url, api_key=("id", key), http_compress=True) as client:
        try:
            count, errors = helpers.bulk(client, documents(names), **AGAIN)
        except (ApiError, TransportError):
            return set()
        assert count + len(errors) == len(names)
        return set(names) - {error["index"]["_id"] for error in errors}


def parallel(url, key, names):
    """`helpers.parallel_bulk`, Basic; it tries no document again."""
    with Elasticsearch(url, basic_auth=("anybody", key)) as client:
        outcomes = helpers.parallel_bulk(client, documents(names), thread_count=2, raise_on_error=False, raise_on_exception=False)
        return told_by(outcomes)


def asynchronous(url, key, names):
    """`helpers.async_streaming_bulk`."""

    async def run():
        told = set()
        async with AsyncElasticsearch(url, api_key=key) as client:
            try:
                async for ok, item in helpers.async_streaming_bulk(client, documents(names), **AGAIN):
                    if ok:
                        told.add(item["index"]["_id"])
            except (ApiError, TransportError):
                pass
        return told

    return asyncio.run(run())


def javascript(url, key, names):
    """@elastic/elasticsearch, `client.bulk`."""
    return node("elastic", url, key, names, mode="bulk")


def javascript_helper(url, key, names):
    """@elastic/elasticsearch, `client.helpers.bulk`."""
    return node("elastic", url, key, names, mode="helper")


RSYSLOG = """
global(workDirectory="%(folder)s" maxMessageSize="64k")
module(load="imtcp")
module(load="omelasticsearch")
module(load="impstats" interval="1" format="json" log.file="%(folder)s/stats" log.syslog="off")
template(name="document" type="string" string="%%$!all-json%%")
template(name="id" type="string" string="%%$.id%%")
template(name="time" type="string" string="%%timereported:::date-rfc3339%%")
ruleset(name="take") {
  set $!@timestamp = exec_template("time");
  set $!host = $hostname;
  set $!message = $msg;
  set $.id = $uuid;
  call send
}
ruleset(name="send") {
  # What was refused for now comes back here, with its document as $! and what was said of it as $.omes.
  if strlen($.omes!status) > 0 then {
    if $.omes!status != 429 then { stop }
    set $.id = $.omes!_id;
  }
  action(type="omelasticsearch" name="elastic" server="%(host)s" serverport="%(port)s" uid="rsyslog" pwd="%(key)s"
    searchIndex="logs-rsyslog" searchType="" bulkmode="on" template="document" writeoperation="create" bulkid="id" dynbulkid="on"
    retryfailures="on" retryruleset="send" errorfile="%(folder)s/errors"
    action.resumeRetryCount="-1" action.resumeInterval="1")
}
input(type="imtcp" address="127.0.0.1" port="%(listen)s" ruleset="take")
"""


def rsyslogd():
    program = shutil.which("rsyslogd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "no rsyslogd: scripts/need.sh test"
    return program


def rsyslog(url, key, names, patience=20):
    """rsyslog's omelasticsearch, in a process of its own: what it gives up stands in its error file."""
    address, [listen] = urlsplit(url), free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        place = {"folder": folder, "host": address.hostname, "port": address.port, "key": key, "listen": listen}
        (folder / "conf").write_text(RSYSLOG % place)
        lines = [json.dumps({"name": name, **DATA}, ensure_ascii=False) for name in names]
        with open(folder / "log", "wb") as log, subprocess.Popen(
            [rsyslogd(), "-n", "-f", folder / "conf", "-i", folder / "pid"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        ) as process:  # fmt: skip
            try:
                wait_until("rsyslogd listens", lambda: socket.create_connection(("127.0.0.1", listen)).close() is None)
                with socket.create_connection(("127.0.0.1", listen)) as connection:
                    head = "<134>1 2026-03-01T12:00:00.123456Z web-1 shop - - - "
                    connection.sendall("".join(f"{head}{line}\n" for line in lines).encode())
                done = is_drained(folder / "stats", len(names), patience)
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
        errors = (folder / "errors").read_text() if (folder / "errors").exists() else ""
        return {name for name in names if name not in errors} if done else set()


def is_drained(stats, count, patience):
    """True once its queue has had `count` messages and has been empty twice in a row."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(0.3)
        text = stats.read_text() if stats.exists() else ""
        seen = [json.loads(line[line.index("{") :]) for line in text.splitlines() if '"main Q"' in line and line.endswith("}")]
        sizes = [queue["size"] for queue in seen if queue["enqueued"] >= count]
        if len(sizes) >= 2 and sizes[-2:] == [0, 0]:
            return True
    return False


# Not for the screen: each client says what it could not send.
for _name in ("elastic_transport.transport", "elastic_transport.node_pool", "elasticsearch"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
