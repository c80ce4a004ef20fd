"""The command `serve`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixwell.cli.chat import KEEP, MODEL
from mixwell.cli.download import DOWNLOAD
from mixwell.cli.errors import one_line
from mixwell.core.errors import MixwellError

if TYPE_CHECKING:
    from mixwell.lm.model import LanguageModel
    from mixwell.serve.guard import Rules

KEY = "MIXWELL_API_KEY"
# Compiled products that torch keeps, one for each number of rows that it met: its own 1,024 grow to half a gigabyte.
KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
WRITTEN = 1 << 20  # tokens that a server is taken to write: packing its weights pays where it ever does
CACHE_MIB = typer.Option(min=1, help="Memory for keys and values.  [default: a quarter of what is free, at most]")
CACHE_BITS = typer.Option(help="Bits of each number of keys and values, 8 or 4: more and longer answers in the same "
                               "memory.  [default: as they are]")
DRAFT = typer.Option(help="Guess next tokens, verified in one pass, answers unchanged: lookup (what the text said "
                          "before), tree (that, in several branches at once), jacobi, or the folder of a smaller "
                          "model of the same tokens.")
RESIDENT = typer.Option(min=1, help="Experts of each layer that stay in memory; the others wait on disk.  [default: "
                                    "all]")


@one_line(stopped="stopped")
def serve(source: Annotated[Path, MODEL],
          port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
          host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
          api_key: Annotated[str | None, typer.Option(envvar=KEY, help="Key that clients must send; other programs see "
                                                      "it less easily in the environment.")] = None,
          insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False,
          name: Annotated[str | None, typer.Option(help="What clients call the model.  [default: as its folder is "
                                                        "called]")] = None,
          context: Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and answer at most.  [default: the "
                                                                  "model's own]")] = None,
          rows: Annotated[int, typer.Option(min=1, help="Answers written at once.")] = 32,
          step_tokens: Annotated[int, typer.Option(min=1, help="Tokens read in a step: fewer let answers flow more "
                                                               "evenly beside long prompts.")] = 256,
          queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; more are turned away.")] = 64,
          cache_mib: Annotated[int | None, CACHE_MIB] = None,
          cache_bits: Annotated[int | None, CACHE_BITS] = None,
          keep: Annotated[str | None, KEEP] = None,
          draft: Annotated[str | None, DRAFT] = None,
          shortest_first: Annotated[bool, typer.Option("--shortest-first", help="Of the answers that wait, begin first "
                                                       "those that will be short, as learnt from others.")] = False,
          resident: Annotated[int | None, RESIDENT] = None,
          drain: Annotated[int, typer.Option(min=0, help="Seconds in which answers may end after SIGTERM.")] = 30,
          adapter: Annotated[list[str] | None, typer.Option(metavar="[NAME=]FOLDER", help="Adapter that clients choose "
                                                            "by its name as `model`; may be said again.")] = None,
          beside: Annotated[list[Path] | None, typer.Option(help="Another model to serve beside it, for "
                                                                 "comparison; may be said again.")] = None,
          download: Annotated[bool, DOWNLOAD] = False) -> None:
    """Serve a model to OpenAI's clients and to a browser.

    **Examples**

    `mixwell serve runs/mine:tuned` · then open http://127.0.0.1:8000, or point a client at http://127.0.0.1:8000/v1

    `mixwell serve path/to/model --draft path/to/its/smaller/part` · the same answers in fewer passes

    `mixwell serve path/to/base --adapter notes=runs/mine:tuned --adapter code` · a client's `model` names one

    `MIXWELL_API_KEY=... mixwell serve path/to/model --host 0.0.0.0` · for other machines
    """
    for variable, most in KEPT_PRODUCTS.items():
        os.environ.setdefault(variable, most)  # read with the first product
    uvicorn = _server()
    rules = _rules(host, api_key, insecure)
    from mixwell.core.machine import threads
    from mixwell.kernels.packing import prepack_where_it_pays
    from mixwell.run.adapting import named, put_many
    from mixwell.run.paths import load
    from mixwell.serve.app import Settings, build
    from mixwell.serve.engine import DRAFTERS, Limits

    if adapter and resident is not None:
        raise MixwellError("--adapter and --resident came: an adapter stands beside experts in memory; leave one out.")
    if rows > step_tokens:
        raise MixwellError(f"--rows {rows} are more than --step-tokens {step_tokens}; each row takes a token a step.")

    smaller = None if draft is None or draft in DRAFTERS else _smaller(draft)
    size_bytes = None if cache_mib is None else cache_mib << 20
    limits = Limits(context=context, step_tokens=step_tokens, max_rows=rows, cache_bytes=size_bytes,
                    cache_bits=cache_bits, keep=keep, draft=None if smaller else draft, shortest_first=shortest_first)

    def loaded(path: Path, called: str, adapters: list[str],
               smaller: LanguageModel | None = None) -> tuple[LanguageModel, Settings]:
        model = load(path) if resident is None else _apart(path, resident)
        many = put_many(model, named(adapters))
        prepack_where_it_pays(model, WRITTEN)
        return model, Settings(name=called, limits=limits, most_waiting=queue, threads=threads(), adapters=many,
                               smaller=smaller)

    model, settings = loaded(source, name or _called(source), adapter or [], smaller)
    others = [loaded(path, _called(path), []) for path in beside or ()]
    app = build(model, settings, rules, others)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=drain,
                            timeout_keep_alive=5, limit_concurrency=4 * (rows + queue) + 64, lifespan="on",
                            server_header=False)
    _listen(uvicorn, config, settings.name)


def _smaller(draft: str) -> LanguageModel:
    """The model that drafts for the one that is served, not for those beside it."""
    from mixwell.kernels.packing import prepack_where_it_pays
    from mixwell.run.paths import load

    try:
        model = load(Path(draft))
    except MixwellError as error:
        raise MixwellError(f"--draft is neither lookup, tree nor jacobi, and no model: {error}") from error
    prepack_where_it_pays(model, WRITTEN)
    return model


def _apart(path: Path, resident: int) -> LanguageModel:
    """The model with so many experts of each layer in memory; all wait in files that go when the server ends."""
    import atexit
    import shutil
    import tempfile

    from mixwell.run.paths import find_model
    from mixwell.serve.larger import read_apart
    from mixwell.serve.offload import Config, Offload

    folder = tempfile.mkdtemp(prefix="mixwell-experts-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model, fetch = read_apart(find_model(path), Path(folder))
    Offload(model, fetch, Config(resident=resident))
    return model


def _rules(host: str, api_key: str | None, insecure: bool) -> Rules:
    """Who may ask: this machine alone, or whoever has the key."""
    from mixwell.serve.guard import LOOPBACK, Rules

    local = host in LOOPBACK
    if api_key is not None and not api_key.strip():
        raise MixwellError(f"the key is empty; give --api-key or {KEY} a value, or neither.")
    if not local and api_key is None and not insecure:
        raise MixwellError(f"--host {host} lets other machines ask; set a key ({KEY} or --api-key), or say --insecure.")
    return Rules(api_key=api_key, local_names=local and api_key is None)


def _server() -> Any:
    """The web server's module."""
    try:
        import fastapi
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise MixwellError(f"serving needs {error.name}, which is not installed: pip install 'mixwell[serve]'."
                           ) from error
    assert fastapi and prometheus_client
    return uvicorn


def _called(path: Path) -> str:
    """The name of a folder or file, also where the path is `.`"""
    given = path.name
    return path.resolve().name if given in ("", "..") else given


def _listen(uvicorn: Any, config: Any, name: str) -> None:
    """Serve until a signal comes; a port that is taken is one line."""
    try:
        listening = config.bind_socket()
    except SystemExit as error:
        raise MixwellError(f"cannot listen at {config.host}:{config.port}; is the port taken? Choose another --port."
                           ) from error
    listening.listen(config.backlog)  # from now on clients are heard
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {name} at http://{shown}:{port} (OpenAI's clients: http://{shown}:{port}/v1)", flush=True)
    server = uvicorn.Server(config)
    server.run(sockets=[listening])


