"""The command line's page, made from the commands' own help."""

from __future__ import annotations

from typing import Any

import typer
from markupsafe import Markup

from docsite import maths
from docsite.rendering import render
from mixwell.cli.main import app


def page() -> str:
    """Every command with its arguments, options and examples, as Markdown."""
    group: Any = typer.main.get_command(app)
    shown = [_command(name, command) for name, command in group.commands.items()]
    return render("commands", commands=shown)


def _command(name: str, command: Any) -> dict[str, Any]:
    parameters = [p for p in command.params if p.name != "help"]
    arguments = [_argument(p) for p in parameters if not _is_option(p)]
    options = ["[OPTIONS]"] if any(map(_is_option, parameters)) else []
    return {"name": name, "usage": "".join(f" {part}" for part in options + arguments),
            "help": Markup(command.help.strip()), "parameters": list(map(_shown, parameters))}


def _is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option"


def _argument(argument: Any) -> str:
    """`METHOD`, `[PREFIX]`, `FILES...`; a form that says itself what may be left out stands as it is."""
    form = argument.metavar or argument.name
    if form.startswith("["):
        return form.removesuffix("...") + "..."
    many = "..." if argument.nargs != 1 else ""
    name = form.upper() + many
    return name if argument.required else f"[{name}]"


def _shown(parameter: Any) -> dict[str, Any]:
    names = parameter.opts if _is_option(parameter) else [_argument(parameter)]
    return {"names": names, "default": _default(parameter.default), "meaning": maths.prose(parameter.help or "")}


def _default(value: Any) -> str:
    """A default in words; none where nothing is given or a function finds it."""
    untold = value is None or value is False or callable(value)
    return "" if untold else str(value)
