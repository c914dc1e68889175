"""Plants each bug of `crates/ingest/src/faults.rs`, one at a time, and shows which layer of the tests catches it.

    python tests/torture/bugs.py                   every layer against every bug: about half an hour
    python tests/torture/bugs.py --quick           each bug against the one test that is known to catch it: two minutes
    python tests/torture/bugs.py --only no_retry_after,last_key_wins --layers unit,it

A layer catches a bug when its tests fail, or hang, with it. Each layer is first run without any bug and must pass: a
layer that fails anyway catches nothing. Exit status 1 where a bug is caught by no layer that was run.
"""

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FAULTS = REPOSITORY / "crates" / "ingest" / "src" / "faults.rs"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "debug"
PYTHON = REPOSITORY / ".venv" / "bin" / "python"
LAYERS = ("unit", "sim", "it", "e2e")
# No layer takes a tenth of this without a bug, apart from `e2e`.
PATIENCE = {"unit": 300, "sim": 300, "it": 300, "e2e": 900}
# The layers that fail whole where a server does not start; their tests name what they need.
E2E_TESTS = ["test_kill.py", "test_first_minutes.py", "test_shutdown.py", "test_personal_data.py", "test_tls_reload.py"]

# One test that is known to catch each bug: what `--quick` runs.
KNOWN = {
    "ack_before_sync": ("unit", ("log::tests::faults",)),
    "sync_retried": ("unit", ("log::tests::faults",)),
    "segment_name_not_synced": ("unit", ("log::tests::faults",)),
    "small_file_not_synced": ("sim", ("sim::replace",)),
    "cache_trusted": ("sim", ("sim::log",)),
    "damage_is_tail": ("unit", ("log::tests::damage",)),
    "damage_not_told": ("unit", ("log::tests::damage",)),
    "checksums_not_chained": ("unit", ("log::tests::damage",)),
    "retention_ignores_holds": ("unit", ("log::tests::retention",)),
    "cursor_before_write": ("sim", ("sim::lake",)),
    "intent_not_durable": ("sim", ("sim::lake",)),
    "intent_hash_ignored": ("it", ("sink::exactly_once::a_window_that_changed",)),
    "window_recut": ("sim", ("sim::lake",)),
    "hold_before_cursor": ("it", ("sink::lanes::a_sink_holds_the_log",)),
    "name_by_attempt": ("sim", ("sim::lake",)),
    "hour_by_clock": ("it", ("sink::files::a_file_holds_one_schema_and_one_hour",)),
    "lake_overwrites": ("sim", ("sim::lake",)),
    "queue_by_count": ("unit", ("writer::tests",)),
    "twin_of_the_lost": ("unit", ("writer::",)),
    "ids_forgotten": ("it", ("dedup::",)),
    "ledger_ahead": ("sim", ("sim::ledger",)),
    "outcome_forgotten": ("it", ("books::",)),
    "key_after_body": ("it", ("threats::floods::bodies_without_a_key",)),
    "tenant_from_header": ("it", ("threats::keys",)),
    "type_of_key_ignored": ("unit", ("normalize::tests::codes",)),
    "gzip_first_member": ("unit", ("edge::coding",)),
    "bombs_decoded": ("unit", ("edge::coding",)),
    "last_key_wins": ("unit", ("normalize::tests::codes",)),
    "payload_logged": ("it", ("threats::telemetry",)),
    "no_retry_after": ("it", ("edge::answers",)),
    "quota_by_wall_clock": ("e2e", ("test_threats.py", "-k", "clock")),
    "reload_half": ("it", ("pipeline::a_broken_reload", "threats::reload")),
}


def bugs():
    """Name and meaning of each bug, as the product lists them."""
    listed = FAULTS.read_text().split("    Bug {", 1)[1].split("\n    }\n", 1)[0]
    found = re.findall(r'\w+ = "(\w+)", "([^"]+)";', listed)
    if not found:
        sys.exit(f"no bug is listed in {FAULTS}")
    return dict(found)


def build():
    """Builds the tests and the programs with the feature; returns the test programs by layer."""
    command = ["cargo", "test", "-p", "tidegate-ingest", "--features", "faults", "--locked", "--no-run"]
    done = subprocess.run(
        [*command, "--lib", "--test", "it", "--message-format=json"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True,
    )
    programs = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("profile", {}).get("test"):
            programs[message["target"]["name"]] = message["executable"]
    return {"unit": programs["tidegate_ingest"], "sim": programs["it"], "it": programs["it"]}


def restore():
    """Puts the ordinary programs back in their place."""
    subprocess.run(["cargo", "build", "--workspace", "--locked", "--bins", "--quiet"], cwd=REPOSITORY, check=True)


def command_of(layer, programs, tests=None):
    if layer == "e2e":
        chosen = tests or E2E_TESTS
        return [str(PYTHON), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen], REPOSITORY / "tests" / "e2e"
    arguments = tests or {"unit": [], "sim": ["sim::"], "it": ["--skip", "sim::", "--skip", "tidy::"]}[layer]
    return [programs[layer], *arguments], REPOSITORY / "crates" / "ingest"


def run(layer, programs, bug=None, tests=None):
    """Runs a layer with a bug; returns what caught it: names of tests, `hangs`, or nothing."""
    command, folder = command_of(layer, programs, tests)
    environment = {**os.environ, "CARGO_MANIFEST_DIR": str(folder), "KILLS": "12", "TIDEGATE_BIN_DIR": str(TARGET)}
    environment.pop("TIDEGATE_TALLY", None)
    if bug:
        environment["TIDEGATE_PLANT"] = bug
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(
                command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=PATIENCE[layer]
            ).returncode
        except subprocess.TimeoutExpired:
            return ["hangs"]
        output.seek(0)
        text = output.read()
    ran = re.search(r"running (\d+) test", text)
    if layer != "e2e" and (not ran or ran.group(1) == "0"):
        sys.exit(f"{' '.join(command)}: no such test\n{text[-2000:]}")
    if code == 0:
        return []
    failed = re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M) + re.findall(r"^FAILED (\S+)", text, re.M)
    return failed or [f"exit {code}"]


def check_sound(layers, programs):
    for layer in layers:
        caught = run(layer, programs)
        if caught:
            sys.exit(f"{layer} fails without any bug: {', '.join(caught)}")


def matrix(names, layers, programs, jobs):
    """Every layer against every bug: {bug: {layer: [tests]}}."""
    found = {name: {} for name in names}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, layer, programs, name): (name, layer) for name in names for layer in layers}
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            name, layer = futures[future]
            found[name][layer] = future.result()
            first = (found[name][layer] or ["-"])[0]
            print(f"{number}/{len(futures)}  {layer:5} {name:24} {first}", file=sys.stderr, flush=True)
    return found


def quick(names, programs, jobs):
    """Each bug against the test that is known to catch it."""
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        sys.exit(f"no test is known to catch {', '.join(unknown)}: run without --quick and add it to KNOWN")
    found = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        sound = {key: pool.submit(run, key[0], programs, None, list(key[1])) for key in set(KNOWN.values())}
        for (layer, tests), future in sound.items():
            if future.result():
                sys.exit(f"{layer} {' '.join(tests)} fails without any bug")
        futures = {name: pool.submit(run, KNOWN[name][0], programs, name, list(KNOWN[name][1])) for name in names}
        for name, future in futures.items():
            found[name] = {KNOWN[name][0]: future.result()}
    return found


def show(found, meanings, layers):
    """A table for people, and for docs/testing.md."""
    print("| planted | " + " | ".join(layers) + " | caught first by |")
    print("| --- |" + " --- |" * (len(layers) + 1))
    for name, by_layer in found.items():
        cells = [
            "not run" if layer not in by_layer else str(len(by_layer[layer])) if by_layer[layer] else "-" for layer in layers
        ]
        first = next((tests[0] for layer in layers if (tests := by_layer.get(layer))), "**nobody**")
        print(f"| `{name}`: {meanings[name]} | " + " | ".join(cells) + f" | `{first}` |")
    caught = sum(any(by_layer.values()) for by_layer in found.values())
    print(f"\n{caught} of {len(found)} planted bugs caught")
    return caught == len(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the test that is known to catch each bug")
    parser.add_argument("--only", help="these bugs, separated by commas")
    parser.add_argument("--layers", default=",".join(LAYERS), help="these layers, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="how many test programs at once")
    arguments = parser.parse_args()
    meanings = bugs()
    names = arguments.only.split(",") if arguments.only else list(meanings)
    layers = arguments.layers.split(",")
    strange = [name for name in names if name not in meanings] + [layer for layer in layers if layer not in LAYERS]
    if strange:
        parser.error(f"no such bug or layer: {', '.join(strange)}")
    programs = build()
    try:
        if arguments.quick:
            found = quick(names, programs, arguments.jobs)
        else:
            check_sound(layers, programs)
            found = matrix(names, layers, programs, arguments.jobs)
    finally:
        restore()
    return 0 if show(found, meanings, layers) else 1


if __name__ == "__main__":
    sys.exit(main())
