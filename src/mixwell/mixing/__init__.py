"""What expert layers and sequence mixers share: the result of a mixer, and routers and balance rules built by name."""

from mixwell.mixing.balance import BalanceRule, apply_balance, build_balance, default_balance
from mixwell.mixing.build import build_dropout, build_overflow, build_router
from mixwell.mixing.mixed import Mixed, SequenceMixed

__all__ = ["BalanceRule", "Mixed", "SequenceMixed", "apply_balance", "build_balance", "build_dropout",
           "build_overflow", "build_router", "default_balance"]
