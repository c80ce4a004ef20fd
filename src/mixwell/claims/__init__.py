"""The papers' claims, each as an experiment: `claims/<full name of the method>.py`.

A claim's file holds `CLAIM`, what is compared with what and by which margin (`mixwell.claims.claim`), and, where the
claim declares no sides, `trial(bench, seed)`, the numbers of all sides at one seed. A method's further claims add a
word after two underscores: `experts.routers.top_k__sparse`. `mixwell.claims.rule` says when a claim is decided,
`mixwell.claims.running` tries it.
"""

from __future__ import annotations

from pathlib import Path

from mixwell.core.errors import MixwellError, suggest

ROOT = Path(__file__).parent


def names() -> list[str]:
    """The names of all claims, sorted."""
    found = []
    for path in ROOT.glob("*/**/*.py"):
        if not path.name.startswith("_"):
            inside = path.relative_to(ROOT).with_suffix("")
            found.append(".".join(inside.parts))
    return sorted(found)


def method_of(name: str) -> str:
    """The full name of the method that a claim speaks of."""
    return name.partition("__")[0]


def chosen(prefixes: list[str]) -> list[str]:
    """The claims whose name, method, family or room is one of `prefixes`; all of them where there are none.

    The last part of a method's name will do as well. One that fits nothing raises `MixwellError` with the nearest.
    """
    every = names()
    if not prefixes:
        return every
    found: set[str] = set()
    for prefix in prefixes:
        fitting = [name for name in every if _fits(name, prefix)]
        if not fitting:
            near = suggest(prefix, _known(every))
            raise MixwellError(f"no claims for {prefix!r}.{near} `mixwell claims --list` names all.")
        found.update(fitting)
    return sorted(found)


def _fits(name: str, prefix: str) -> bool:
    method = method_of(name)
    short = method.rpartition(".")[2]
    return prefix in (name, short) or f"{method}.".startswith(f"{prefix}.")


def _known(every: list[str]) -> list[str]:
    methods = {method_of(name) for name in every}
    families = {method.rpartition(".")[0] for method in methods}
    rooms = {name.partition(".")[0] for name in every}
    short = {method.rpartition(".")[2] for method in methods}
    return sorted(methods | families | rooms | short)
