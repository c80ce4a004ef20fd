"""Two hundred damaged model folders: none ends in a traceback or a hang, none gives other numbers in silence."""

from tests.lm import mutations


def test_damage_is_refused_told_or_harmless(tmp_path):
    counts, faults = mutations.run(204, seed=7, root=tmp_path)
    assert not faults, "\n".join(faults)
    assert sum(counts.values()) == 204
    found = {outcome for _, outcome in counts}
    assert {"refused", "same", "told"} <= found <= set(mutations.OUTCOMES)
    assert all(counts[damage.__name__, "refused"] for damage in (mutations.header_bytes, mutations.data_no_number))
