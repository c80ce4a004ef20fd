"""The evidence files, read whatever their layout, and each claim given to the method that it speaks of.

Two layouts are known: `<room>.json` with claims by name, and `<full method name>.json` with one claim. Anything else is
an error, for a page that leaves out what it cannot read would look like a method without evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OUTCOMES = ("held", "contradicted", "did not hold", "undecided", "not testable here")
NEEDED = ("claim", "outcome")
Claim = dict[str, Any]


def read(folder: Path) -> dict[str, Claim]:
    """Every claim by its name; an unknown layout or outcome raises `ValueError` with the file's name."""
    claims: dict[str, Claim] = {}
    for path in sorted(folder.glob("*.json")):
        for name, claim in _claims(path).items():
            if name in claims:
                raise ValueError(f"{path}: the claim {name} stands in another file, too")
            claims[name] = claim
    return claims


def _claims(path: Path) -> dict[str, Claim]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, got {type(found).__name__}")
    claims = {path.stem: found} if "outcome" in found else found
    for name, claim in claims.items():
        _check(path, name, claim)
    return claims


def _check(path: Path, name: str, claim: Any) -> None:
    fields = claim if isinstance(claim, Mapping) else {}
    if not all(isinstance(fields.get(key), str) for key in NEEDED):
        raise ValueError(f"{path}: {name} is no claim; expected an object with {' and '.join(NEEDED)}")
    outcome = fields["outcome"]
    if outcome not in OUTCOMES:
        known = ", ".join(OUTCOMES)
        raise ValueError(f"{path}: {name} has the outcome {outcome!r}; expected one of {known}")


def by_method(claims: Mapping[str, Claim], methods: Iterable[str]) -> dict[str, dict[str, Claim]]:
    """Method -> its claims by name; a claim that no method answers for raises `ValueError`."""
    known = list(methods)
    given: dict[str, dict[str, Claim]] = {name: {} for name in known}
    for name, claim in claims.items():
        given[owner(name, known)][name] = claim
    return given


def owner(claim: str, methods: list[str]) -> str:
    """The method that a claim is named after.

    `experts.cosine` may be short for `experts.routers.cosine`, `experts.balance_entropy` for `experts.balance.entropy`,
    and a further claim of a method adds words to its name (`experts.top_k_sparse`): the longest name wins.
    """
    room, _, rest = claim.partition(".")
    flat = rest.replace(".", "_") + "_"
    same_room = [method for method in methods if method.startswith(f"{room}.")]
    shared = {method: max((len(form) for form in _forms(method) if flat.startswith(f"{form}_")), default=0)
              for method in same_room}
    longest = max(shared.values(), default=0)
    found = [method for method, length in shared.items() if length == longest > 0]
    if len(found) != 1:
        raise ValueError(f"the claim {claim} belongs to {' or '.join(found) or 'no method'}")
    return found[0]


def _forms(method: str) -> set[str]:
    """What a claim may call a method after its room: its last name, with its family's before it, or all of it."""
    parts = method.split(".")[1:]
    return {"_".join(parts[start:]) for start in range(len(parts))}
