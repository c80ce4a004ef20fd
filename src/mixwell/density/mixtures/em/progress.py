"""Messages of a fit that goes on."""

from __future__ import annotations

from time import perf_counter

from mixwell.density.mixtures.em.loop import Run


class Progress:
    """Progress messages, worded as scikit-learn's: none at `verbose` 0, with times and gains above 1."""

    def __init__(self, verbose: int, interval: int, number: int) -> None:
        self.verbose, self.interval = int(verbose), interval
        self.began = self.last = perf_counter()
        if self.verbose:
            print(f"Initialization {number}")

    def iteration(self, number: int, gain: float) -> None:
        """After every iteration; one in `interval` is shown."""
        if not self.verbose or number % self.interval:
            return
        now = perf_counter()
        lapse = now - self.last
        self.last = now
        details = ""
        if self.verbose > 1:
            details = f"\t time lapse {lapse:.5f}s\t ll change {gain:.5f}"
        print(f"  Iteration {number}{details}")

    def end(self, run: Run) -> None:
        """After the last iteration."""
        if not self.verbose:
            return
        outcome = "converged" if run.converged else "did not converge"
        lapse = perf_counter() - self.began
        details = ""
        if self.verbose > 1:
            details = f" time lapse {lapse:.5f}s\t lower bound {run.lower_bound:.5f}."
        print(f"Initialization {outcome}.{details}")
