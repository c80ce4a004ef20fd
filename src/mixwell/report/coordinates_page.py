"""The report of the coordinate check: how activations move with width in both parametrisations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from mixwell.core import units
from mixwell.lm.widths import MAXIMAL, STANDARD, grown
from mixwell.report import findings, plots
from mixwell.report.findings import Row
from mixwell.report.words import listed

TITLES = {"exponents": "Exponents of width", "sizes": "Sizes over width, after the last step",
          "machine": "Machine and versions"}


def verdict(found: Mapping[str, Any], parametrisation: str) -> str:
    """Whether an activation grows with width, in a sentence."""
    growing = grown(found, parametrisation)
    most = units.fixed(found["most"], 2)
    worst = max(one["exponent"] for one in found[parametrisation].values())
    largest = _signed(worst)
    if not growing:
        return f"{parametrisation}: no activation grows faster than width^{most} (the fastest with width^{largest})."
    return f"{parametrisation}: {listed(growing)} grow with width, the fastest with width^{largest}."


def _signed(value: float) -> str:
    return units.fixed(value, 2)


def exponents(found: Mapping[str, Any]) -> list[Row]:
    """Module: exponent at the start and afterwards, in both parametrisations."""
    rows = []
    for module in found[STANDARD]:
        cells = []
        for parametrisation in (STANDARD, MAXIMAL):
            one = found[parametrisation][module]
            cells.append((_signed(one["start"]), ""))
            cells.append((_signed(one["exponent"]), ""))
        rows.append((module, cells))
    return rows


def _chart(found: Mapping[str, Any], parametrisation: str) -> Markup:
    """log10 of the mean size over log2 of the width, a line a module."""
    modules = found[parametrisation]
    colors = plots.slots(list(modules))
    across = np.log2(found["widths"]).tolist()
    lines = []
    for name, one in modules.items():
        table_WS = np.array(one["sizes"])
        up_W = np.log10(table_WS[:, -1])
        line = plots.Series(name=name, x=across, y=up_W.tolist(), slot=colors[name])
        lines.append(line)
    return plots.line_chart(lines, x_label="log₂ of the width", y_label="log₁₀ of the mean size")


def page(found: Mapping[str, Any]) -> str:
    """The report as HTML."""
    both = STANDARD, MAXIMAL
    charts = [(name, _chart(found, name)) for name in both]
    said = [verdict(found, name) for name in both]
    sections = {"exponents": exponents(found), "sizes": charts}
    return findings.page("coordinates.html", TITLES, sections, title="The coordinate check", lead=_lead(found),
                         points=said)


def _lead(found: Mapping[str, Any]) -> str:
    steps = found["steps"]
    texts = map(str, found["widths"])
    widths = listed(list(texts))
    return f"A small decoder of widths {widths}, trained for {steps} steps of Adam on one batch."
