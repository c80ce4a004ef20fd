"""The command `chat`: a conversation with a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import one_line
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.lm.answering import Answer
    from mixwell.lm.model import LanguageModel

ASK = "> "
MODEL = typer.Argument(metavar="MODEL", help="Model folder, file or id, a stage's folder, or a run's stage such as "
                                             "runs/mine:tuned.")
KEEP = typer.Option(metavar="POLICY:TOKENS", help="Bounded memory for long conversations, answers change: keep of each "
                                                  "layer's keys and values the first and last TOKENS (window), those "
                                                  "looked at most (heavy_hitters), or what the end of the prompt looks "
                                                  "at (last_queries).  [default: all]")


@one_line(stopped="stopped")
def chat(source: Annotated[Path, MODEL],
         message: Annotated[str | None, typer.Argument(help="What to say; the answer is printed and the command ends.  "
                                                            "[default: a conversation, a line each turn]")] = None,
         system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
         max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.  [default: as the "
                                                                    "model's folder says, else 512]")] = None,
         temperature: Annotated[float | None, typer.Option(min=0, help="0 takes the likeliest token always.  [default: "
                                                                       "as the model's folder says, else 0]")] = None,
         top_p: Annotated[float | None, typer.Option(help="Share of the probability that is drawn from.")] = None,
         top_k: Annotated[int | None, typer.Option(min=0, help="Draw among this many tokens; 0 is all.")] = None,
         seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
         variables: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE",
                                                             help="Variable of the chat template, such as "
                                                                  "enable_thinking=false.")] = None,
         adapter: Annotated[str | None, typer.Option(help="Adapter to put beside it: a folder, mixwell's or PEFT's, "
                                                          "or the stage that made it.")] = None,
         keep: Annotated[str | None, KEEP] = None,
         download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Talk to a model. Its answers end by themselves, where its template and its settings say that they end.

    **Examples**

    `mixwell chat path/to/model` · a conversation; an empty line or Ctrl-D ends it

    `mixwell chat runs/mine:tuned "What is a mixture of experts?"` · one answer

    `mixwell chat path/to/base --adapter path/to/adapter`
    """
    from mixwell.run.paths import load
    from mixwell.run.recipe import override

    values: dict[str, Any] = {}
    for word in variables or []:
        override(values, word)
    model = load(source, adapter=adapter)
    with _kept(model, keep):
        _talk(model, message, system, max_tokens, values, _drawing(temperature, top_p, top_k, seed))


def _kept(model: LanguageModel, keep: str | None) -> AbstractContextManager[None]:
    """A block in which the model's caches keep what was asked for."""
    if keep is None:
        return nullcontext()
    from mixwell.serve.kept import keep_of, kept_caches

    return kept_caches(model, keep_of(keep))


def _talk(model: LanguageModel, message: str | None, system: str | None, max_tokens: int | None,
          values: dict[str, Any], options: dict[str, Any]) -> None:
    """The conversation, or the one answer."""
    from mixwell.kernels.packing import prepack_where_it_pays

    said = [{"role": "system", "content": system}] if system else []
    written = packed_bytes = 0
    for text in _messages(message):
        said.append({"role": "user", "content": text})
        answer = _answer(model, said, max_tokens, values, options)
        said.append({"role": "assistant", "content": answer.text})
        written += len(answer.ids)
        if message is None and not packed_bytes:  # while the answer is read; as much again is likely to follow
            packed_bytes = prepack_where_it_pays(model, written)


def _drawing(temperature: float | None, top_p: float | None, top_k: int | None, seed: int) -> dict[str, Any]:
    """What `generate` is told of what the user said."""
    from mixwell.core.rng import generator

    options = {"top_p": top_p, "top_k": top_k, "generator": generator(seed, "chat")}
    if temperature is not None:
        options |= {"do_sample": temperature > 0, "temperature": temperature or 1.0}
    return {name: value for name, value in options.items() if value is not None}


def _messages(message: str | None) -> Iterator[str]:
    """The message given, or lines of standard input up to an empty one."""
    if message is not None:
        if not message.strip():
            raise MixwellError("the message is empty; say something, or leave it out for a conversation.")
        yield message
        return
    asked = sys.stdin.isatty()
    while True:
        print(ASK if asked else "", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.rstrip("\n")


def _answer(model: LanguageModel, said: list[dict[str, str]], max_tokens: int | None, variables: dict[str, Any],
            options: dict[str, Any]) -> Answer:
    """Print an answer as it comes, and return it."""
    from mixwell.lm.answering import Answer
    from mixwell.lm.conversation import conversation

    answer = Answer(model, conversation(said), max_tokens, variables, **options)
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    if not answer.ended:
        print(f"(cut after {answer.most} tokens; --max-tokens says how many)", file=sys.stderr)
    return answer
