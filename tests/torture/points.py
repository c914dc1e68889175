"""kill -9 from within: at every point that `faults.rs` names, the first time it is passed, the second, …"""

import re

from .field import Field, Skip, load_until_death
from .rig import FAULTS, REPOSITORY, EndedAtStart

KILLED = -9
TURNS_MOST, MISSES_MOST = 40, 8
# What a point needs to be passed at all; `large` makes segments end, retention takes the old ones away.
RETENTION = {"log": 'retention_bytes = "1MiB"\nretention_age = "1s"'}
NEEDS = {
    "K12": {"large": 0.5},
    "K13": {"large": 0.5},
    "K14": {"large": 0.5},
    "K15": {"large": 0.9, "after": 2.5, "parts": RETENTION, "turns": 3, "apart": True},
}


def names():
    """Every point of the program with what it means, as its source lists them."""
    source = (REPOSITORY / "crates/ingest/src/faults.rs").read_text()
    found = re.findall(r'^\s+\w+ = "(K[0-9]+[a-z]?)", "([^"]+)";', source, re.MULTILINE)
    assert len(found) >= 20, f"faults.rs lists its points in another way now: {found}"
    return dict(found)


def sweeps():
    """What there is to sweep."""
    return list(names())


def sweep(field: Field, point):
    """Dies at `point`, turn after turn, until a run does not come to it that often; a few turns at a time."""
    if not FAULTS.exists():
        raise Skip(f"kill points: {FAULTS} is not built")
    needs, missed = NEEDS.get(point, {}), 0
    for turn in field.turns(point, needs.get("turns", TURNS_MOST)):
        # Retention takes events away that a client may send again: they would be new. Its plots are apart.
        fresh = bool(needs.get("apart")) or (field.random.random() < 0.1)
        dead = False
        with field.cycle(f"{point}:{turn}", fresh) as plot:
            dead = die_at(field, plot, point, turn, needs)
            if dead:
                field.hits[point] += 1
                field.counts["killed"] += 1
            field.recover(plot)
        if needs.get("apart"):
            field.close()
        missed += not dead
        # A run that by chance did not come to it once is not the end yet.
        if missed and (field.hits[point] or missed == MISSES_MOST):
            field.from_the_first(point)
            return
        if field.over() and field.hits[point]:
            return


def die_at(field, plot, point, turn, needs):
    """True if the server ended itself there."""
    armed = {"TIDEGATE_KILL_AT": f"{point}:{turn}"}
    try:
        server = plot.server(binary=FAULTS, env=armed, **needs.get("parts", {})).start()
    except EndedAtStart as ended:
        if ended.returncode != KILLED:
            raise
        return True
    status = load_until_death(field, server, plot, after=needs.get("after", 0.25), large=needs.get("large", 0.08))
    if status is None:
        server.kill()
    return status == KILLED
