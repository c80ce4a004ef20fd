"""The answer of a run in plain words: who won at equal tokens, FLOPs and seconds, and what cannot be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mixwell.lab import units
from mixwell.lab.run_folder import Run, Stage
from mixwell.lab.verdict import BUDGETS, Curve, Verdict, judge

SHARED_KINDS = ("data", "tokenizer", "tokens")  # branches that differ in one of these measure different things


def headline(run: Run) -> dict[str, Any]:
    """The sentence, a card for each budget, and notes on how it was judged; empty for a run without training."""
    ends = run.branch_ends()
    if not ends:
        return {}
    verdicts = verdicts_of(run, ends)
    return {"sentence": sentence(verdicts), "cards": [_card(v) for v in verdicts] if len(ends) > 1 else [],
            "held_out": held_out(ends), "notes": _notes(run, ends, verdicts)}


def verdicts_of(run: Run, ends: Sequence[Stage]) -> list[Verdict]:
    """One verdict a budget; at equal tokens held-out text may overrule a winner that the training loss names."""
    if obstacle := _different_yardsticks(run, ends):
        return [Verdict(budget=budget, obstacle=obstacle) for budget in BUDGETS]
    curves = [branch_curve(run, end, common(run, ends)) for end in ends]
    return [_checked(judge(curves, budget), ends) for budget in BUDGETS]


def common(run: Run, ends: Sequence[Stage]) -> list[Stage]:
    """The stages that every branch builds on, oldest first."""
    shared = set.intersection(*({a.id for a in run.ancestors(end)} for end in ends))
    return [s for s in run.stages if s.id in shared]


def branch_curve(run: Run, end: Stage, shared: Sequence[Stage]) -> Curve:
    """The loss of a branch from where it parted, its training stages one after the other."""
    own = [s for s in run.ancestors(end) if s.trains and s.id not in {c.id for c in shared}]
    lines = [(line, {b: sum(_last(before, b) for before in own[:i]) for b in BUDGETS})
             for i, stage in enumerate(own) for line in stage.metrics if units.is_number(line.get("loss_nats"))]
    return Curve(name=end.id, loss=[line["loss_nats"] for line, _ in lines], lr=[line.get("lr") for line, _ in lines],
                 spent={b: [line.get(b, float("nan")) + offset[b] for line, offset in lines] for b in BUDGETS})


def sentence(verdicts: Sequence[Verdict]) -> str:
    """`moe-trained won at equal tokens; no clear difference at equal FLOPs and at equal seconds.`"""
    if all(v.obstacle for v in verdicts) and len({v.obstacle for v in verdicts}) == 1:
        return f"There is no winner to name: {verdicts[0].obstacle}."
    said: dict[str, list[str]] = {}
    for v in verdicts:
        outcome = "no comparison was possible" if v.obstacle else f"{v.winner} won" if v.winner else "no clear difference"
        said.setdefault(outcome, []).append(f"at equal {'FLOPs' if v.budget == 'flops' else v.budget}")
    text = "; ".join(f"{outcome} {_and(places)}" for outcome, places in said.items())
    begins_with_name = verdicts[0].winner and not verdicts[0].obstacle
    return f"{text if begins_with_name else text[0].upper() + text[1:]}."


def held_out(ends: Sequence[Stage]) -> str:
    """The branches' final models on held-out text, and whether they had the same number of tokens."""
    scores = {e.id: e.evaluation.get("mean") for e in ends}
    measured = {name: float(v) for name, v in scores.items() if v is not None and units.is_number(v)}
    if len(measured) < 2:
        return ""
    first, second = sorted(measured, key=measured.__getitem__)[:2]
    a, b = (next(e.evaluation.get("bits_per_byte") or {} for e in ends if e.id == name) for name in (first, second))
    pairs = [(a[d], b[d]) for d in a if d in b]
    lower = sum(x < y for x, y in pairs)
    scope = "after the same number of tokens" if _same_tokens(ends) else "though not after the same number of tokens"
    listed = ", ".join(f"{name} {units.fixed(measured[name], 3)}" for name in sorted(measured, key=measured.__getitem__))
    domains = f", lower in {lower} of {len(pairs)} domain{'s' if len(pairs) > 1 else ''}" if pairs else ""
    return (f"Held-out text, final models, {scope}: {listed} bits per byte; {first} is "
            f"{units.percent(1 - measured[first] / measured[second], 2)} lower than {second}{domains}.")


def _checked(verdict: Verdict, ends: Sequence[Stage]) -> Verdict:
    """Withdraw a winner at equal tokens whom held-out text, measured after those same tokens, contradicts."""
    scores = {e.id: e.evaluation.get("mean") for e in ends}
    if (verdict.budget != "tokens" or not verdict.winner or not _same_tokens(ends)
            or not all(units.is_number(v) for v in scores.values())):
        return verdict
    best = min(scores, key=lambda name: scores[name] or 0.0)
    if best == verdict.winner:
        return verdict
    return replace(verdict, winner="", caveats=(
        *verdict.caveats, f"training loss favours {verdict.winner}, held-out text {best}: neither is called the winner"))


def _same_tokens(ends: Sequence[Stage]) -> bool:
    spent = [_last(e, "tokens") for e in ends]
    return min(spent) > 0 and max(spent) <= 1.01 * min(spent)


def _last(stage: Stage, budget: str) -> float:
    """What a training stage spent in all; not a number where it does not say."""
    found = [stage.result.get(budget), *(line.get(budget) for line in stage.metrics[-1:])]
    return next((float(v) for v in found if v is not None and units.is_number(v)), float("nan"))


def _different_yardsticks(run: Run, ends: Sequence[Stage]) -> str:
    for kind in SHARED_KINDS:
        used = {frozenset(a.id for a in run.ancestors(end) if a.kind == kind) for end in ends}
        if len(used) > 1:
            return f"the branches use different {kind} stages, so their losses are not on one scale"
    return ""


def _card(verdict: Verdict) -> dict[str, Any]:
    name = "FLOPs" if verdict.budget == "flops" else verdict.budget
    if verdict.obstacle:
        return {"budget": name, "amount": "", "outcome": "Not comparable", "won": False, "rows": [],
                "text": f"{verdict.obstacle[0].upper()}{verdict.obstacle[1:]}."}
    gap = f"Gap {units.number(verdict.gap, 2)} nats per token ({units.percent(verdict.gap / verdict.standings[1][1], 2)})"
    weight = "over" if verdict.winner or verdict.gap > verdict.noise else "within"
    text = f"{gap}, {weight} the noise of ±{units.number(verdict.noise, 2)}."
    return {"budget": name, "amount": verdict.amount, "won": bool(verdict.winner),
            "outcome": f"{verdict.winner} won" if verdict.winner else "No clear difference",
            "rows": [(n, units.fixed(loss, 3)) for n, loss in verdict.standings],
            "text": " ".join([text, *(f"{c[0].upper()}{c[1:]}." for c in verdict.caveats)])}


def _notes(run: Run, ends: Sequence[Stage], verdicts: Sequence[Verdict]) -> list[str]:
    notes = []
    if any(v.standings for v in verdicts):
        shared = [s for s in common(run, ends) if s.trains or s.kind in ("build", "load")]
        start = f"from {shared[-1].id}, which all branches share" if shared else "from the start of training"
        notes.append(f"Losses are training losses in nats per token, read off a line fitted to each curve at the largest "
                     f"budget that every branch reached; budgets count {start}, training only. Noise is two standard "
                     "errors of the gap.")
        others = [s.id for e in ends for s in run.ancestors(e) if s.kind == "convert" and s not in common(run, ends)]
        if others:
            notes.append(f"Seconds leave out the conversion ({', '.join(dict.fromkeys(others))}).")
    notes.append("One run with one seed: another seed may turn a small gap round.")
    return notes


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
