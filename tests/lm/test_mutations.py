"""Two hundred damaged model folders: none ends in a traceback or a hang, none gives other numbers in silence."""

import collections

from tests.mutations import FAULTS, OUTCOMES
from tests.mutations.models import Models


def test_damage_is_refused_told_or_harmless(tmp_path):
    mutants = Models(tmp_path)
    try:
        found = [mutants.try_one(seed) for seed in range(204)]
    finally:
        mutants.close()
    bad = [one for one in found if one.outcome in FAULTS]
    assert not bad, bad
    counts = collections.Counter((one.kind, one.outcome) for one in found)
    assert {"refused", "same", "told"} <= {outcome for _, outcome in counts} <= set(OUTCOMES)
    assert all(counts[f"models: {kind}", "refused"] for kind in ("header_bytes", "data_no_number"))
