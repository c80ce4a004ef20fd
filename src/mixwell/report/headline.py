"""The answer of a run in plain words: who won at equal tokens, FLOPs and seconds, and what cannot be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mixwell.core import units
from mixwell.report.run_folder import Run, Stage, figure
from mixwell.report.verdict import BUDGETS, NAMES, Curve, Verdict, judge

SHARED_KINDS = ("data", "tokenizer", "tokens")  # branches that differ in one of these measure different things


def headline(run: Run) -> dict[str, Any]:
    """The sentence, a card for each budget, and notes on how it was judged; empty for a run without training."""
    ends = run.branch_ends()
    if not ends:
        return {}
    verdicts = verdicts_of(run, ends)
    return {"sentence": sentence(verdicts), "cards": [_card(v) for v in verdicts] if len(ends) > 1 else [],
            "held_out": held_out(run, ends), "notes": _notes(run, ends, verdicts)}


def verdicts_of(run: Run, ends: Sequence[Stage]) -> list[Verdict]:
    """One verdict a budget; at equal tokens held-out text may overrule a winner that the training loss names."""
    if obstacle := _different_yardsticks(run, ends):
        return [Verdict(budget=budget, obstacle=obstacle) for budget in BUDGETS]
    curves = [branch_curve(run, end, ends) for end in ends]
    return [_checked(judge(curves, budget), run, ends) for budget in BUDGETS]


def common(run: Run, ends: Sequence[Stage]) -> list[Stage]:
    """The stages that every branch builds on, oldest first."""
    shared = set.intersection(*({a.id for a in run.ancestors(end)} for end in ends))
    return [s for s in run.stages if s.id in shared]


def own_training(run: Run, end: Stage, ends: Sequence[Stage]) -> list[Stage]:
    """The training stages of a branch from where it parted from the others."""
    shared = {s.id for s in common(run, ends)}
    return [s for s in run.ancestors(end) if s.trains and s.id not in shared]


def branch_curve(run: Run, end: Stage, ends: Sequence[Stage]) -> Curve:
    """The loss of a branch from where it parted, its training stages one after the other."""
    own = own_training(run, end, ends)
    lines = [(line, own[:i]) for i, stage in enumerate(own) for line in stage.metrics]
    spent = {b: [sum(run.total(s, b) for s in done) + figure(line, b) for line, done in lines] for b in BUDGETS}
    return Curve(name=end.id, loss=[figure(line, "loss_nats") for line, _ in lines], spent=spent,
                 lr=[figure(line, "lr") for line, _ in lines])


def sentence(verdicts: Sequence[Verdict]) -> str:
    """`moe-trained won at equal tokens; no clear difference at equal FLOPs and at equal seconds.`"""
    if verdicts[0].obstacle and len({v.obstacle for v in verdicts}) == 1:
        return f"There is no winner to name: {verdicts[0].obstacle}."
    said: dict[str, list[str]] = {}
    for v in verdicts:
        said.setdefault(_outcome(v), []).append(f"at equal {NAMES[v.budget]}")
    text = "; ".join(f"{outcome} {_and(places)}" for outcome, places in said.items())
    return f"{text if verdicts[0].winner else _capital(text)}."


def _outcome(verdict: Verdict) -> str:
    if verdict.obstacle:
        return "no comparison was possible"
    return f"{verdict.winner} won" if verdict.winner else "no clear difference"


def held_out(run: Run, ends: Sequence[Stage]) -> str:
    """The branches' final models on held-out text, and whether they had the same number of tokens."""
    scores = _scores(ends)
    if len(scores) < 2:
        return ""
    ranked = sorted(scores, key=scores.__getitem__)
    first, second = ranked[:2]
    a, b = (run[name].evaluation.get("bits_per_byte") or {} for name in (first, second))
    pairs = [(a[d], b[d]) for d in a if d in b]
    scope = "after the same number of tokens" if _same_tokens(run, ends) else "though not after equally many tokens"
    listed = ", ".join(f"{name} {units.fixed(scores[name], 3)}" for name in ranked)
    domains = f", lower in {sum(x < y for x, y in pairs)} of {len(pairs)} domains" if len(pairs) > 1 else ""
    return (f"Held-out text, final models, {scope}: {listed} bits per byte; {first} is "
            f"{units.percent(1 - scores[first] / scores[second], 2)} lower than {second}{domains}.")


def _scores(ends: Sequence[Stage]) -> dict[str, float]:
    """Mean bits per byte of the ends that were evaluated."""
    means = {e.id: e.evaluation.get("mean") for e in ends}
    return {name: float(v) for name, v in means.items() if units.is_number(v)}


def _checked(verdict: Verdict, run: Run, ends: Sequence[Stage]) -> Verdict:
    """Withdraw a winner at equal tokens whom held-out text, measured after those same tokens, contradicts."""
    scores = _scores(ends)
    if verdict.budget != "tokens" or not verdict.winner or len(scores) < len(ends) or not _same_tokens(run, ends):
        return verdict
    best = min(scores, key=scores.__getitem__)
    if best == verdict.winner:
        return verdict
    doubt = f"training loss favours {verdict.winner}, held-out text {best}: neither is called the winner"
    return replace(verdict, winner="", caveats=(*verdict.caveats, doubt))


def _same_tokens(run: Run, ends: Sequence[Stage]) -> bool:
    """Whether the tokens of the branches since they parted agree to 1 %."""
    spent = [sum(run.total(s, "tokens") for s in own_training(run, e, ends)) for e in ends]
    return min(spent) > 0 and max(spent) <= 1.01 * min(spent)


def _different_yardsticks(run: Run, ends: Sequence[Stage]) -> str:
    for kind in SHARED_KINDS:
        used = {frozenset(a.id for a in run.ancestors(end) if a.kind == kind) for end in ends}
        if len(used) > 1:
            return f"the branches use different {kind} stages, so their losses are not on one scale"
    return ""


def _card(verdict: Verdict) -> dict[str, Any]:
    name = NAMES[verdict.budget]
    if verdict.obstacle:
        return {"budget": name, "amount": "", "outcome": "Not comparable", "won": False, "rows": [],
                "text": f"{_capital(verdict.obstacle)}."}
    share = units.percent(verdict.gap / verdict.standings[1][1], 2)
    side = "over" if verdict.gap > verdict.noise else "within"
    text = (f"Gap {units.number(verdict.gap, 2)} nats per token ({share}), {side} the noise of "
            f"±{units.number(verdict.noise, 2)}.")
    return {"budget": name, "amount": verdict.amount, "outcome": _capital(_outcome(verdict), verdict.winner),
            "won": bool(verdict.winner), "rows": [(n, units.fixed(loss, 3)) for n, loss in verdict.standings],
            "text": " ".join([text, *(f"{_capital(c)}." for c in verdict.caveats)])}


def _notes(run: Run, ends: Sequence[Stage], verdicts: Sequence[Verdict]) -> list[str]:
    notes = []
    if any(v.standings for v in verdicts):
        shared = [s for s in common(run, ends) if s.trains or s.kind in ("build", "load")]
        start = f"from {shared[-1].id}, which all branches share" if shared else "from the start of training"
        notes.append("Losses are training losses in nats per token, read off a line fitted to each curve at the "
                     f"largest budget that every branch reached; budgets count {start}, training only. Noise is half "
                     "of the gap's 95 % interval.")
        others = [s.id for e in ends for s in run.ancestors(e) if s.kind == "convert" and s not in common(run, ends)]
        if others:
            notes.append(f"Seconds leave out the conversion ({', '.join(dict.fromkeys(others))}).")
        notes.append("One run with one seed: another seed may turn a small gap round.")
    return notes


def _capital(text: str, name: str = "") -> str:
    """`text` with a capital, unless it begins with a `name`, which keeps its own letters."""
    return text if name else text[0].upper() + text[1:]


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
