"""Gaussian EM beside scikit-learn's, as ratios from one run.

`python benchmarks/em.py` prints the ratios of time (scikit-learn over mixwell) for full, diagonal, tied and spherical
covariances in float32 and float64 from the same start, the share of the machine's matrix-product rate, the cost for
growing numbers of rows, the cost of missing values, and, with `--stream ROWS`, a pass over a file on disk in bounded
memory. pomegranate stands beside them where it is installed. `--save` keeps the results as JSON. Times are
wall-clock seconds, min and median over `--repeat` interleaved rounds, and processor seconds, which a busy neighbour
changes least; `--threads 1` makes those of both libraries comparable (idle threads of a matrix product spin). The share
of the matrix-product rate counts processor seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
import torch
from _parts import save
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

import mixwell
from mixwell.density import GaussianMixture

try:
    import pomegranate
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel
except ImportError:
    pomegranate = None

TARGETS = {("full", "float32"): 12.0, ("full", "float64"): 5.0, ("diag", "float32"): 5.0}


def data(rows: int, columns: int, components: int, dtype: str, condition: float = 30.0) -> np.ndarray:
    """Overlapping groups whose covariances, in random directions, have variances between 1 / condition and 1."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(components, columns))
    turns = np.linalg.qr(rng.normal(size=(components, columns, columns)))[0]
    spreads = condition ** (-0.5 * rng.random(size=(components, columns)))
    x = np.empty((rows, columns), dtype)
    for part in np.array_split(np.arange(rows), max(1, rows // 50_000)):
        labels = rng.integers(0, components, len(part))
        noise = rng.normal(size=(len(part), columns))
        for k in range(components):
            mine = labels == k
            x[part[mine]] = centres[k] + (noise[mine] * spreads[k]) @ turns[k]
    return x


def start(x: np.ndarray, components: int, kind: str) -> dict:
    """The same explicit start for both libraries."""
    variance = x.var(0)
    precision = {"full": np.tile(np.diag(1 / variance), (components, 1, 1)), "tied": np.diag(1 / variance),
                 "diag": np.tile(1 / variance, (components, 1)),
                 "spherical": np.full(components, 1 / variance.mean())}[kind]
    chosen = np.random.default_rng(1).choice(len(x), components, replace=False)
    return {"covariance_type": kind, "weights_init": np.full(components, 1 / components, x.dtype),
            "means_init": x[chosen], "precisions_init": precision.astype(x.dtype), "tol": 0.0}


class Pomegranate:
    """pomegranate's mixture from the same start, with `fit` and `score` as the other two have them."""

    def __init__(self, options: dict) -> None:
        kind, iterations = options["covariance_type"], options["max_iter"]
        covariances = 1 / options["precisions_init"] if kind == "diag" else np.linalg.inv(options["precisions_init"])
        parts = [Normal(means=torch.from_numpy(m.copy()), covs=torch.from_numpy(c.astype(m.dtype)),
                        covariance_type=kind) for m, c in zip(options["means_init"], covariances)]
        self.model = GeneralMixtureModel(parts, priors=torch.from_numpy(options["weights_init"].copy()),
                                         max_iter=iterations, tol=-np.inf)

    def fit(self, x: np.ndarray) -> None:
        self.model.fit(torch.from_numpy(x))

    def score(self, x: np.ndarray) -> float:
        return float(self.model.log_probability(torch.from_numpy(x)).double().mean())


def timed(model: object, x: np.ndarray) -> tuple[float, float]:
    """Wall-clock and processor seconds of one fit."""
    began, busy = time.perf_counter(), time.process_time()
    model.fit(x)  # type: ignore[attr-defined]
    return time.perf_counter() - began, time.process_time() - busy


def summary(times: list[tuple[float, float]]) -> dict:
    """Least and middle wall-clock seconds, least processor seconds."""
    wall = [t[0] for t in times]
    return {"min": min(wall), "median": statistics.median(wall), "cpu_min": min(t[1] for t in times)}


def product_rate(x: np.ndarray) -> float:
    """Floating-point operations a second of the best large matrix product here, for the type of x."""
    a = torch.from_numpy(np.resize(x, (2048, 2048)).copy())
    ways = [lambda: a @ a, lambda: a.numpy() @ a.numpy()]
    if a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], ""))
    best = float("inf")
    for way in ways:
        for _ in range(6):
            began = time.perf_counter()
            way()
            best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def compare(x: np.ndarray, components: int, kind: str, iterations: int, repeat: int, threads: int) -> dict:
    """Interleaved fits of both libraries."""
    options = {**start(x, components, kind), "max_iter": iterations}
    GaussianMixture(components, **{**options, "max_iter": 1}).fit(x)
    ours, theirs, other, failed = [], [], [], ""
    for _ in range(repeat):
        mine, reference = GaussianMixture(components, **options), Reference(components, **options)
        ours.append(timed(mine, x))
        theirs.append(timed(reference, x))
        ours.append(timed(mine, x))
        if pomegranate and kind in ("full", "diag") and not (other or failed):  # slow, hence once
            try:
                third = Pomegranate(options)
                other.append(timed(third, x))
            except torch.linalg.LinAlgError as error:
                failed = str(error).partition("(")[0].strip()
    mine_s, theirs_s, rate = summary(ours), summary(theirs), product_rate(x)
    beside: dict = {"pomegranate_failed": failed} if failed else {}
    if other and not failed:
        beside = {"pomegranate_s": summary(other),
                  "pomegranate_log_likelihood_difference": abs(float(mine.score(x)) - third.score(x))}
    features = {"full": (x.shape[1] + 1) * (x.shape[1] + 2) // 2, "diag": 2 * x.shape[1] + 1,
                "tied": x.shape[1] + 1, "spherical": x.shape[1] + 2}[kind]
    operations = 4 * len(x) * features * components * iterations
    return {"covariance_type": kind, "dtype": str(x.dtype), "rows": len(x), "columns": x.shape[1],
            "components": components, "iterations": iterations,
            "mixwell_s": mine_s, "sklearn_s": theirs_s, **beside, "target": TARGETS.get((kind, str(x.dtype))),
            **{f"ratio_of_{name}": theirs_s[name] / mine_s[name] for name in mine_s},
            "log_likelihood_difference": abs(float(mine.score(x)) - float(reference.score(x))),
            "share_of_product_rate": operations / mine_s["cpu_min"] * threads / rate}


def linearity(x: np.ndarray, components: int) -> list[dict]:
    """Processor seconds for growing parts of the same rows."""
    found = []
    for rows in (len(x) // 8, len(x) // 4, len(x) // 2, len(x)):
        options = {**start(x[:rows], components, "full"), "max_iter": 10}
        seconds = min(timed(GaussianMixture(components, **options), x[:rows])[1] for _ in range(4))
        found.append({"rows": rows, "cpu_seconds": seconds, "ns_per_row_and_iteration": seconds / rows / 10 * 1e9})
    return found


def missing(rows: int, components: int) -> dict:
    """Seconds a step where a tenth of the values is missing, beside the same rows without holes; 8 columns."""
    x = data(rows, 8, components, "float64")
    holes = x.copy()
    holes[np.random.default_rng(2).random(x.shape) < 0.1] = np.nan
    options = {**start(x, components, "full"), "max_iter": 10}
    seconds = {name: statistics.median(timed(GaussianMixture(components, **options), rows)[0] / 10 for _ in range(3))
               for name, rows in (("whole", x), ("with_holes", holes))}
    return {"rows": rows, "columns": 8, "components": components, "patterns": len(np.unique(np.isnan(holes), axis=0)),
            **{f"{name}_s_per_step": value for name, value in seconds.items()}}


STREAM = """
import resource, sys, time, warnings
import numpy as np, torch
torch.set_num_threads(int(sys.argv[2]))
from mixwell.density import GaussianMixture
warnings.simplefilter("ignore")
x = np.load(sys.argv[1], mmap_mode="r")
K, passes = 32, 3
head = np.array(x[:50000])
options = dict(weights_init=np.full(K, 1 / K), means_init=head[:K].astype(float), tol=0.0,
               precisions_init=np.tile(np.diag(1 / head.var(0)), (K, 1, 1)))
began = time.perf_counter()
GaussianMixture(K, max_iter=passes, **options).fit(sys.argv[1])
seconds = time.perf_counter() - began
print(seconds / passes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def stream(rows: int, threads: int) -> dict:
    """A fit from disk in a process of its own, with its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        mapped = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 16))
        block = data(200_000, 16, 32, "float32")
        for begin in range(0, rows, len(block)):
            mapped[begin : begin + len(block)] = block[: rows - begin]
        mapped.flush()
        del mapped
        done = subprocess.run([sys.executable, "-c", STREAM, str(path), str(threads)], capture_output=True, text=True,
                              check=True)
    seconds, peak = map(float, done.stdout.split())
    return {"rows": rows, "columns": 16, "dtype": "float32", "components": 32, "seconds_per_pass": seconds,
            "rows_per_second": rows / seconds, "peak_rss_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--components", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kinds", default="full,diag,tied,spherical")
    parser.add_argument("--stream", type=int, default=0, metavar="ROWS")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    parser.set_defaults(clock="wall", pages="default")  # what `save` writes down of how it was timed
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    report: dict = {"versions": {"mixwell": mixwell.__version__, "scikit-learn": sklearn.__version__,
                                 "torch": torch.__version__, "numpy": np.__version__,
                                 **({"pomegranate": pomegranate.__version__} if pomegranate else {})}, "fits": []}
    with threadpool_limits(options.threads):
        for dtype in ("float32", "float64"):
            x = data(options.rows, 16, options.components, dtype)
            for kind in options.kinds.split(","):
                found = compare(x, options.components, kind, options.iterations, options.repeat, options.threads)
                report["fits"].append(found)
                print(f"{kind:9s} {dtype}: mixwell {found['mixwell_s']['min']:.2f} s, scikit-learn "
                      f"{found['sklearn_s']['min']:.2f} s: {found['ratio_of_min']:.1f} times (min), "
                      f"{found['ratio_of_median']:.1f} (median), {found['ratio_of_cpu_min']:.1f} (processor time); "
                      f"target {found['target']}; log-likelihoods differ by "
                      f"{found['log_likelihood_difference']:.1e}; {100 * found['share_of_product_rate']:.0f} % of the "
                      "matrix-product rate", flush=True)
                if "pomegranate_failed" in found:
                    print(f"{'':17s} pomegranate failed: {found['pomegranate_failed']}", flush=True)
                if "pomegranate_s" in found:
                    print(f"{'':17s} pomegranate {found['pomegranate_s']['median']:.2f} s: "
                          f"{found['pomegranate_s']['median'] / found['mixwell_s']['median']:.1f} times (median); "
                          f"log-likelihoods differ by {found['pomegranate_log_likelihood_difference']:.1e}", flush=True)
        thin = data(options.rows, 16, options.components, "float32", condition=1e5)
        found = compare(thin, options.components, "full", options.iterations, options.repeat, options.threads)
        report["thin"] = found
        print(f"groups thinner than float32 can expand (variances from 1e-5 to 1): {found['ratio_of_min']:.1f} times "
              f"(min), {found['ratio_of_cpu_min']:.1f} (processor time); log-likelihoods differ by "
              f"{found['log_likelihood_difference']:.1e}", flush=True)
        report["linearity"] = linearity(data(options.rows, 16, options.components, "float32"), options.components)
        report["missing"] = missing(options.rows // 10, 8)
    print("{rows} x {columns}, {components} components, a tenth missing in {patterns} patterns: "
          "{with_holes_s_per_step:.3f} s a step, {whole_s_per_step:.3f} s without holes".format(**report["missing"]))
    for line in report["linearity"]:
        print(f"{line['rows']} rows: {line['cpu_seconds']:.3f} s of processor time, "
              f"{line['ns_per_row_and_iteration']:.0f} ns a row and step")
    if options.stream:
        report["stream"] = stream(options.stream, options.threads)
        print(f"{options.stream} rows from disk: {report['stream']['seconds_per_pass']:.1f} s a pass, "
              f"peak {report['stream']['peak_rss_gib']:.2f} GiB")
    save("em", options, report)


if __name__ == "__main__":
    main()
