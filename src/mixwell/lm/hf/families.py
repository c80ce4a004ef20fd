"""All decoders: the table that everything else reads. The first one that can, serves a model that came from none."""

from __future__ import annotations

from mixwell.lm.hf.dense import DENSE
from mixwell.lm.hf.forms import Family
from mixwell.lm.hf.mixtures import MIXTURES

FAMILIES: dict[str, Family] = {**DENSE, **MIXTURES}
