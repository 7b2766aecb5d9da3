"""Printing from one of possibly many processes."""

import os

import click


def is_main_process() -> bool:
    """Whether this is the only process, or the first that a launcher started."""
    return _rank() == 0


def process_name() -> str:
    """ "" in the main process, " [process N]" in another."""
    return "" if is_main_process() else f" [process {_rank()}]"


def say(text: str = "") -> None:
    """Print a line, in the main process only."""
    if is_main_process():
        click.echo(text)


def say_table(rows: list[tuple[str, ...]], indent: str = "") -> None:
    """Print left-aligned columns; the last one is left as long as it is."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say((indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths))).rstrip())


def _rank() -> int:
    # Set by torchrun and by `accelerate launch`; asking Accelerate would import torch.
    return int(os.environ.get("RANK", "0"))
