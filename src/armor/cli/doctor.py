"""``armor doctor``: what this machine has, whether it computes right, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from armor.cli.options import Device, Json

if TYPE_CHECKING:
    from armor.bench.doctor import Check


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(name="doctor")(doctor_command)


def doctor_command(device: Device = "auto", json: Json = None) -> None:
    """Check every backend against the reference, then time armor against dense: about a minute.

    Attach what it prints to a bug report. Example: [bold]armor doctor --json doctor.json[/bold]
    """
    from dataclasses import asdict

    import torch
    from rich.console import Console

    from armor.bench.doctor import about, check_mlps, check_runtime, check_speed, check_sweeps
    from armor.checkpoint.jsonfile import check_file, write_json
    from armor.device import resolve_device

    check_file(json)
    where = torch.device(resolve_device(device))
    if where.index is not None:
        torch.cuda.set_device(where)
    console = Console(highlight=False, soft_wrap=True)
    machine = about()
    for name, value in machine.items():
        if name != "devices":
            console.print(f"{name:14} {value or 'none'}")
    for gpu in machine["devices"]:
        console.print(
            f"{gpu['device']:14} {gpu['name']}, capability {gpu['capability']},"
            f" {gpu['memory'] / 2**30:.0f} GiB, {gpu['processors']} multiprocessors"
        )
    checks: list[Check] = []
    checked = check_sweeps(where), check_runtime(where), check_mlps(where), check_speed(where)
    for found in checked:
        for check in found:
            checks.append(check)
            console.print(_line(check))
    if json is not None:
        write_json(json, {**machine, "checks": [asdict(check) for check in checks]})
    if wrong := [check for check in checks if check.failed]:
        console.print(
            f"[red]{len(wrong)} of {len(checks)} checks failed[/red]: please report this table;"
            " ARMOR_BACKEND=reference computes without these kernels"
        )
        raise typer.Exit(1)


def _line(check: Check) -> str:
    figure = "" if check.figure is None else f"{check.figure:.3g}"
    text = f"{check.what:24} {check.where:34} {figure:10} {check.verdict}"
    return f"[red]{text}[/red]" if check.failed else text
