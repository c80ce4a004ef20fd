"""Break each method on purpose and see whether its own tests notice.

    python tools/mutants.py                              every method, six mutants each
    python tools/mutants.py experts.routers density.em   the methods whose names begin so
    python tools/mutants.py experts.routers.top_k --each 40
    python tools/mutants.py --save                       keeps what is found in docs/mutants.json and goes on from it

A mutant is the method's file with one small change: a sign, a comparison, a constant, a name such as `min` for `max`,
a term or a factor left out. It is tested by those tests of the method's own test file that reach the change; a failing
or hanging test kills it. Survivors are printed with their line, and those named in `tools/mutants.toml` with the reason
why no test can tell them apart are not tried. Nothing is written to the source.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import json
import os
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from mixwell.core.files import write_text
from mixwell.core.registry import Entry, entries
from mutants_trial import File, Workshop

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tools" / "mutants.toml"
SAVED = ROOT / "docs" / "mutants.json"
LOADED = ("torch", "scipy.stats", "sklearn.cluster", "sklearn.mixture")  # once, before the processes split
SEED = 0
SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
ORDERS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
NAMES = {"min": "max", "amin": "amax", "argmin": "argmax", "minimum": "maximum", "sum": "mean", "softmax": "sigmoid",
         "log": "log1p", "exp": "expm1", "sqrt": "abs", "cumsum": "cumprod", "any": "all", "zeros": "ones",
         "zeros_like": "ones_like", "sin": "cos", "tril": "triu", "floor": "ceil"}
NAMES |= {after: before for before, after in NAMES.items() if after not in ("mean", "sigmoid", "log1p", "expm1", "abs")}


@dataclass(frozen=True)
class Mutant:
    """One changed file."""

    method: str
    line: int
    statement: int  # the line where its statement begins; 0 outside functions
    before: str
    after: str
    tree: ast.Module

    @property
    def change(self) -> str:
        """What stood there and what stands there now."""
        return f"{self.before}  ->  {self.after}"

    def __str__(self) -> str:
        return f"line {self.line}: {self.change}"


@dataclass(frozen=True)
class Verdict:
    """What became of a method's mutants."""

    killed: int
    tried: int
    survivors: tuple[str, ...] = ()


def alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of `node`."""
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in ORDERS:
        yield ast.Compare(node.left, [ORDERS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is float:
        yield ast.Constant(2.0 * node.value or 1.0)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], node.ctx)


def _of_operation(node: ast.BinOp) -> Iterator[ast.AST]:
    if isinstance(node.left, ast.Constant) and isinstance(node.left.value, str):
        return  # a message
    if type(node.op) in SIGNS:
        yield ast.BinOp(node.left, SIGNS[type(node.op)](), node.right)
        yield node.left
    elif isinstance(node.op, ast.Pow):
        yield node.left
    elif isinstance(node.op, ast.MatMult) and not isinstance(node.left, ast.Constant):
        yield ast.UnaryOp(ast.USub(), node)


class Place(NamedTuple):
    """Where a node stands."""

    parent: ast.AST
    field: str
    index: int | None
    statement: int  # the line where its statement begins; 0 outside functions

    @property
    def node(self) -> ast.AST:
        """What stands there."""
        value = getattr(self.parent, self.field)
        found: ast.AST = value if self.index is None else value[self.index]
        return found

    def put(self, node: ast.AST) -> None:
        """Put another there."""
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


class _Places(ast.NodeVisitor):
    """The places of a file where a change means something: computations, not words, types or defaults."""

    def __init__(self) -> None:
        self.found: list[Place] = []
        self.depth, self.statement = 0, 0

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, child in children:
                if isinstance(child, ast.AST):
                    self._look_at(Place(node, name, index, self._line_of(child)))

    def _look_at(self, place: Place) -> None:
        outside, self.statement = self.statement, place.statement
        if any(True for _ in alternatives(place.node)):
            self.found.append(place)
        self.visit(place.node)
        self.statement = outside

    def _line_of(self, child: ast.AST) -> int:
        if isinstance(child, ast.stmt):
            return child.lineno if self.depth else 0
        return self.statement

    def visit_Raise(self, node: ast.Raise) -> None:
        """Words for the user."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """The same."""

    def visit_arguments(self, node: ast.arguments) -> None:
        """Defaults."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Its body, unless it only makes an example for others to use."""
        if node.name == "example":
            return
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods of a class; its fields are options."""
        for part in filter(lambda part: isinstance(part, ast.FunctionDef), node.body):
            self.visit(part)


def mutants(method: str, source: str, most: int) -> list[Mutant]:
    """At most `most` mutants of a file, the same ones each time, spread over its functions."""
    tree = ast.parse(source)
    found = _places(tree)
    choices = [(place, n) for place in range(len(found)) for n in range(_count(found[place]))]
    chosen = sorted(random.Random(f"{SEED} {method}").sample(choices, min(most, len(choices))))
    return [_mutant(method, tree, place, n) for place, n in chosen]


def _places(tree: ast.Module) -> list[Place]:
    places = _Places()
    places.visit(tree)
    return places.found


def _count(place: Place) -> int:
    return sum(1 for _ in alternatives(place.node))


def _mutant(method: str, tree: ast.Module, number: int, alternative: int) -> Mutant:
    changed = copy.deepcopy(tree)
    place = _places(changed)[number]
    before = place.node
    after = list(alternatives(before))[alternative]
    words = ast.unparse(before), ast.unparse(after)
    place.put(ast.copy_location(after, before))
    ast.fix_missing_locations(changed)
    return Mutant(method, before.lineno, place.statement, *words, changed)  # type: ignore[attr-defined]


def tests_of(path: Path) -> tuple[str, ...]:
    """The test file of a method: the same path below tests/, or a file of that name anywhere there."""
    inside = path.relative_to(ROOT / "src" / "mixwell")
    beside = ROOT / "tests" / inside.parent / f"test_{inside.name}"
    anywhere = sorted((ROOT / "tests").rglob(beside.name))
    return tuple(map(str, [beside] if beside.exists() else anywhere[:1]))


def judge(entry: Entry, most: int, excused: Sequence[str]) -> Verdict:
    """What became of a method's mutants; equivalent ones that were excused are not tried."""
    source = entry.path.read_text(encoding="utf-8")
    tests = tests_of(entry.path)
    if not tests:
        return Verdict(0, 1, ("it has no test file of its own",))
    workshop = Workshop(File(f"mixwell.{entry.name}", entry.path, ast.parse(source), tests))
    try:
        if not workshop.sound.passed:
            return Verdict(0, 1, ("its tests fail as it stands",))
        tried = [m for m in mutants(entry.name, source, most) if m.change not in excused]
        alive = tuple(str(m) for m in tried if workshop.passes(m.tree, m.statement))
        return Verdict(len(tried) - len(alive), len(tried), alive)
    finally:
        workshop.close()


def chosen(prefixes: Sequence[str]) -> list[Entry]:
    """Methods of the catalogue whose names begin with one of the prefixes."""
    return [entry for entry in entries()
            if not prefixes or any(f"{entry.name}.".startswith(f"{prefix}.") for prefix in prefixes)]


def key(entry: Entry, most: int, excused: Sequence[str]) -> str:
    """A digest of all that a verdict hangs on: the code of the method and of its tests, and which mutants were made."""
    files = [entry.path, *map(Path, tests_of(entry.path))]
    parts = [*(_code(path) for path in files), str(most), *sorted(excused)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _code(path: Path) -> str:
    """What a file says without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            del node.body[0]  # type: ignore[attr-defined]
    return ast.dump(tree)


def shares(verdicts: Mapping[str, Verdict]) -> str:
    """How many were killed, room by room and in all."""
    lines = []
    for room in (*sorted({name.partition(".")[0] for name in verdicts}), ""):
        those = [verdict for name, verdict in verdicts.items() if name.startswith(room)]
        killed, tried = sum(verdict.killed for verdict in those), sum(verdict.tried for verdict in those)
        lines.append(f"{room or 'all':12s} {killed} of {tried} mutants killed: {killed / max(tried, 1):.1%}")
    return "\n".join(lines)


def main() -> None:
    """Judge the methods asked for and print what survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefixes", nargs="*", metavar="NAME")
    parser.add_argument("--each", type=int, default=6, help="mutants of each method")
    parser.add_argument("--save", action="store_true", help=f"keep what is found, and go on from it ({SAVED.name})")
    options = parser.parse_args()
    for name in LOADED:
        importlib.import_module(name)

    os.chdir(ROOT)
    excused = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    saved = json.loads(SAVED.read_text(encoding="utf-8")) if options.save and SAVED.exists() else {}
    verdicts = {}
    for entry in chosen(options.prefixes):
        reasons = list(excused.get(entry.name, {}))
        digest = key(entry, options.each, reasons)
        if saved.get(entry.name, {}).get("digest") != digest:
            saved[entry.name] = {"digest": digest, **asdict(judge(entry, options.each, reasons))}
            if options.save:
                write_text(SAVED, json.dumps(saved, indent=1, sort_keys=True) + "\n")
        verdict = Verdict(*(saved[entry.name][part] for part in ("killed", "tried", "survivors")))
        verdicts[entry.name] = verdict
        lines = [f"{entry.name:44s} {verdict.killed}/{verdict.tried}", *verdict.survivors]
        print("\n    ".join(lines), flush=True)
    print(shares(verdicts))


if __name__ == "__main__":
    main()
