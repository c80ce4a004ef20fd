"""Installs mixwell with the lowest, or the newest, versions that pyproject.toml allows, and runs the fast tests there.

    python tools/check_bounds.py lowest            # every direct dependency at its lower bound
    python tools/check_bounds.py newest
    python tools/check_bounds.py lowest --torch 2.13.0 tests/tables tests/core

Needs `uv`, which resolves both ends (`pip install uv`); where packages come from is uv's own configuration. torch is by
far the largest download, so `--torch` names a version to take in the place of the bound.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
FAST = ["-n", "0", "-q", "-m", "not slow"]


def main() -> int:
    """Exit code of pytest, or of the installation where that fails."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("end", choices=RESOLUTIONS)
    words.add_argument("tests", nargs="*", default=["tests"], help="which tests; default: all")
    words.add_argument("--torch", help="version of torch in the place of what the bounds give")
    words.add_argument("--uv", default="uv", help="the uv program; default: uv")
    asked = words.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        python = installed(Path(scratch), asked.uv, RESOLUTIONS[asked.end], asked.torch)
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run([python, "-m", "pytest", *FAST, *asked.tests], cwd=ROOT, env=environment, check=False)
        return done.returncode


def installed(scratch: Path, uv: str, resolution: str, torch: str | None) -> str:
    """The Python of a fresh environment that holds this checkout and its dependencies at that end of their bounds."""
    place = scratch / "env"
    python = str(place / "bin" / "python")
    _call(uv, "venv", "--quiet", "--python", "3.11", str(place))
    overrides = []
    if torch is not None:
        file = scratch / "override.txt"
        file.write_text(f"torch=={torch}\n")
        overrides = ["--override", str(file)]
    wanted = f"{ROOT}[dev]"
    _call(uv, "pip", "install", "--quiet", "--python", python, "--resolution", resolution, *overrides, "-e", wanted)
    _call(uv, "pip", "list", "--python", python)
    return python


def _call(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
