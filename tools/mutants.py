"""Break each method on purpose and see whether its own tests notice.

    python tools/mutants.py                              every method, six mutants each
    python tools/mutants.py experts.routers density.em   the methods whose names begin so
    python tools/mutants.py experts.routers.top_k --each 40

A mutant is the method's file with one small change: a sign, a comparison, a constant, a name such as `min` for `max`,
a term or a factor left out. It is tested by the method's own test file in a process of its own; a failing or hanging
test kills it. Survivors are printed with their line, and those named in `tools/mutants.toml` with the reason why no
test can tell them apart count as equivalent. Nothing is written to the source.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import io
import multiprocessing
import os
import random
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType

from mixwell.core.registry import Entry, entries

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tools" / "mutants.toml"
SEED = 0
PATIENCE_S, SOUND_S = 120.0, 600.0  # for the tests of a mutant, and of the file as it stands
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
    before: str
    after: str
    tree: ast.Module

    def __str__(self) -> str:
        return f"line {self.line}: {self.before}  ->  {self.after}"


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


class _Places(ast.NodeVisitor):
    """The places of a file where a change means something: computations, not words, types or defaults."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.AST, str, int | None]] = []  # parent, field, index

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            children = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, child in children:
                if not isinstance(child, ast.AST):
                    continue
                if any(True for _ in alternatives(child)):
                    self.found.append((node, name, index))
                self.visit(child)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Words for the user."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """The same."""

    def visit_arguments(self, node: ast.arguments) -> None:
        """Defaults."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Its body, unless it only makes an example for others to use."""
        if node.name != "example":
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods of a class; its fields are options."""
        for part in filter(lambda part: isinstance(part, ast.FunctionDef), node.body):
            self.visit(part)


def mutants(method: str, source: str, most: int) -> list[Mutant]:
    """At most `most` mutants of a file, the same ones each time, spread over its functions."""
    tree = ast.parse(source)
    places = _Places()
    places.visit(tree)
    choices = [(place, n) for place in range(len(places.found)) for n in range(_count(places.found[place]))]
    chosen = sorted(random.Random(f"{SEED} {method}").sample(choices, min(most, len(choices))))
    return [_mutant(method, tree, place, n) for place, n in chosen]


def _child(place: tuple[ast.AST, str, int | None]) -> ast.AST:
    parent, name, index = place
    value = getattr(parent, name)
    found: ast.AST = value if index is None else value[index]
    return found


def _count(place: tuple[ast.AST, str, int | None]) -> int:
    return sum(1 for _ in alternatives(_child(place)))


def _mutant(method: str, tree: ast.Module, number: int, alternative: int) -> Mutant:
    changed = copy.deepcopy(tree)
    places = _Places()
    places.visit(changed)
    parent, name, index = places.found[number]
    before = _child(places.found[number])
    after = list(alternatives(before))[alternative]
    words = ast.unparse(before), ast.unparse(after)
    ast.copy_location(after, before)
    if index is None:
        setattr(parent, name, after)
    else:
        getattr(parent, name)[index] = after
    ast.fix_missing_locations(changed)
    return Mutant(method, before.lineno, *words, changed)  # type: ignore[attr-defined]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module from compiled code instead of from its file."""

    def __init__(self, module: str, path: Path, code: CodeType) -> None:
        self.module, self.path, self.code = module, path, code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of that module alone."""
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code."""
        exec(self.code, module.__dict__)


def _run(module: str, path: Path, tree: ast.Module, tests: Sequence[str]) -> None:
    """In a process of its own: exit with 0 where every test passes."""
    import pytest
    import torch

    torch.set_num_threads(1)
    sys.meta_path.insert(0, _Finder(module, path, compile(tree, str(path), "exec")))
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        status = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])
    os._exit(int(status))


def passes(module: str, path: Path, tree: ast.Module, tests: Sequence[str], patience_s: float) -> bool:
    """Whether the tests pass with the file changed to `tree`; False, too, where they take longer than that."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(module, path, tree, tests))
    process.start()
    process.join(patience_s)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == 0


def tests_of(path: Path) -> list[str]:
    """The test file of a method: the same path below tests/, or a file of that name anywhere there."""
    inside = path.relative_to(ROOT / "src" / "mixwell")
    beside = ROOT / "tests" / inside.parent / f"test_{inside.name}"
    if beside.exists():
        return [str(beside)]
    return sorted(map(str, (ROOT / "tests").rglob(f"test_{inside.name}")))[:1]


def judge(entry: Entry, most: int, excused: Sequence[str]) -> tuple[int, int, list[str]]:
    """(killed, tried, survivors in words); equivalent mutants that were excused are not counted."""
    path, module = entry.path, f"mixwell.{entry.name}"
    source = path.read_text(encoding="utf-8")
    tests = tests_of(path)
    if not tests:
        return 0, 1, ["it has no test file of its own"]
    began = time.monotonic()
    if not passes(module, path, ast.parse(source), tests, SOUND_S):
        return 0, 1, ["its tests fail as it stands"]
    patience_s = PATIENCE_S + 3 * (time.monotonic() - began)
    tried = [m for m in mutants(entry.name, source, most) if str(m).partition(": ")[2] not in excused]
    alive = [m for m in tried if passes(module, path, m.tree, tests, patience_s)]
    return len(tried) - len(alive), len(tried), list(map(str, alive))


def chosen(prefixes: Sequence[str]) -> list[Entry]:
    """Methods of the catalogue whose names begin with one of the prefixes."""
    return [entry for entry in entries()
            if not prefixes or any(f"{entry.name}.".startswith(f"{prefix}.") for prefix in prefixes)]


def main() -> None:
    """Judge the methods asked for and print what survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefixes", nargs="*", metavar="NAME")
    parser.add_argument("--each", type=int, default=6, help="mutants of each method")
    options = parser.parse_args()
    import pytest  # noqa: F401 - loaded once, before the processes split
    import torch  # noqa: F401

    os.chdir(ROOT)
    excused = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}
    killed = tried = 0
    for entry in chosen(options.prefixes):
        some, of, alive = judge(entry, options.each, list(excused.get(entry.name, {})))
        killed, tried = killed + some, tried + of
        print(f"{entry.name:44s} {some}/{of}", *(f"\n    {words}" for words in alive), flush=True)
    share = killed / tried if tried else 1.0
    print(f"{killed} of {tried} mutants killed: {share:.1%}")


if __name__ == "__main__":
    main()
