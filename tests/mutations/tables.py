"""Mutants of tables (text, Parquet, frames in memory) and of the folders of fitted mixtures."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from mixwell import tables
from mixwell.tables import reading
from mixwell.tables.columns import choose, decode, encode, used
from mixwell.tables.kinds import CATEGORY
from tests.mutations import Change, Outcome, outcome
from tests.mutations.recipes import ODD, _places

CELLS = ["", "1e200", "1e400", "-1e-400", "inf", "nan", "NaN", "-inf", "text", "12abc", "1,5", "'", '"', '""',
         "\x00", "9" * 400, "18446744073709551615", "-9223372036854775809", "2020-01-01", "2020-01-01T00:00:00Z",
         "TRUE", "0x10", "1_000", " 7 ", "é", "\u202e", "=1+1", "None", "-", "1e5", "x" * 3000]


def frame(rows=60):
    """Two groups over two numbers, a count and a category, with holes."""
    rng = np.random.default_rng(1)
    group = rng.integers(0, 2, rows)
    made = pd.DataFrame({
        "height": np.round(rng.normal(10 + 5 * group, 1), 2),
        "width": np.round(rng.normal(3 - group, 0.5), 2),
        "visits": rng.poisson(1 + 2 * group),
        "town": np.where(rng.random(rows) < 0.3 + 0.4 * group, "Kiel", "Ulm")})
    made.loc[3, "width"] = np.nan
    return made


def text_of(made):
    return made.to_csv(index=False)


def cells(draws):
    """Some cells of a CSV hold something else."""
    rows = list(csv.reader(io.StringIO(text_of(frame()))))
    for _ in range(draws.choice([1, 1, 2, 30])):
        row = draws.choice(rows)
        row[draws.randrange(len(row))] = draws.choice(CELLS)
    if draws.random() < 0.2:
        at = draws.randrange(4)
        odd = draws.choice(CELLS)
        for row in rows[1:]:
            row[at] = odd
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass"), ".csv"


def shape(draws):
    """Rows and fields added and taken away."""
    rows = [line.split(",") for line in text_of(frame()).splitlines()]
    for _ in range(draws.randint(1, 3)):
        at = draws.randrange(len(rows))
        act = draws.choice(["short", "long", "gone", "empty", "header", "column", "names", "few"])
        if act == "short":
            rows[at] = rows[at][: draws.randrange(4)]
        elif act == "long":
            rows[at] = rows[at] + ["1"]
        elif act == "gone":
            del rows[at]
        elif act == "empty":
            rows.insert(at, [])
        elif act == "header":
            del rows[0]
        elif act == "column":
            rows = [row[:-1] for row in rows]
        elif act == "names":
            rows[0] = [draws.choice(["a", "a", "", "id", "1"]) for _ in rows[0]]
        else:
            rows = rows[: draws.choice([1, 2, 3])]
        if not rows:
            rows = [[]]
    return "\n".join(map(",".join, rows)).encode(), ".csv"


def spoilt(draws):
    """Bytes of a file changed: text, packed text, Parquet."""
    made, ending = frame(), draws.choice([".csv", ".csv.gz", ".parquet", ".parquet"])
    buffer = io.BytesIO()
    if ending == ".parquet":
        made.to_parquet(buffer)
    data = bytearray(buffer.getvalue() if ending == ".parquet" else text_of(made).encode())
    if ending == ".csv.gz":
        data = bytearray(gzip.compress(bytes(data), mtime=0))
    for _ in range(draws.choice([1, 1, 3])):
        act = draws.choice(["flip", "flip", "cut", "insert", "end"])
        at = draws.randrange(len(data))
        if act == "flip":
            data[at] ^= 1 << draws.randrange(8)
        elif act == "cut":
            del data[at : at + draws.randint(1, 30)]
        elif act == "insert":
            data[at:at] = draws.choice([b"\x00", b'"', b"\n", b"\r", b"\xff\xfe", b",", b";", b"\t", b"'"])
        else:
            del data[max(at, 1):]
        if not data:
            data += b"x"
    return bytes(data), ending


def same(draws):
    """Other ways to write the same table."""
    made = frame()
    act = draws.choice(["semicolon", "tab", "returns", "mark", "quotes", "gzip", "parquet", "spaces", "comma", "end",
                        "index"])
    text = text_of(made)
    if act == "semicolon":
        return made.to_csv(index=False, sep=";").encode(), ".csv"
    if act == "comma":
        return made.to_csv(index=False, sep=";", decimal=",").encode(), ".csv"
    if act == "tab":
        return made.to_csv(index=False, sep="\t").encode(), ".tsv"
    if act == "quotes":
        return made.to_csv(index=False, quoting=csv.QUOTE_ALL).encode(), ".csv"
    if act == "gzip":
        return gzip.compress(text.encode()), ".csv.gz"
    if act in ("parquet", "index"):
        buffer = io.BytesIO()
        made = made.set_index("height") if act == "index" else made
        made.to_parquet(buffer)
        return buffer.getvalue(), ".parquet"
    form = {"returns": text.replace("\n", "\r\n"), "mark": "\ufeff" + text, "spaces": text.replace(",", ", "),
            "end": text.rstrip("\n")}
    return form[act].encode(), ".csv"


def in_memory(draws):
    """A frame with a column of a type that few expect."""
    made, rows = frame(), 60
    odd = {
        "uint64": lambda: np.uint64(2**64 - 1) - np.arange(rows, dtype=np.uint64),
        "huge": lambda: [10**30 + i for i in range(rows)],
        "1e200": lambda: np.where(np.arange(rows) == 5, 1e200, made.height),
        "infinite": lambda: np.where(np.arange(rows) == 5, np.inf, made.height),
        "complex": lambda: made.height + 1j,
        "dates": lambda: pd.date_range("2020", periods=rows),
        "spans": lambda: pd.timedelta_range("1s", periods=rows),
        "periods": lambda: pd.period_range("2020", periods=rows, freq="D"),
        "lists": lambda: [[i] for i in range(rows)],
        "objects": lambda: [object() for _ in range(rows)],
        "mixed": lambda: [i if i % 2 else f"v{i}" for i in range(rows)],
        "nullable": lambda: pd.array([None if i % 7 == 0 else i % 5 for i in range(rows)], dtype="Int64"),
        "boolean": lambda: pd.array([None if i % 7 == 0 else i % 2 == 0 for i in range(rows)], dtype="boolean"),
        "categorical": lambda: pd.Categorical([f"c{i % 3}" for i in range(rows)]),
        "half": lambda: made.height.astype(np.float16),
        "bytes": lambda: [b"a", b"b"] * (rows // 2),
        "tiny": lambda: made.height * 1e-320,
        "large": lambda: made.height * 1e306,
        "decimal": lambda: [__import__("decimal").Decimal(i) / 7 for i in range(rows)],
        "intervals": lambda: pd.interval_range(0, periods=rows),
        "sparse": lambda: pd.arrays.SparseArray(np.where(np.arange(rows) % 3, 0.0, 1.0)),
        "none": lambda: [None] * rows}
    act = draws.choice([*odd, "names", "levels", "index", "twice", "rows", "row"])
    if act in odd:
        made[draws.choice(["height", "new"])] = odd[act]()
    elif act == "names":
        made.columns = [1, None, ("a", "b"), 2.5]
    elif act == "levels":
        made.columns = pd.MultiIndex.from_product([["a", "b"], [1, 2]])
    elif act == "index":
        made = made.set_index(draws.choice([["height"], ["town", "visits"]]))
    elif act == "twice":
        made.columns = ["a", "a", "b", "c"]
    else:
        made = made.iloc[: 0 if act == "rows" else 1]
    return made, ""


FILES = {"cells": cells, "shape": shape, "bytes": spoilt, "same": same, "in memory": in_memory}
WEIGHTS = (4, 2, 3, 2, 3)


class Tables:
    """Mutants of a table, and of a mixture fitted to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fitted, self.mutant = folder / "fitted", folder / "mixture"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = tables.fit(frame(), components=[2], family="diag", starts=1, out=self.fitted)
        self.labels = model.predict(frame())
        self.encoded = encode(reading.of(frame()), choose(reading.of(frame())))

    def try_one(self, seed: int) -> Outcome:
        """Make the mutant of that seed; read, choose, encode and label it, and fit now and then."""
        draws = random.Random(seed)
        if draws.random() < 0.25:
            return outcome("mixture folders", lambda: self._use_folder(draws))
        kind = draws.choices(list(FILES), WEIGHTS)[0]
        made, ending = FILES[kind](draws)
        if ending:
            path = self.folder / f"mutant{ending}"
            path.write_bytes(made)
            made = path
        return outcome(f"tables: {kind}", lambda: self._use(kind, made, draws))

    def _use(self, kind, made, draws):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = reading.of(made)
            columns = choose(table)
            x_ND = encode(table, columns)
            if kind == "same":
                self._same(x_ND, columns)
            elif str(made).endswith(".csv") and kind != "bytes":
                _as_written(made, table, columns, x_ND)
            if draws.random() < 0.3:
                numbers, family = draws.choice([([1, 2], "diag"), ([2], "auto")])
                model = tables.fit(table, components=numbers, family=family, starts=1)
                if not np.isfinite(model.estimator.weights_).all():
                    raise Change("the fit is not a number")
            labels = tables.load(self.fitted).predict(table, unknown="missing")
            if not np.isfinite(labels.to_numpy(float)).all():
                raise Change("a label is not a number")

    def _same(self, x_ND, columns):
        order = [["height", "width", "visits", "town"].index(column.name) for column in used(columns)]
        if sorted(order) != [0, 1, 2, 3] or not np.array_equal(x_ND, self.encoded[:, order], equal_nan=True):
            raise Change("the same table gives other numbers")

    def _use_folder(self, draws):
        shutil.rmtree(self.mutant, ignore_errors=True)
        shutil.copytree(self.fitted, self.mutant)
        path = self.mutant / draws.choice(["mixture.json", "model.safetensors"])
        data = bytearray(path.read_bytes())
        act = draws.choice(["flip", "flip", "cut", "figure", "text", "gone"])
        if act == "flip":
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
            path.write_bytes(data)
        elif act == "cut":
            path.write_bytes(data[: draws.randrange(len(data))])
        elif act == "figure":
            record = json.loads((self.mutant / "mixture.json").read_text())
            place, key = draws.choice(_places(record))
            place[key] = draws.choice(ODD)
            (self.mutant / "mixture.json").write_text(json.dumps(record, indent=2), errors="surrogatepass")
        elif act == "text":
            path.write_text(draws.choice(["{}", "[]", "null", "[" * 100_000, "NaN", ""]))
        else:
            path.unlink()
        labels = tables.load(self.mutant).predict(frame())
        if not labels.equals(self.labels):
            raise Change("the labels are others")


def _as_written(path, table, columns, x_ND):
    """Every number that is taken from a CSV file stands there: read by another reader, cell by cell."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    for place, column in enumerate(used(columns)):
        if column.kind == CATEGORY or column.name not in rows[0]:
            continue
        at = rows[0].index(column.name)
        found = decode(column, x_ND[:, place])
        cells_there = [row[at] if at < len(row) else "" for row in rows[1:]]
        if len(cells_there) != len(found):
            raise Change(f"{len(cells_there)} rows became {len(found)}")
        for value, cell in zip(found, cells_there):
            expected = _number(cell)
            if expected is None and "decimal sign" in column.note:  # which is told, since other columns have a point
                expected = _number(cell.replace(",", "."))
            if expected is not None and not math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9 * column.scale):
                raise Change(f"{column.name}: {cell!r} became {value!r}")
            if expected is None and not math.isnan(value) and cell.strip().lower() not in ("true", "false"):
                raise Change(f"{column.name}: {cell!r} became {value!r}")


def _number(cell):
    try:
        found = float(cell)
    except ValueError:
        return None
    return None if math.isnan(found) else found
