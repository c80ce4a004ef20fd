"""Blocks of templates: being ready to grow costs no quality.

Paper: MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters.
Tried: the bench's language model with a block of width 128 made of two templates, against a plain dense block of that
width. What growing then gives is tried on convert.mixture_growth. Against it: bits per byte more than 1 % higher.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import RATES, block, quality

WIDTH = 128
GRID = {"lr": RATES}
MADE = {"channel_mixer": {"method": "experts.layers.templates", "hidden_dim": WIDTH}}
CLAIM = Claim(
    "A dense block made of two templates is within 1 % of a plain one.", BITS, at_least=-0.01, relative=True,
    sides={"method": Side(quality, MADE, GRID),
           "baseline": Side(quality, {"mixer": block(WIDTH)}, GRID)})
