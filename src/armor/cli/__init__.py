"""The command line: one file a command, one place where errors become one line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from armor.cli.verbosity import set_verbosity
from armor.errors import ArmorError, printable, reason
from armor.idle import let_idle_threads_sleep

let_idle_threads_sleep(os.environ)


class _Group(TyperGroup):
    """Gives every command ``-v``."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and not any(option.name == "verbose" for option in command.params):
            command.params += _verbose_option()
        return command


def _verbose_option() -> list[Any]:
    """The option as typer makes it from a command that has no other."""
    probe = typer.Typer(add_completion=False)
    probe.command()(_verbose)
    return typer.main.get_command(probe).params


def _verbose(
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=set_verbosity,
            show_default=False,
            help="Say more on stderr; -vv every detail.",
        ),
    ] = 0,
) -> None: ...


app = typer.Typer(
    cls=_Group,
    name="armor",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Prune a language model to 2:4 sparsity and keep its quality (ARMOR, arXiv 2510.05528).",
    epilog="Start with: [bold]armor demo[/bold]",
)

# Commands register themselves on import; the modules keep torch inside their functions,
# so that --help is instant.
_COMMANDS = (
    "prune",
    "tune",
    "evaluate",
    "compare",
    "reproduce",
    "inspect",
    "export",
    "bench",
    "doctor",
    "report",
    "demo",
)
for _name in _COMMANDS:
    importlib.import_module(f"armor.cli.{_name}").register(app)


def main() -> None:
    """Run the command line; bad input exits 2, a failed run 1, Ctrl-C 130, each in one line."""
    try:
        app(standalone_mode=True)
    except ArmorError as error:
        _fail(str(error), 2)
    except SystemExit as ending:
        if ending.code == 130:  # Ctrl-C, which typer swallows
            _interrupted()
        raise
    except KeyboardInterrupt:  # before typer takes over
        _interrupted()
    except Exception as error:
        if os.environ.get("ARMOR_DEBUG"):
            raise
        if isinstance(error, OSError) and error.strerror:  # no permission, a full disk
            _fail(f"{error.filename or 'cannot read or write'}: {error.strerror}", 2)
        _fail(f"{type(error).__name__}: {reason(error)} (ARMOR_DEBUG=1 shows the traceback)", 1)


def _interrupted() -> None:
    _fail(
        "interrupted; nothing half-written is left; armor prune and tune go on if repeated",
        130,
    )


def _fail(message: str, code: int) -> None:
    print(f"armor: error: {printable(message)}", file=sys.stderr)
    raise SystemExit(code)
