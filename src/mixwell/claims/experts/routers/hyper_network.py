"""HyperRouter: router weights that a fixed random network writes from a trained embedding beat a trained linear router.

Paper: HyperRouter: Towards Efficient Training and Inference of Sparse Mixture of Experts.
Tried: the bench's language model, top-2 of eight experts with the same balance losses; against the linear router.
Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.language import BALANCED, quality

ROUTERS = {"method": {"method": "hyper_network", "k": 2}, "baseline": {"method": "top_k", "k": 2}}

CLAIM = Claim("A hyper-network router beats a linear one.", BITS,
              sides={name: Side(quality, {"mixer": {"router": router}}, BALANCED) for name, router in ROUTERS.items()})
