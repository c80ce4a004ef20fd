"""A premise that does not hold, which ends a trial without an outcome."""

from __future__ import annotations


class Untestable(Exception):
    """A trial found its own premise broken; the message says which: no expert used, worse than a bigram table."""
