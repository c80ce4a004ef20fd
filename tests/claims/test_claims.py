"""Claims: found, run one by one, kept as evidence that a later run changes only where it was run."""

import json

import pytest

from mixwell import claims
from mixwell.claims import evidence
from mixwell.core.errors import MixwellError
from mixwell.core.evidence import Evidence, weigh

HELD = weigh("A beats B.", "bits per byte", [1.0, 1.1, 1.2], [1.5, 1.62, 1.69]).to_dict() | {"seconds": 3.0}
FAILED = weigh("A | B\nbeats C.", "error", [1.0, 2.0, 1.2], [1.1, 1.0, 1.3], note="noise").to_dict() | {"seconds": 70.0}
ABSENT = Evidence(claim="Needs a cluster.", outcome="not testable here", note="1000 GPUs").to_dict() | {"seconds": 0.0}


def test_claims_are_found_by_room_and_name():
    every = claims.claims()
    names = [c.name for c in every]
    assert names == sorted(names) and "experts.hash" in names and not any("._" in n for n in names)
    assert [c.name for c in claims.claims("experts.hash")] == ["experts.hash"]
    assert {c.name for c in claims.claims("experts")} <= set(names)
    with pytest.raises(MixwellError, match=r"Did you mean 'experts.hash'\?"):
        claims.claims("experts.hsh")


def test_a_broken_claim_is_handed_over_and_the_rest_goes_on():
    class Fake:
        def __init__(self, name, result):
            self.name, self.result = name, result

        def run(self, bench):
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

    broken = []
    good = weigh("c", "m", [1, 1, 1], [2, 2, 2])
    chosen = (Fake("r.a", ValueError("x")), Fake("r.b", good))
    found = list(claims.run(chosen, None, lambda one, error: broken.append((one.name, str(error)))))
    assert broken == [("r.a", "x")] and [one.name for one, _ in found] == ["r.b"]
    assert found[0][1]["outcome"] == "held" and found[0][1]["seconds"] >= 0


def test_a_claim_replaces_its_own_entry_alone(tmp_path):
    path = evidence.add(tmp_path, "experts.b", HELD, threads=2)
    evidence.add(tmp_path, "experts.a", FAILED, threads=1)
    evidence.add(tmp_path, "density.a", ABSENT, threads=1)
    before = json.loads(path.read_text())["experts.b"]
    evidence.add(tmp_path, "experts.a", HELD | {"claim": "New."}, threads=1)
    found = json.loads(path.read_text())
    assert path.name == "experts.json" and list(found) == ["experts.a", "experts.b"]
    assert found["experts.b"] == before and found["experts.a"]["claim"] == "New."
    assert before["machine"]["threads"] == 2 and before["machine"]["cpu"] and before["versions"]["torch"]
    assert before["seconds"] == 3.0 and before["values"]["method"] == [1.0, 1.1, 1.2] and len(before["date"]) == 10
    assert list(evidence.read(tmp_path, "density")) == ["density.a"] and evidence.read(tmp_path, "none") == {}


def test_the_table_is_made_from_the_file(tmp_path):
    for name, found in (("experts.b", HELD), ("experts.a", FAILED), ("experts.c", ABSENT)):
        evidence.add(tmp_path, name, found, threads=1)
    text = (tmp_path / "experts.md").read_text().replace("\u202f", " ")
    assert "3 claims: 1 held, 1 did not hold, 1 not testable here." in text and "1 thread, torch" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0] == (r"| `experts.a` | A \| B beats C. | **did not hold** | −0.267 ± 0.64 | error | 3 | 1 min 10 s "
                       "| noise |")
    assert rows[1].startswith("| `experts.b` | A beats B. | held | +0.503 ± 0.015 | bits per byte | 3 | 3.0 s |")
    assert rows[2] == "| `experts.c` | Needs a cluster. | not testable here |  |  |  | 0 s | 1000 GPUs |"
    assert evidence.page("experts", evidence.read(tmp_path, "experts")) == (tmp_path / "experts.md").read_text()


def test_a_file_that_holds_no_evidence_is_left_alone(tmp_path):
    (tmp_path / "experts.json").write_text('{"experts.a": {"outcome": "maybe"}}')
    with pytest.raises(MixwellError, match="holds no evidence"):
        evidence.add(tmp_path, "experts.a", HELD, threads=1)
    assert "maybe" in (tmp_path / "experts.json").read_text() and not (tmp_path / "experts.md").exists()


def test_an_entry_may_lack_its_machine():
    text = evidence.page("r", {"r.a": {k: v for k, v in HELD.items() if k != "seconds"}})
    assert "1 claim: 1 held." in text and "Measured on" not in text and "| – |" in text
