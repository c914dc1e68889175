"""What must hold of a fleet, whatever was done to it; and the figures of a run."""

import dataclasses
import json

from harness import wait_until


@dataclasses.dataclass
class Figures:
    """What one run came to."""

    codes: dict
    refusals: dict
    refused: int
    unanswered: int
    slowest: float
    acknowledged: int
    lost: int
    rows: int
    doubled_offsets: int
    sent_again: int
    received: int

    def table(self):
        """As it is printed."""
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(self.codes.items()))
        refusals = ", ".join(f"{code} {reason}: {n}" for (code, reason), n in sorted(self.refusals.items())) or "none"
        return "\n".join(
            [
                "| acknowledged | lost | rows in the lake | offsets twice | kept twice (sent again after 503) |"
                " answers | refusals | without an answer | slowest acknowledgement |",
                "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
                f"| {self.acknowledged} | {self.lost} | {self.rows} | {self.doubled_offsets} | {self.sent_again}"
                f" | {codes} | {refusals} | {self.unanswered} | {self.slowest:.1f} s |",
            ]
        )


def figures(fleet, crowd):
    """Asserts what is promised, returns what to print."""
    codes, refusals, refused, unanswered, slowest = crowd.told()
    assert set(codes) <= {200, 429, 503}, codes
    fleet.settle()
    acknowledged = crowd.acknowledged()
    assert acknowledged, "nothing was acknowledged"
    rows, places, ids = fleet.lake_rows()
    missing = acknowledged - set(ids)
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged events are lost, for instance {sorted(missing)[:3]}"
    assert rows == places, f"{rows - places} rows have an offset that is in the lake already"
    assert set(ids) == acknowledged, "what was never acknowledged, and is there, was sent until it was"
    audits = wait_until("nothing is in flight", lambda: settled(fleet))
    accepted = total(audits, "writer", "accepted")
    assert accepted == rows, f"the writers' books have {accepted} accepted, the lake {rows}"
    for role in ("edge", "normalizer"):
        assert total(audits, role, "accepted") == 0, f"what is in a log is in its writer's books alone: {role}"
    together(fleet, crowd, rows)
    again = sum(n - 1 for n in ids.values())
    received = sum(total(audits, role, "received") for role in ("edge", "normalizer", "writer"))
    return Figures(
        dict(codes), dict(refusals), refused, unanswered, slowest, len(acknowledged), len(missing), rows, rows - places, again, received
    )


def together(fleet, crowd, rows):
    """`ingestctl audit --also …` says the same of all of them, and finds what clients noted in one log or the other."""
    journal = fleet.folder / "journal.ndjson"
    lines = ({"tenant": one.tenant, "event_type": one.event_type, "event_id": i} for one in crowd.senders for i in one.acknowledged)
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, *others = fleet.all()
    also = [argument for one in others for argument in ("--also", one.admin)]
    audit = first.ctl("audit", *also, "--journal", journal)
    assert audit["balanced"] and audit["journal"]["missing_count"] == 0, audit
    assert sum(row["accepted"] for row in audit["tenants"]) == rows and len(audit["processes"]) == len(fleet.all()), audit
    with open(journal, "a") as file:
        file.write(json.dumps({"event_id": "never-sent"}) + "\n")
    audit = first.ctl("audit", *also, "--journal", journal, status=1)
    assert audit["journal"]["missing"] == ["never-sent"], audit["journal"]


def settled(fleet):
    audits = fleet.audits()
    return audits if all(audit["in_flight"] == 0 for audit in audits.values()) else None


def total(audits, role, name):
    return sum(row[name] for who, audit in audits.items() if who.startswith(role) for row in audit["tenants"])
