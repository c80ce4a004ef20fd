"""The command line's page, made from the commands' own help."""

from __future__ import annotations

from typing import Any

import typer

from docsite import maths
from mixwell.cli.main import app


def page() -> str:
    """Every command with its arguments, options and examples, as Markdown."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", "Every command explains itself: `mixwell COMMAND --help`. A mistake is one line on "
             "standard error and leaves with status 2."]
    for name, command in group.commands.items():
        parts += [f"## mixwell {name}", _usage(name, command), command.help.strip(), _parameters(command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(name: str, command: Any) -> str:
    arguments = " ".join(_metavar(p) for p in command.params if p.param_type_name == "argument")
    options = " [OPTIONS]" if any(p.param_type_name == "option" for p in command.params) else ""
    return f"```\nmixwell {name}{options} {arguments}".rstrip() + "\n```"


def _metavar(argument: Any) -> str:
    if argument.metavar and argument.metavar.startswith("["):  # says itself what may be left out
        return argument.metavar.removesuffix("...") + "..."
    name = (argument.metavar or argument.name).upper()
    many = "..." if argument.nargs != 1 else ""
    return f"{name}{many}" if argument.required else f"[{name}{many}]"


def _parameters(command: Any) -> str:
    rows = "".join(_row(p) for p in command.params if p.name != "help")
    if not rows:
        return ""
    return ('<div class="scroll"><table class="options"><thead><tr><th>argument or option</th><th>default</th>'
            f"<th>meaning</th></tr></thead><tbody>{rows}</tbody></table></div>")


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = " ".join(maths.as_code(o) for o in (parameter.opts if option else [_metavar(parameter)]))
    plain = parameter.default is not None and not callable(parameter.default) and parameter.default is not False
    default = maths.as_code(str(parameter.default)) if plain and str(parameter.default) else ""
    return f"<tr><td>{names}</td><td>{default}</td><td>{maths.prose(parameter.help or '')}</td></tr>"
