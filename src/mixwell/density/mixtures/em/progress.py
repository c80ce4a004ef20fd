"""Messages of a fit that goes on."""

from __future__ import annotations

from time import perf_counter

from mixwell.density.mixtures.em.loop import Run


class Teller:
    """Progress messages, worded as scikit-learn's."""

    def __init__(self, verbose: int, interval: int, number: int) -> None:
        self.verbose, self.interval = int(verbose), interval
        self.began = self.last = perf_counter()
        if self.verbose:
            print(f"Initialization {number}")

    def iteration(self, number: int, gain: float, runs: list[Run]) -> None:
        if self.verbose and number % self.interval == 0:
            now = perf_counter()
            more = f"\t time lapse {now - self.last:.5f}s\t ll change {gain:.5f}" if self.verbose > 1 else ""
            self.last = now
            print(f"  Iteration {number}{more}")

    def end(self, run: Run) -> None:
        if self.verbose == 1:
            print(f"Initialization {'converged' if run.converged else 'did not converge'}.")
        elif self.verbose > 1:
            print(f"Initialization {'converged' if run.converged else 'did not converge'}. "
                  f"time lapse {perf_counter() - self.began:.5f}s\t lower bound {run.lower_bound:.5f}.")
