"""The cards' ASCII mathematics as HTML: Greek letters, subscripts, superscripts, relations; words stay words.

What is not surely mathematics is left as it stands: `gate_up_proj` and `top_k` keep their underscores, and so does
everything between backticks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from markupsafe import Markup

SMALL = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eps": "ε", "zeta": "ζ", "eta": "η",
         "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ",
         "sigma": "σ", "tau": "τ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω"}
# Gamma and Beta are distributions
CAPITAL = {"Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω"}
GREEK = {**SMALL, **CAPITAL}
RELATIONS = (("<->", "↔"), ("<=", "≤"), (">=", "≥"), ("!=", "≠"), ("->", "→"), ("<-", "←"), ("+-", "±"), ("||", "‖"))
OPERATORS = {"sum": "∑", "prod": "∏"}
SUBSCRIPTED = r"sum|prod|max|min|mean|argmax|softmax|log|KL|tr|grad"  # words that take an index
_LETTERS = "".join(sorted(set(GREEK.values())))
_CLOSERS = r"[\])|‖]"
_BASE = rf"(?:(?<![\w`])(?:[A-Za-z{_LETTERS}][A-Za-z0-9]?|[A-Z]{{2,5}}|{SUBSCRIPTED})['~]*|{_CLOSERS}'*)"
_INDEX = re.compile(rf"({_BASE})_(\{{[^{{}}]*\}}|[A-Za-z0-9{_LETTERS}]+(?:,[a-z]+)?)(?![\w])")
_POWER = re.compile(rf"\^(\{{[^{{}}]*\}}|\([^()]*\)|[-+]?[A-Za-z0-9{_LETTERS}]+|[+*])")
_GREEK = re.compile(rf"(?<![A-Za-z\d])({'|'.join(sorted(GREEK, key=len, reverse=True))})(?![A-Za-z])")
_SENTENCE = re.compile(r"(?<=[^\s.]\.) (?=[A-Z])")  # a full stop; `a . B` is a product
_ARXIV = re.compile(r"(?:arXiv:)?\b(\d{4}\.\d{4,5})\b")


def equation(text: str) -> Markup:
    """A card's equation as HTML: lines as they are broken in the card where they are indented there, else sentences."""
    paragraphs = re.split(r"\n\s*?\n", text.strip())
    shown = [line for paragraph in paragraphs for line in _lines(paragraph)]
    return Markup().join(map(_line, shown))


def _lines(paragraph: str) -> list[str]:
    written = paragraph.splitlines()
    indented = any(line.startswith(" ") for line in written)
    lines = [line.strip() for line in written]
    return lines if indented else _SENTENCE.split(" ".join(lines))


def _line(text: str) -> Markup:
    spaced = formula(text).replace(";  ", ";\N{EM SPACE}")  # two spaces part equations
    return Markup('<span class="line">{}</span>').format(Markup(spaced))


def formula(text: str) -> Markup:
    """One line of mathematics among words, as HTML."""
    return _outside_code(text, _mathematics, as_code)


def prose(text: str, code: Callable[[str], Markup] | None = None) -> Markup:
    """A card's other sections as HTML: words first, so that signs stay as typed; arXiv numbers become links.

    code: HTML of a span between backticks; by default the span as code.
    """
    flowing = " ".join(text.split())
    return _outside_code(flowing, _words, code or as_code)


def as_code(text: str) -> Markup:
    """A code span."""
    return Markup("<code>{}</code>").format(text)


def _outside_code(text: str, change: Callable[[str], str], code: Callable[[str], Markup]) -> Markup:
    parts = text.split("`")
    if len(parts) % 2 == 0:  # an odd backtick: nothing is surely code
        return Markup(change(text))
    shown = (code(part) if number % 2 else change(part) for number, part in enumerate(parts))
    return Markup("".join(shown))


def _mathematics(text: str) -> str:
    return _scripts(html.escape(_symbols(text), quote=False))


def _words(text: str) -> str:
    return _links(_scripts(html.escape(_greek(text), quote=False), longest=3))


def _symbols(text: str) -> str:
    for ascii_form, sign in RELATIONS:
        text = text.replace(ascii_form, sign)
    text = re.sub(r"(?<=\s)-(?=\s)|(?<![^\s(\[=,])-(?=[\w(|])", "−", text)
    text = re.sub(r"\bsqrt(?=[(\s])", "√", text)
    return _greek(text)


def _greek(text: str) -> str:
    return _GREEK.sub(lambda found: GREEK[found[1]], text)


def _scripts(text: str, longest: int = 20) -> str:
    """Indices of at most `longest` signs (among words a longer one is part of a name: `z_loss`), and powers."""
    text = _INDEX.sub(lambda found: found[0] if len(found[2].strip("{}")) > longest else _index(found), text)
    return _POWER.sub(lambda found: f"<sup>{_inner(found[1])}</sup>", text)


def _index(found: re.Match[str]) -> str:
    base, index = found[1], found[2]
    if _is_name(base, index):
        return found[0]
    return f"{OPERATORS.get(base, base)}<sub>{_inner(index)}</sub>"


def _is_name(base: str, index: str) -> bool:
    """A letter takes any index, a word a short one: `x_proj`, `log_rate` and `dt_proj` are names of tensors."""
    word = len(base) > 1 and base.isascii() and base[0].islower()
    long = len(index) > 2 and not index.startswith("{")
    return index == "proj" or (word and long)


def _inner(text: str) -> str:
    braced = text.startswith("{")
    bare = re.sub(r"\bin\b", "∈", text[1:-1]) if braced else text
    signed = re.sub(r"(?<![A-Za-z])-|-(?![A-Za-z])", "−", bare)
    return _scripts(signed)


def _links(text: str) -> str:
    return _ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">\g<0></a>', text)
