"""What expert layers and sequence mixers share: the result of a mixer, the contract of routers, the choice of experts,
and routers and balance rules built by name."""

from mixwell.mixing.balance import BalanceRule, apply_balance, build_balance, default_balance
from mixwell.mixing.build import build_dropout, build_overflow, build_router
from mixwell.mixing.choice import (
    check_choice,
    check_k,
    empty,
    normalised,
    renormalises,
    select,
    softmax_top_k,
    to_slots,
)
from mixwell.mixing.mixed import Mixed, SequenceMixed
from mixwell.mixing.parameters import (
    check_above,
    check_below,
    check_least,
    check_most,
    check_not_negative,
    check_one_of,
    check_rate,
    normal_parameter,
)
from mixwell.mixing.router import Router
from mixwell.mixing.structured import Structured, build_structured

__all__ = ["BalanceRule", "Mixed", "Router", "SequenceMixed", "Structured", "apply_balance", "build_balance",
           "build_dropout", "build_overflow", "build_router", "build_structured", "check_above", "check_below",
           "check_choice", "check_k", "check_least", "check_most", "check_not_negative", "check_one_of", "check_rate",
           "default_balance", "empty", "normal_parameter", "normalised", "renormalises", "select", "softmax_top_k",
           "to_slots"]
