"""PEFT's adapter folders, both ways: `read` puts one beside a model, `write` makes one of an adapter."""

from mixwell.lm.peft.experts import PACKINGS
from mixwell.lm.peft.reading import read
from mixwell.lm.peft.weighing import settled_packing, weigh_packings
from mixwell.lm.peft.writing import write

__all__ = ["PACKINGS", "read", "settled_packing", "weigh_packings", "write"]
