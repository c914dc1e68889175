"""A healthy sink beside one that answers 503: the short form of `make demo-two-sinks`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import tally  # noqa: E402
from overload import two_sinks  # noqa: E402


def test_a_sink_that_answers_503_costs_the_healthy_one_nothing(tmp_path):
    """Scenario: a lake on an S3 server that answers 503 to everything for 3 s, beside a local one, under load.
    Guarantees: nobody is refused, the healthy lake is as fresh as before, both have each acknowledged event once."""
    outcome = two_sinks.run(tmp_path, outage=3, rate=500, before=2, after=2)
    print(outcome.table)
    assert outcome.refused == 0
    tally("e2e::two_sinks", "sink down", ["P2", "P3", "P4", "P5"], 1)


def test_an_outage_beyond_the_backlog_is_told_and_both_sinks_end_complete(tmp_path):
    """Scenario: the same, with an outage that outlasts what the log may hold back for a sink.
    Guarantees: clients are told 503 `log_full` and when to come again; nothing acknowledged is missing or twice."""
    outcome = two_sinks.run(tmp_path, outage=4, rate=2500, before=2, after=3, backlog=4 << 20)
    print(outcome.table)
    assert outcome.refused > 0
    tally("e2e::two_sinks", "sink down", ["P2", "P4", "P5"], 1)


def test_a_sink_that_never_answers_costs_the_healthy_one_nothing(tmp_path):
    """Scenario: the S3 server takes requests and answers none of them; what it took is applied when it is well again.
    Guarantees: as with one that answers 503, and what was applied behind the sink's back is there once."""
    outcome = two_sinks.run(tmp_path, outage=4, rate=500, before=2, after=2, hangs=True)
    print(outcome.table)
    assert outcome.refused == 0
    tally("e2e::two_sinks", "slow sink", ["P2", "P3", "P4", "P5"], 1)
