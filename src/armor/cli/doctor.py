"""``armor doctor``: what this machine has, whether it computes right, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from armor.cli.options import Device, Json

if TYPE_CHECKING:
    from armor.bench.check import Check


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="doctor")(doctor_command)


def doctor_command(device: Device = "auto", json: Json = None) -> None:
    """Check every backend against the reference, then time armor against dense: about a minute.

    Where kernels have to be compiled, on the first run, it may take two. Attach what it prints to a
    bug report. Example: [bold]armor doctor --json doctor.json[/bold]
    """
    from dataclasses import asdict

    import torch
    from rich.console import Console

    from armor.bench.doctor import about, checks
    from armor.checkpoint.jsonfile import check_file, write_json
    from armor.device import resolve_device

    check_file(json)
    where = torch.device(resolve_device(device))
    if where.index is not None:
        torch.cuda.set_device(where)
    console = Console(highlight=False, soft_wrap=True)
    machine = about()
    for name, value in machine.items():
        if name not in ("cpu", "devices"):
            console.print(f"{name:14} {value or 'none'}")
    cpu = machine["cpu"]
    threads = f"{cpu['threads']} thread{'s' * (cpu['threads'] > 1)}"
    console.print(f"{'cpu':14} {cpu['name']}, {cpu['instructions']}, {threads}")
    for gpu in machine["devices"]:
        console.print(
            f"{gpu['device']:14} {gpu['name']}, capability {gpu['capability']},"
            f" {gpu['memory'] / 2**30:.0f} GiB, {gpu['processors']} multiprocessors"
        )
    console.print(f"\n{'check':24} {'of':34} {'figure':10} result", style="bold")
    found: list[Check] = []
    for check in checks(where):
        found.append(check)
        console.print(_line(check), style="red" if check.failed else None, markup=False)
    if json is not None:
        write_json(json, {**machine, "checks": [asdict(check) for check in found]})
    if wrong := [check for check in found if check.failed]:
        console.print(
            f"[red]{len(wrong)} of {len(found)} lines are wrong[/red]: please report this table;"
            " ARMOR_BACKEND=reference computes without these kernels"
        )
        raise typer.Exit(1)


def _line(check: Check) -> str:
    figure = "" if check.figure is None else f"{check.figure:.3g}"
    of = f" ({check.trials} products)" if check.trials > 1 else ""
    return f"{check.what:24} {check.where:34} {figure:10} {check.verdict}{of}"
