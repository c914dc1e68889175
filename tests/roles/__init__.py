"""Edges, normalizers and writers as processes of their own: started, loaded, restarted, killed and paused."""

import sys
from pathlib import Path

# What talks to a server and reads its lake is shared with the end-to-end tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
