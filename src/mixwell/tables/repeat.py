"""How a fit is repeated, on the command line and in Python, and how it is cited."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell import __version__
from mixwell.tables.candidates import CRITERIA
from mixwell.tables.missing import Form
from mixwell.tables.model import FittedMixture
from mixwell.tables.search import SEARCHED

USUAL = {"family": "auto", "criterion": "bic", "starts": 4, "folds": 5, "seed": 0, "search_rows": SEARCHED}
IN_MEMORY = "TABLE"  # in place of the name of a table that is no file
FORM_OPTIONS = {"delimiter": "", "decimal": "", "thousands": "", "encoding": "", "header": None, "skip_rows": None}


def command(asked: Mapping[str, Any]) -> str:
    """The command that makes the fit again; "" where its table is no file."""
    if not asked["table"]:
        return ""
    words = ["mixwell", "fit", asked["table"]]
    words += _numbers(asked["components"])
    for name, kind in asked["columns"].items():
        words += ["--column", f"{name}={kind}"]
    if asked["only"]:
        words += ["--columns", ",".join(asked["only"])]
    for name in ("against", "weights"):
        if asked[name]:
            words += [f"--{name}", asked[name]]
    words += _form_words(asked["form"])
    for name, usual in USUAL.items():
        if asked[name] != usual:
            value = "all" if asked[name] is None else str(asked[name])
            words += [f"--{name.replace('_', '-')}", value]
    return shlex.join(words)


def _numbers(components: Sequence[int] | None) -> list[str]:
    """`--components 1-8`"""
    if components is None:
        return []
    first, last = min(components), max(components)
    through = list(components) == list(range(first, last + 1)) and last > first
    return ["--components", f"{first}-{last}" if through else ",".join(map(str, components))]


def _form_words(form: Form) -> list[str]:
    """What was said of how the file is written, as options."""
    words: list[str] = []
    for name, usual in FORM_OPTIONS.items():
        value = getattr(form, name)
        if value == usual:
            continue
        if name == "header":
            value = "yes" if value else "no"
        words += [f"--{name.replace('_', '-')}", str(value)]
    if form.missing:
        words.append(f"--missing={','.join(form.missing)}")  # it may begin with a minus
    return words


def snippet(asked: Mapping[str, Any]) -> str:
    """The lines of Python that make the fit again and label new rows."""
    table = repr(asked["table"]) if asked["table"] else IN_MEMORY
    options = []
    if asked["components"] is not None:
        options.append(f"components={_python_numbers(asked['components'])}")
    options += [f"{name}={asked[name]!r}" for name in ("columns", "only", "against", "weights") if asked[name]]
    said = _said(asked["form"])
    if said:
        options.append(f"form=tables.Form({said})")
    options += [f"{name}={asked[name]!r}" for name, usual in USUAL.items() if asked[name] != usual]
    call = ", ".join([table, *options])
    return f"from mixwell import tables\n\nfitted = tables.fit({call})\nfitted.predict('new-rows.csv')"


def _python_numbers(components: Sequence[int]) -> str:
    first, last = min(components), max(components)
    if list(components) == list(range(first, last + 1)):
        return f"range({first}, {last + 1})"
    return repr(list(components))


def _said(form: Form) -> str:
    usual = Form()
    names = [*FORM_OPTIONS, "missing"]
    return ", ".join(f"{name}={getattr(form, name)!r}" for name in names if getattr(form, name) != getattr(usual, name))


def citation(fitted: FittedMixture) -> str:
    """What a paper would say of the fit."""
    best, found = fitted.choice.taken, fitted.choice
    score = f"{CRITERIA[found.criterion]} {found.score(best):.2f}"
    sources = {"bic": "Schwarz, 1978", "icl": "Biernacki, Celeux and Govaert, 2000", "aic": "Akaike, 1974",
               "cv": "Smyth, 2000"}
    numbers = sorted({candidate.n_components for candidate in found.candidates})
    tried = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    tried += " tried" + (f" on {found.searched} rows drawn at random" if found.searched else "")
    return (f"A mixture of {best.n_components} components ({best.words}) was fitted by maximum likelihood with the EM "
            f"algorithm (Dempster, Laird and Rubin, 1977) using mixwell {__version__}; its families and the number of "
            f"components ({tried}) were chosen by {score} ({sources[found.criterion]}), log-likelihood "
            f"{best.log_likelihood:.2f} with {best.n_parameters} free parameters on {fitted.total:.6g} rows.")
