"""OTLP's public clients: the SDKs for Python and JavaScript, and the OpenTelemetry Collector.

`send(url, key, names)` makes one span, log record or data point of each name with the SDK, has its exporter send them in one
request, and returns the names that it says were taken.
"""

import json
import logging
import subprocess
import time

from harness import REPOSITORY, free_ports, http, wait_until

CLIENTS = REPOSITORY / "tests" / "clients"
# Numbers as they are, int64's ends, unicode, what is empty and what is nested.
DATA = {
    "amount": 12.5, "tenth": 0.1, "large": 9007199254740993, "least": -(2**63), "most": 2**63 - 1, "note": "naïve 日本 😀", "empty": "",
    "items": ["a", ""], "none": [], "yes": True,
}  # fmt: skip
# What only log records may hold.
NESTED = {"bytes": b"\x00\xff\xfe", "map": {"k": [1, {"deep": None}]}}


def resource():
    from opentelemetry.sdk.resources import Resource

    return Resource({"service.name": "shop", "host.cpus": 8})


def spans(names):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=resource())
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for name in names:
        with provider.get_tracer("lib", "1.0").start_as_current_span(name, attributes=DATA) as span:
            span.add_event("paid", {"count": 1}, timestamp=1772366400123456789)
    return memory.get_finished_spans()


def logs(names):
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=resource())
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    for name in names:
        record = LogRecord(
            timestamp=1772366400123456789, severity_number=SeverityNumber.INFO, severity_text="INFO", body=name,
            attributes={**DATA, **NESTED}, event_name="paid",
        )  # fmt: skip
        provider.get_logger("lib", "1.0").emit(record)
    return memory.get_finished_logs()


def metrics(names):
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider(resource=resource(), metric_readers=[reader])
    for name in names:
        provider.get_meter("lib", "1.0").create_counter(name, unit="s").add(12.5, DATA)
    return reader.get_metrics_data()


def python(signal, form):
    """An exporter of the SDK for Python; `signal` is spans, logs or metrics."""

    def send(url, key, names):
        module = {"spans": "trace_exporter", "logs": "_log_exporter", "metrics": "metric_exporter"}[signal.__name__]
        name = {"spans": "OTLPSpanExporter", "logs": "OTLPLogExporter", "metrics": "OTLPMetricExporter"}[signal.__name__]
        module = __import__(f"opentelemetry.exporter.otlp.proto.{form}.{module}", fromlist=[name])
        authorization = f"Bearer {key}"
        if form == "http":
            from opentelemetry.exporter.otlp.proto.http import Compression

            path = {"spans": "traces", "logs": "logs", "metrics": "metrics"}[signal.__name__]
            exporter = getattr(module, name)(
                endpoint=f"{url}/v1/{path}", headers={"authorization": authorization}, compression=Compression.Gzip, timeout=30
            )
        else:
            from grpc import Compression

            exporter = getattr(module, name)(
                endpoint=url, insecure=True, headers=(("authorization", authorization),), compression=Compression.Gzip, timeout=30
            )
        try:
            done = exporter.export(signal(names))
        finally:
            exporter.shutdown()
        return set(names) if done.name == "SUCCESS" else set()

    return send


def javascript(kind):
    def send(url, key, names):
        command = ["node", "otlp.mjs", kind, url, key, *names]
        done = subprocess.run(command, cwd=CLIENTS / "js", capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    return send


class Collector:
    """The OpenTelemetry Collector: takes OTLP, batches it, and sends it on by `otlp` (gRPC) or `otlphttp`."""

    def __init__(self, folder, exporter, url, key):
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.metrics = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        endpoint = url if exporter == "otlp_http" else url.removeprefix("http://")
        prometheus = {"host": "127.0.0.1", "port": self.metrics}
        config = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{self.port}"}}}},
            "processors": {"batch": {"timeout": "50ms"}},
            "exporters": {
                exporter: {
                    "endpoint": endpoint, "tls": {"insecure": True}, "headers": {"authorization": f"Bearer {key}"},
                    "sending_queue": {"queue_size": 100},
                    "retry_on_failure": {"initial_interval": "100ms", "max_interval": "500ms", "max_elapsed_time": "60s"},
                }
            },
            "service": {
                "telemetry": {"metrics": {"level": "basic", "readers": [{"pull": {"exporter": {"prometheus": prometheus}}}]}},
                "pipelines": {"logs": {"receivers": ["otlp"], "processors": ["batch"], "exporters": [exporter]}},
            },
        }  # fmt: skip
        (folder / "collector.json").write_text(json.dumps(config))
        self.log = folder / "collector.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [CLIENTS / "go" / "bin" / "collector", "--config", f"file:{folder / 'collector.json'}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

        def ready():
            assert self.process.poll() is None, self.said()
            return "Everything is ready" in self.said()

        wait_until("the Collector is ready", ready)

    def said(self):
        return self.log.read_text(errors="replace")

    def count(self, what):
        """Log records that its exporter has sent, or given up ("send_failed")."""
        text = http("GET", f"http://127.0.0.1:{self.metrics}/metrics").body.decode()
        lines = [line for line in text.splitlines() if line.startswith(f"otelcol_exporter_{what}_log_records")]
        return sum(int(float(line.split()[-1])) for line in lines)

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        finally:
            self.process.kill()


def through_collector(exporter, folder):
    """Through a Collector, which the SDK sends to; told is what it has sent on, by its own count."""

    def send(url, key, names):
        collector = Collector(folder / f"collector-{time.monotonic_ns()}", exporter, url, key)
        try:
            assert python(logs, "http")(collector.url, "-", names) == set(names)
            done = lambda: collector.count("sent") + collector.count("send_failed") == len(names)  # noqa: E731
            wait_until("the Collector has sent it on or given it up", done)
            return set(names) if collector.count("sent") else set()
        finally:
            collector.end()

    return send


# Not for the screen: each client says what it could not send.
for name in ("opentelemetry", "grpc"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
