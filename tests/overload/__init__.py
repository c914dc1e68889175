"""Proofs of what happens under overload that take minutes: each is a command that prints its figures and asserts them."""

import sys
from pathlib import Path

# What starts a server and reads its lake is shared with the end-to-end tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
