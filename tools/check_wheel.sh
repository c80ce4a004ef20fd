#!/usr/bin/env bash
# check_wheel.sh WHEEL [pip options]: installs the wheel into a fresh environment and tries what a user would first.
# Dependencies come from pip's index, or with `--no-deps` from the folder named in DEPENDENCIES.
set -euo pipefail
wheel=$(realpath "$1")
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/env"
"$scratch/env/bin/python" -m pip install --quiet --disable-pip-version-check "$@" "$wheel"
cd "$scratch" # no checkout in reach
export XDG_CACHE_HOME="$scratch/cache" PYTHONPATH=${DEPENDENCIES:-}
python="$scratch/env/bin/python"
mixwell="$scratch/env/bin/mixwell"

"$python" - <<'PYTHON'
import sys
from importlib.resources import files
from pathlib import Path

import mixwell

assert Path(mixwell.__file__).is_relative_to(sys.prefix), f"{mixwell.__file__} is not the wheel's"
root = files("mixwell")
for name in ("py.typed", "core/meanings.txt", "cli/skeletons/card.txt", "run/recipes/default.yaml", "report/templates/report.html"):
    assert root.joinpath(name).is_file(), f"the wheel lacks {name}"
PYTHON
"$mixwell" version
count=$("$mixwell" list | wc -l)
((count > 100)) || { echo "mixwell list names $count methods"; exit 1; }
"$mixwell" show experts.routers.top_k >/dev/null
"$mixwell" run switch --dry-run >/dev/null
mkdir -p checkout/src/mixwell
"$mixwell" new experts.routers.mine --root checkout >/dev/null
"$python" -m py_compile checkout/src/mixwell/experts/routers/mine.py
echo "the wheel works: $count methods"
