"""Writes the seeds of every target: `python3 fuzz/seeds.py FOLDER`, which gets one folder each.

The committed corpora are these and what fuzzing added, minimised (`make fuzz-minimise`).
"""

import base64
import gzip
import json
import pathlib
import struct
import sys
import zlib

ROOT = pathlib.Path(sys.argv[1])
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
COUNTS = {}


def seed(target, *parts):
    data = b"".join(p if isinstance(p, bytes) else p.encode() for p in parts)
    folder = ROOT / target
    folder.mkdir(parents=True, exist_ok=True)
    COUNTS[target] = COUNTS.get(target, 0) + 1
    (folder / f"seed-{COUNTS[target]:03}").write_bytes(data)


EVENTS = [
    '{"event_type":"page_view","path":"/","duration_ms":1500,"email":"a@example.org"}',
    '{"b":true,"i":10,"f":0.5,"t":"ab","o":{"x":[1,2,{"y":null}]},"a":[],"m":"s","e":2.5,"c":"yes","zz":1}',
    '{"b":null,"i":1e2,"u":"\\u00e9\\ud83d\\ude00\\n","v":-0.0,"w":1E+3}',
    '{"b":true,"b":false}',
    '{"b":true,"x":"\\ud800"}',
    '{"b":true,"x":"\\u0000","event_id":"e-1","event_time":"2026-02-28T12:00:00Z"}',
    '{"b":false,"event_time":1772300000000,"event_id":"\\u0061"}',
    '{"duration":"1.5 h","size_kib":3,"heat_f":212.0,"mps":25}',
    '{"duration":{"value":1.5,"unit":"min"},"bits":16,"heat":{"unit":"K","value":300},"speed":"36 km/h"}',
    '{"duration_ms":0.1,"size":null,"heat_k":1e-3}',
    '{"mail":"x@example.org","card":"4111111111111111","note":"n","n":7,"user":{"name":"Ann","tags":["a","b"],"x":1},"list":[{"p":"q"},{}]}',
    '{"mail":"a","mail":"b","user":{"name":1}}',
    '{"k":"abc","d":2.5,"l":[1,2,3]}',
    '{"d":"1500 ms"}',
    " {\t} ",
    "[1]",
    '{"a":1e400}',
    '{"a":tru}',
    "{" + ",".join(f'"k{n}":{n}' for n in range(40)) + "}",
    '{"a":' * 30 + "1" + "}" * 30,
]
CLOUD_EVENT = '{"specversion":"1.0","id":"7","source":"/s","type":"com.example/y","time":"2026-01-01T00:00:00Z",%s"ext":5}'
CLOUD_EVENTS = [
    CLOUD_EVENT % '"data":{"a": 1.50 },',
    CLOUD_EVENT % '"data":[1,2],',
    CLOUD_EVENT % '"data_base64":"AAE=",',
    CLOUD_EVENT % "",
    CLOUD_EVENT % '"data":"<x/>","subject":null,',
    '{"specversion":"0.3","id":"1"}',
]


def codings():
    raw = zlib.compressobj(wbits=-15)
    deflated = raw.compress(b"hello hello hello") + raw.flush()
    # "hello hello hello hello\n", by the reference encoder.
    brotli = bytes.fromhex("1b17000064a5b6aab6d1c88a0480a3f5d8d0ba9b12000c")
    bodies = [
        (0, gzip.compress(b"one\n", mtime=0) + gzip.compress(b"two\n", mtime=0)),
        (0, gzip.compress(bytes(300_000), mtime=0)),
        (2, zlib.compress(b"hello hello hello")),
        (2, deflated),
        (2, b"\x78\x9c" + deflated),
        (3, brotli),
        (1, bytes.fromhex("28b52ffd0400210000680a") + b"i" + bytes(4)),
        (4, b"plain"),
    ]
    for coding, body in bodies:
        for bounds in (bytes([22, 7, 23]), bytes([3, 0, 5])):
            seed("codings", bytes([0, coding]), bounds, body)
    for coding in range(6):
        seed("codings", bytes([1, coding, 0, 0, 0]), b"hello\0 hello\0 hello" * 9)
        seed("codings", bytes([2, coding, 0, 0, 0, 17, 0]), b"hello hello hello")
    for text in ("gzip", "identity, br", "gzip\nzstd", "GZip,", "compress", "x-gzip,identity"):
        seed("codings", bytes([3, 0, 0, 0, 0]), text)


def bodies():
    lines = "\n".join(EVENTS[:6])
    for text in (lines, lines.replace("\n", "\r\n\n"), "", "\n\n{}", "\x0c{}\x0b\n"):
        seed("bodies", b"\0", text)
    array = "[" + " ,\n".join(EVENTS[:4]) + "]"
    for text in (array, f" {array}\n", "[]", "[{},]", "[,1]", "[1 2]", '["a]",[{}],"\\""]', "{}", "[1\x0c]", "[{}] x"):
        seed("bodies", b"\1", text)
        seed("bodies", b"\2", text)
    for text in CLOUD_EVENTS:
        seed("bodies", b"\3", text)
    seed("bodies", b"\4", "[" + ",".join(CLOUD_EVENTS) + "]")
    for media, body in (("application/json", '{"a":1}'), ("text/plain", 'x"y'), ("image/png", "\x01"), ("", "[1]")):
        seed("bodies", b"\5", f"1.0\ncom.x\n/s\nEuro%20%E2%82%AC\n2026-01-01T00:00:00Z\n{media}\nce-ext\n1\n{body}")


def events():
    for n, text in enumerate(EVENTS):
        for kind in range(5):
            if n < 7 or kind == n % 5:
                seed("events", bytes([n % 2 * 128, kind]), text)
    seed("events", bytes([0b0000_1001, 0]), "page/view\0", EVENTS[0])
    seed("events", bytes([0b0010_1001, 0]), "page/view\0", EVENTS[0])
    seed("events", bytes([0b0000_0101, 1]), "id\0", "2026-02-28T12:00:00Z\0", EVENTS[1])
    seed("events", bytes([0b0000_0011, 1]), "id\0", struct.pack("<q", 1_772_300_000_000_000), EVENTS[1])
    seed("events", bytes([0b0101_0000, 3]), EVENTS[10])


def requests():
    head = "/v1/events?event_type=flat\ncontent-type: %s\n%s\n"
    array = "[" + ",".join(EVENTS[:8]) + "]"
    seed("requests", head % ("application/json", "authorization: Bearer tgk_dev\n"), array)
    seed("requests", head % ("application/x-ndjson", "idempotency-key: \"k\"\nx-request-id: a-1\n"), "\n".join(EVENTS))
    trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n"
    seed("requests", head % ("application/json; charset=utf-8", trace + "x-event-type: units\n"), EVENTS[7])
    seed("requests", head % ("application/x-ndjson", "content-encoding: gzip\nx-api-key: k\n"), gzip.compress("\n".join(EVENTS).encode(), mtime=0))
    seed("requests", head % ("application/cloudevents-batch+json", ""), "[" + ",".join(CLOUD_EVENTS) + "]")
    seed("requests", head % ("application/json", "ce-specversion: 1.0\nce-type: a/b\nce-source: s\nce-id: 1\n"), EVENTS[1])
    seed("requests", head % ("application/json", ""), '{"event_type":"personal",' + EVENTS[10][1:])


def batches():
    body = b"\x07" * 8 + b"\x01\x03" + b"\x07id\0{}\0" + EVENTS[0].encode() + b"\0" + b"\x08\0\0[]\0" + b"\x55id\0{}\0{}\0"
    seed("batches", b"\1\x02", body)
    seed("batches", b"\2\x02\x20\0\x01\x40\0\x80\0\0", body)
    seed("batches", b"\2\0\x60\x80", body)
    head = bytes([1, 4, 6, 0]) + bytes(24) + b"acmeevents"
    types = bytes([1]) + struct.pack("<i", 1) + bytes(16) + b"a"
    record = struct.pack("<IqHHIBB", 0, 5, 0, 0, 0, 0, 0) + b"{}"
    record = struct.pack("<I", len(record)) + record
    tail = struct.pack("<III", 1, 1, len(head) + len(record))
    seed("batches", b"\0", head, record, types, tail)
    for what in (0, 1, 0x21):
        seed("batches", b"\3", bytes([what]), bytes(12), b"\x05\x01\x08\x01" * (what >> 4 > 0), b"abc" * 40)


def hops():
    text = lambda t: struct.pack("<I", len(t)) + t.encode()
    some = lambda t: b"\1" + text(t)
    head = bytes([1, 7]) + bytes(16) + struct.pack("<qI", 5, 100) + text("acme") + text("events") + text("secret")
    seed("hops", b"\0", head, struct.pack("<I", 1), text("view"), struct.pack("<QI", 9, 1), text("view"))
    seed("hops", b"\0", bytes([1, 0]), head[2:])
    at = struct.pack("<Q", 3)
    item = lambda kind, raw, end=b"": bytes([kind]) + at + text(raw) + some("view") + some("id") + b"\0" + end
    rejected = bytes([3]) + at + bytes([67]) + some("id") + text("/a") + text("large")
    all_items = [item(6, EVENTS[0]), rejected, item(24, "{}", text("2026-01-01T00:00:00Z")), item(40, "[1]", struct.pack("<q", 7))]
    seed("hops", b"\1", b"".join(all_items), struct.pack("<I", len(all_items)))
    seed("hops", b"\1", struct.pack("<I", 0))
    types = struct.pack("<I", 1) + text("view") + struct.pack("<QI", 3, 1) + bytes([67]) + struct.pack("<Q", 1)
    errors = struct.pack("<II", 1, 2) + some("id") + bytes([14]) + text("/a") + text("why")
    seed("hops", b"\2", bytes([1, 0]), struct.pack("<IQII", 2, 1, 1, 0), types, errors, b"\0\0")
    seed("hops", b"\2", bytes([1, 1]), text("nothing_kept"), text("why"))
    seed("hops", b"\2", bytes([1, 2]), text("edge_full"), struct.pack("<Q", 1500))
    seed("hops", b"\3", bytes([1, 0]), struct.pack("<I", 0), b"\1", struct.pack("<QQII", 5, 7, 1, 3))
    seed("hops", b"\3", bytes([1, 1]), text("log_full"), struct.pack("<Q", 1500))
    seed("hops", b"\3", bytes([1, 2]))
    seed("hops", b"\3", bytes([1, 3]), struct.pack("<I", 1), bytes(16))
    seed("hops", b"\4", b"\1", some("acme"), text("view"), text('{"x-version":1}'))
    head = bytes([1, 4, 6, 0]) + bytes(24) + b"acmeevents"
    kind = bytes([1]) + struct.pack("<i", 1) + bytes(16) + b"a"
    records = b""
    for index in range(3):
        record = struct.pack("<IqHHIBB", index, 5, 0, 0, 0, index and 14, 0) + b"{}"
        records += struct.pack("<I", len(record)) + record
    seed("hops", b"\5", head, records, kind, struct.pack("<III", 3, 1, len(head) + len(records)))
    pressed = {"draining": False, "all": {"reason": "log_full", "after_ms": 5}, "to_the_brim": True, "lanes": {"acme": 7}}
    seed("hops", b"\6", json.dumps({"draining": True, "writers": {"a:1": pressed}, "pressed": pressed}))


def recovery():
    frame = lambda what, text: bytes([what, 2, len(text)]) + text.encode()
    frames = frame(0, "one") + frame(8, "two two") + frame(0, "three" * 9)
    seed("recovery", bytes([5]), frames, b"\5", frame(0, "four"), bytes(8))
    seed("recovery", bytes([5]), frames, b"\5", frame(8, "four"), b"\1\0\0")
    seed("recovery", bytes([6]), frames, b"\6\3", frame(0, "four"), b"\7", b"\0\0", b"\2\0\2\xb0\0\1\0\2\xd0\1\x80")
    for kind in range(3, 8):
        seed("recovery", bytes([5]), frames, b"\5", frame(0, "four"), b"\1\0\1", bytes([kind, 3]), b"\x40\1clean\0", bytes(9))
    seed("recovery", bytes([4]), frames, bytes([0xC0, 6]), struct.pack("<Q", 99), bytes([1, 1]), b"x", b"\0\0\0")
    ledger = b'{"crc32c":1,"ledger":{}}'
    seed("recovery", bytes([3]), frames, b"\1\1", bytes([len(ledger)]), ledger, b"\0")


def small_files():
    lane = {"tenant": "acme", "event_type": "a", "dead": False}
    intent = {"window": {"from": 5, "to": 9}, "rows": 4, "hash": "00", "schemas": ["ab"]}
    state = {"log_id": "abcd1234", "partition": 0, "cursor": 9, "intent": None, "held": [], "lost_in_log": 0, "counts": []}
    held = {"lane": lane, "cursor": 3, "intent": intent, "pending_rows": 1, "pending_bytes": 2, "oldest": -1}
    counts = {**lane, "stored": 1, "quarantined": 2, "skipped": 3}
    dense = lambda value: json.dumps(value, separators=(",", ":"))
    for one in (state, {**state, "intent": intent, "held": [held], "counts": [counts]}):
        seed("small_files", b"\1", dense(one))
        seed("small_files", b"\0", dense({"format": 1, "crc32c": "00000000", "state": one}))
    totals = {"accepted": 40, "dead_lettered": 2, "deduplicated": 1}
    ledger = {"version": 1, "log_id": "abcd1234", "as_of": 42, "tenants": {"acme": {"page_view": totals}}}
    seed("small_files", b"\3", dense(ledger))
    seed("small_files", b"\2", dense({"crc32c": 1, "ledger": ledger}))
    seed("small_files", b"\4", dense({"log_id": "abcd1234", "refused": {"acme": {"a": {"rejected": 2, "shed": 3}}}}))
    seed("small_files", b"\5", dense({"schemas": [{"tenant": None, "event_type": "a", "version": 1, "hash": "00" * 16}]}))
    seed("small_files", b"\6", f'enabled = true\nstrict = true\npii_secret = "{"ab" * 32}"\n[quota]\nevents_per_second = 5\nbytes_burst = 9\n[[key]]\nid = "x"\nhash = "{"00" * 32}"\nnot_after = "2026-01-01T00:00:00Z"\nevent_types = ["a", "b"]\n')
    seed("small_files", b"\7", "tgk_abcdefghijkl_" + "A" * 43)


def config():
    seed("config", b"\0", (REPOSITORY / "config/tidegate.toml").read_text(), b"\0", "LOG__PARTITIONS=2\nEDGE__LISTEN=0.0.0.0:1\n")
    seed("config", b"\0", '[[sink]]\nname = "lake"\nkind = "lake"\n[sink.options]\nformat = "jsonl.zst"\n[log]\ncodec = "lz4"\n', b"\0", "SINK__0__URL=/x\nTENANTS_DIR=/t")
    seed("config", b"\0", '[edge.limits]\nbody_bytes = "8388607TiB"\n[log]\nsegment_bytes = "16777215TiB"\n')
    for text in ("64MiB", "16777215TiB", "1_000", " 5 KiB", "0B"):
        seed("config", b"\1", text)
    for text in ("5s", "250ms", "7d", "1h 30m", "90", "1us", "PT1M", "99999999999999999999d"):
        seed("config", b"\2", text)


def schemas():
    event = EVENTS[0] + "\0" + EVENTS[7] + "\0"
    for path in sorted((REPOSITORY / "config/schemas").glob("*.json")):
        seed("schemas", json.dumps(json.loads(path.read_text())), b"\0", event)
    for properties in (
        {"a": {"type": ["integer", "null"], "minimum": 1, "multipleOf": 0.5}, "b": {"enum": [1, "x", None]}},
        {"t": {"type": "number", "x-unit": "s", "x-accept": {"t_ms": "ms", "t_h": "h"}, "not": {"const": 1}}},
        {"o": {"type": "object", "properties": {"p": {"x-pii": "mask", "type": "string"}}}, "d": {"x-pii": "drop"}},
        {"x": {"$ref": "#/$defs/y"}, "event_id": {"type": "string", "x-column": "own"}},
    ):
        document = {"x-version": 1, "properties": properties, "$defs": {"y": {"type": "string", "pattern": "^a+$"}}, "required": ["a"]}
        seed("schemas", json.dumps(document), b"\0", '{"a":5,"t":"1 ms","o":{"p":"q"},"x":"aa"}\0{}\0')


def units():
    for text in ("0.1", "-12.50e-3", "1" * 40, "1e399", "123456789012345678901234567890.5", "1e-400", "9007199254740993", "0e999"):
        seed("units", b"\0", text)
        seed("units", b"\1", text, b"\0", "0.5")
        seed("units", b"\2\0\1\3", text)
    for codes in ("ms\0s", "Cel\0[degF]", "KiBy/s\0bit/min", "10*3\0/m2", "{request}\x001", "kW.h\0J", "m2/s3\0cm2.s-3"):
        seed("units", b"\3", "1.5\0", codes)


def protocols():
    array = "[" + ",".join(EVENTS[:9]) + "]"
    for first in (0, 0x80):
        for body in (EVENTS[0], "\n".join(EVENTS[:9]), array, json.dumps(array), json.dumps("\n".join(EVENTS[:3])), '"aGVsbG8="'):
            seed("protocols", bytes([first]), body)
    seed("protocols", b"\1", EVENTS[0])
    stacked = '{"event":{"a": 1.50},"time":1772366400.25,"host":"h"}{"event":"x","time":"1772366400","fields":{"k":"v"}} {"event":7}{"host":"h"}'
    for body in (stacked, '{"event":""}', '{"event":{"hec":1},"time":"soon"}', '{"event":1}{"event":'):
        seed("protocols", b"\2", body)
    seed("protocols", b"\3", "one \"1\"\r\n\ntwo\n")
    message = '{"type":"track","messageId":"m-1","timestamp":"2026-03-01T12:00:00Z","properties":{"a": 1.50}}'
    seed("protocols", b"\4", '{"batch":[%s, {"type":"page"},7],"writeKey":"k"}' % message)
    seed("protocols", b"\5", '{"writeKey":"k","userId":"u"}')
    event = '{"event":"a","uuid":"u-1","timestamp":"2026-03-01T12:00:00Z","properties":{"n":1}}'
    seed("protocols", b"\6", '{"batch":[%s],"api_key":"k"}' % event)
    record = "eyJldmVudF9pZCI6IngifXsiYiI6Mn0KbmV4dAp7fQ=="
    seed("protocols", b"\10", '{"requestId":"r","timestamp":1,"records":[{"data":"%s"},{"data":""}]}' % record)
    seed("protocols", b"\11", '{"DeliveryStreamName":"s","Records":[{"Data":"%s"}]}' % record)
    scope = "20150830/us-east-1/firehose/aws4_request"
    claims = "Credential=TGX/%s, SignedHeaders=host;x-amz-date, Signature=%s" % (scope, "0" * 64)
    seed("protocols", b"\11", claims + "\n20150830T123600Z\n/a/../b?c=%20&d")
    seed("protocols", b"\7", '{"token":"k","event":"b","api_key":"k"}')
    document = '{"@timestamp":"2026-03-01T12:00+0100","n": 1.50}'
    lines = ('{"create":{"_id":"1","routing":null}}', document, "", '{"index":{"_index":"é","_id":7}}', document, '{"delete":{"_id":"x"}}')
    seed("protocols", b"\x08", "\n".join(lines) + "\n")
    seed("protocols", b"\x08", '{"update":{"_id":"u"}}\r\n{"doc":{}}\r\n{"index":{"if_seq_no":1,"op_type":"create"}}\r\n{"@timestamp":1772366400250.5}\r\n')
    seed("protocols", b"\x09", document)


def trackers():
    wrapped = '{"schema":"iglu:a/unstruct_event/jsonschema/1-0-0","data":{"schema":"iglu:a/click/jsonschema/1-0-0","data":{"n":1.50}}}'
    coded = base64.urlsafe_b64encode(wrapped.encode()).decode()
    view = '{"e":"pv","eid":"e-1","dtm":"1772366400250","url":"http://a/"}'
    unstruct = json.dumps({"e": "ue", "ue_px": coded, "cx": "e30", "co": "{}", "ttm": "5"})
    seed("trackers", b"\0", '{"schema":"iglu:x","data":[%s,%s,7]}' % (view, unstruct))
    seed("trackers", b"\0", '{"data":[%s]}' % json.dumps({"e": "ue", "ue_pr": wrapped}))
    seed("trackers", b"\1", f"e=ue&ue_px={coded}&cx=e30&dtm=soon&page=a+b%22")
    entries = '["1772366400000000001","a \\"b\\"",{"trace":"7"}],["2","x"],["3"],7'
    seed("trackers", b"\2", '{"streams":[{"stream":{"app":"shop"},"values":[%s]},{"stream":7}]}' % entries)

    def field(number, value):
        return bytes([number << 3 | 2, len(value)]) + value

    entry = field(1, b"\x08\x05\x10\x01") + field(2, b"line") + field(3, field(1, b"trace") + field(2, b"7"))
    for labels in (b'{app="shop", level="a\\"\\x41"}', b"{a=x}", b"{a=`b`}"):
        push = field(1, field(1, labels) + field(2, entry))
        seed("trackers", b"\3", push)
        seed("trackers", b"\4", bytes([len(push), (len(push) - 1) << 2 if len(push) <= 60 else 60 << 2]), bytes([len(push) - 1][: len(push) > 60]), push)
    seed("trackers", b"\4", b"\x80\x80\x80\x80\x04\x00a")
    seed("trackers", b"\4", b"\x0a\x00a\x22\x01")


def otlp():
    """The first byte: which signal (logs, spans, metrics), and in threes which form (protobuf, JSON, not said)."""

    def field(number, value):
        if isinstance(value, int):
            return bytes([number << 3, value])
        if isinstance(value, float):
            return bytes([number << 3 | 1]) + struct.pack("<d", value)
        value = value.encode() if isinstance(value, str) else value
        return bytes([number << 3 | 2, len(value)]) + value

    def time(number):
        return bytes([number << 3 | 1]) + struct.pack("<Q", 1772366400123456789)

    anys = [field(1, "naïve"), field(2, 1), field(3, 7), field(4, 0.5), field(7, b"\0\xff"), b""]
    anys += [field(5, field(1, anys[0]) + field(1, anys[2])), field(6, field(1, field(1, "k") + field(2, anys[3])))]
    attributes = [field(1, f"a{n}") + field(2, value) for n, value in enumerate(anys)]
    log = time(1) + time(11) + field(2, 9) + field(3, "INFO") + field(5, anys[0]) + b"".join(field(6, a) for a in attributes)
    span = field(1, bytes(16)) + field(2, bytes(8)) + field(5, "GET") + field(6, 2) + time(7) + time(8) + field(9, attributes[0])
    span += field(11, time(1) + field(2, "e") + field(3, attributes[2])) + field(13, field(1, bytes(16))) + field(15, field(3, 2))
    number = time(3) + field(7, attributes[0]) + field(5, time(2) + field(3, 0.5) + field(7, attributes[1]))
    histogram = time(3) + bytes([4 << 3 | 1]) + struct.pack("<Q", 2) + field(5, 0.5) + field(6, struct.pack("<QQ", 1, 1)) + field(7, struct.pack("<d", 1.5))
    exponential = time(3) + field(6, 3) + field(8, field(1, 3) + field(2, b"\1\2")) + field(14, 0.5)
    summary = time(3) + field(5, 1.5) + field(6, field(1, 0.5) + field(2, 2.5))
    kinds = [(5, number + field(4, 0.5)), (7, number), (9, histogram), (10, exponential), (11, summary)]
    metrics = [field(1, "m") + field(3, "s") + field(kind, field(1, point)) for kind, point in kinds]
    resource, scope = field(1, field(1, field(1, "service.name") + field(2, anys[0]))), field(1, field(1, "lib"))
    for signal, items in enumerate([[log, log], [span], metrics]):
        for item in items:
            part = scope + b"\x12" + varint(len(item)) + item + field(3, "u")
            group = resource + b"\x12" + varint(len(part)) + part
            seed("otlp", bytes([signal]), b"\x0a" + varint(len(group)) + group)
        name = ("logs", "traces", "metrics")[signal]
        text = json.dumps(json.loads((REPOSITORY / "tests" / "data" / "otlp" / f"{name}.json").read_text()), ensure_ascii=False)
        seed("otlp", bytes([3 + signal]), text)
        seed("otlp", bytes([6 + signal]), text)


def varint(number):
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def lake():
    names = ("acme\0Page.View-1\0", struct.pack("<I", 10_490_000), b"\0\3\0", struct.pack("<QQ", 10, 19))
    seed("lake", b"\1\0", *names, *names)
    seed("lake", b"\1\2", *names, "acme-1\0page/view\0", struct.pack("<I", 9), b"\1\0\0", struct.pack("<QQ", 1, 2))
    place = "events/tenant=acme/event_type=a/date=2025-11-24/hour=16/abcd1234-3-%s-19.parquet"
    for first in ("10", "010", "+10"):
        seed("lake", b"\0", place % first)
    rows = [bytes([n % 5]) + text.encode() for n, text in enumerate(EVENTS)]
    seed("lake", b"\2", b"\n".join(rows))
    for kind in range(5):
        seed("lake", b"\2", b"\n".join(bytes([kind]) + text.encode() for text in EVENTS[:14]))


for make in (codings, bodies, protocols, trackers, otlp, events, requests, batches, hops, recovery, small_files, config, schemas, units, lake):
    make()
print(f"{sum(COUNTS.values())} seeds of {len(COUNTS)} targets in {ROOT}")
