"""`mixwell new`: the three files of a method to be written, in the form that its family asks for.

What is left to write says so when it is run: the equation, the loop it is checked against, the claim. Nothing of it
passes before it is written.
"""

from __future__ import annotations

import datetime
import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from mixwell.cli.errors import one_line
from mixwell.core import registry
from mixwell.core.errors import MixwellError, suggest
from mixwell.core.files import write_text

WIDTH = 120  # signs of a line
FOLDER = Path(__file__).parent / "skeletons"
CONTEXT = "\nfrom mixwell.core.routing import Context"
BUILT = 'made = ENTRY.load()(values["dim"], values["config"], generator)'


@dataclass(frozen=True)
class Form:
    """What the files of a family with a contract look like."""

    template: str
    call: str  # in the test: statements from `values` (what `example` gives) to numbers that can be compared
    imports: str = ""  # of the test
    drawn: str = "generator"  # what `example` draws from


ROUTER = Form("router", '''made = ENTRY.load()(values["dim"], values["num_experts"], values["config"], generator)
    return made(values["x_TD"], Context()).dense_TE()''', CONTEXT)
LAYER = Form("layer", f'''{BUILT}
    return made(values["x_TD"], Context()).y_TD''', CONTEXT)
SEQUENCE = Form("sequence", f'''{BUILT}
    return made(values["x_BTD"]).y_BTD''')
ESTIMATOR = Form("estimator", '''estimator = values.pop("estimator")
    return estimator.fit(**values).estimate_''')
MIXTURE = Form("mixture", '''estimator = values.pop("estimator")
    return estimator.fit(**values).score_samples(values["X"])''')
MODULE = Form("module", '''module = values.pop("module")
    return module(**values)''')
DRAWN = "np.random.default_rng(7)"
LAW = Form("law", '''curve = ENTRY.load()().curve(values["parameters"])
    return curve.predict(values["runs"])''', drawn=DRAWN)
PREDICTOR = Form("predictor", '''runs = values["runs"]
    return ENTRY.load()().fit(runs).predict(runs.weights_ND, runs.steps_N)''', drawn=DRAWN)
RULE = Form("rule", '''rule = values["rule"]
    state = rule.start()
    for batch in values["batches"]:
        state = rule.update(state, batch)
    return rule.result(state)''', drawn=DRAWN)
SELECTOR = Form("selector", f"return ENTRY.load()(**values, generator={DRAWN}).indices_S", drawn=DRAWN)
CONVERSION = Form("conversion", "return dict(ENTRY.load()(**values).tensors)")
ADAPTER = Form("adapter", '''made = ENTRY.load()(values["target"], values["config"], generator)
    return made.delta_weight()''')
FEDERATED = Form("federated", '''clients = values.pop("clients")
    method = ENTRY.load()(**values)
    return simulate(method, clients, Setting(rounds=1)).state["weight"]''',
                 "\nfrom mixwell.parallel.federated.simulation import Setting, simulate")
FORMS = {
    "experts.routers": ROUTER,
    "experts.layers": LAYER,
    "experts.balance": Form("balance", "return ENTRY.load()(**values)"),
    "experts.overflow": Form("overflow", "return ENTRY.load()(**values).dense_TE()"),
    "experts.analysis": Form("analysis", "return ENTRY.load()(**values)"),
    "sequence": SEQUENCE,
    "convert": CONVERSION,
    "precision": CONVERSION,
    "adapters": ADAPTER,
    "parallel.federated": FEDERATED,
    "scaling.laws": LAW,
    "data.mixing": PREDICTOR,
    "data.online": RULE,
    "data.selection": SELECTOR,
    "density.mixtures": MIXTURE,
    "density.values": Form("value", "return ENTRY.load()(**values)"),
    "density.circuits": MODULE,
    "density.networks": MODULE,
    "density.clustering": ESTIMATOR,
    "density.latent": ESTIMATOR,
    "density.processes": ESTIMATOR,
    "density.regression": ESTIMATOR,
    "density.robust": ESTIMATOR,
    "density.selection": ESTIMATOR,
}


@one_line
def new(name: Annotated[str, typer.Argument(help="Room, family and name, such as experts.routers.my_router.")],
        title: Annotated[str, typer.Option(help="A few words for lists.  [default: the name]")] = "",
        paper: Annotated[str, typer.Option(help="The paper's exact title.")] = "",
        year: Annotated[int, typer.Option(help="Of publication.  [default: this year]")] = 0,
        root: Annotated[Path | None, typer.Option(help="Checkout to write into.  [default: the one that runs]")] = None,
        ) -> None:
    """Write the skeleton of a method: its file, its test and its claim.

    **Example**

    `mixwell new experts.routers.my_router --paper "Mixtral of Experts" --year 2024`
    """
    root = root or registry.ROOT.parents[1]
    year = year or datetime.date.today().year
    files = skeleton(name, title, paper, year)
    if not (root / "src" / "mixwell").is_dir():
        raise MixwellError(f"{root} is no checkout of mixwell (it has no src/mixwell); name one with --root.")
    for path in files:
        if (root / path).exists():
            raise MixwellError(f"{root / path} is there already; choose another name.")
    for path, text in files.items():
        _make_packages(root, path)
        write_text(root / path, text)
        print(f"written: {root / path}")
    print(f"next: write the equation, then python -m pytest {test_file(name)}")


def _make_packages(root: Path, path: Path) -> None:
    """The `__init__.py` of every folder above a file that lacks one."""
    for folder in (root / path).parents:
        if folder in (root / "src" / "mixwell", root):
            break
        if not (folder / "__init__.py").exists():
            write_text(folder / "__init__.py", "")


def skeleton(name: str, title: str, paper: str, year: int) -> dict[Path, str]:
    """Path below the checkout -> text, for the method `name`.

    Raises `MixwellError` for a name that cannot be, and for quotes in the title or the paper.
    """
    parts = check_name(name)
    last = parts[-1]
    form = FORMS[".".join(parts[:-1])]
    title = title or last.replace("_", " ").capitalize()
    if any(sign in title + paper for sign in ('"', "\\")):
        raise MixwellError("title and paper: expected no double quotes and no backslashes, since they stand in quotes.")
    values = {
        "name": last,
        "full": name,
        "title": title,
        "paper": f'"{paper}"' if paper else "()",
        "paper_title": paper or "WRITE its exact title",
        "year": str(year),
        "object": "".join(word.capitalize() for word in last.split("_")),
        "call": form.call,
        "test_imports": form.imports,
        "drawn": form.drawn,
        "arrays": "import numpy as np\n" if form.drawn == DRAWN else "",
    }
    values["card"] = _filled("card", values)
    package = Path("src/mixwell")
    method = package.joinpath(*parts).with_suffix(".py")
    claim = package.joinpath("claims", *parts).with_suffix(".py")
    return {method: _filled(form.template, values), test_file(name): _filled("test", values),
            claim: _filled("claim", values)}


def check_name(name: str) -> list[str]:
    """The parts of a new method's name; a room or family that is not there, or a name for no file, raises."""
    parts = name.split(".")
    rooms = sorted({family.split(".")[0] for family in FORMS})
    if len(parts) < 2 or parts[0] not in rooms:
        raise MixwellError(f"{name!r}: expected a room first.{suggest(parts[0], rooms)} Rooms: {', '.join(rooms)}.")
    family = ".".join(parts[:-1])
    families = _families(parts[0])
    if family not in families:
        raise MixwellError(f"{name!r}: no family {family!r}.{suggest(family, families)} Families: "
                           f"{', '.join(families)}. A new one begins with its contract.")
    for part in parts:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", part) or keyword.iskeyword(part):
            raise MixwellError(f"{name!r}: {part!r} is no name for a file; use small letters, digits and '_'.")
    return parts


def _families(room: str) -> list[str]:
    """The families of a room that have a contract."""
    below = f"{room}."
    return [family for family in FORMS if f"{family}.".startswith(below)]


def test_file(name: str) -> Path:
    """Where the method's test lies, below the checkout."""
    *folders, last = name.split(".")
    return Path("tests").joinpath(*folders, f"test_{last}.py")


def _filled(template: str, values: dict[str, str]) -> str:
    text = (FOLDER / f"{template}.txt").read_text(encoding="utf-8")
    filled = Template(text).substitute(values)
    return re.sub(r"^@method\(.*\)$", _folded, filled, flags=re.MULTILINE)


def _folded(found: re.Match[str]) -> str:
    """The decorator, with one argument a line where a long title would leave the page."""
    line = found[0]
    if len(line) <= WIDTH:
        return line
    arguments = re.split(r", (?=(?:paper|year|tags)=)", line.removeprefix("@method(").removesuffix(")"))
    lines = [f"    {argument},\n" for argument in arguments]
    return f"@method(\n{''.join(lines)})"
