"""The evidence files, each claim given to the method that it speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mixwell.claims import method_of
from mixwell.claims.evidence import Entry
from mixwell.claims.evidence import read as read
from mixwell.claims.evidence import stale as stale

Claim = Entry


def by_method(claims: Mapping[str, Claim], methods: Iterable[str]) -> dict[str, dict[str, Claim]]:
    """Method -> its claims by name; a claim that no method answers for raises `ValueError`."""
    given: dict[str, dict[str, Claim]] = {name: {} for name in methods}
    for name, claim in claims.items():
        method = method_of(name)
        if method not in given:
            raise ValueError(f"the claim {name} belongs to {method}, which is no method")
        given[method][name] = claim
    return given
