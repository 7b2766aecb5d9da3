"""`hf-vlr bench`."""

from pathlib import Path
from typing import Any

import click

from hf_vlr.cli.output import say, say_table
from hf_vlr.errors import UserError


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listing", is_flag=True, help="List what can be measured.")
@click.option("--out", metavar="DIR", default="bench-results", show_default=True, help="Where the machine's file lies.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="By default cuda where there is one.")
@click.option("--threads", type=click.IntRange(1), help="Of a processor; by default as many as torch takes.")
@click.option("--seed", default=0, show_default=True, help="Of the inputs.")
@click.option("--quick", is_flag=True, help="Small sizes, in minutes, into a file apart: whether it runs.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory, in processes of its own.")
@click.option("--table", metavar="FILE", help="Print a file of results as a Markdown table; measure nothing.")
def command(names: tuple[str, ...], listing: bool, out: str, table: str | None, **given: Any) -> None:
    """Measure this package's fast paths beside what one would otherwise run.

    Every line is the same work done by this package and by peers (open_clip, transformers, timm, the methods' own
    formulations) in alternating turns in one process. Beside each ratio stand how far the answers are apart, values and
    gradients, the peak memory, and the share of what this machine's products of matrices or memory can do. Ratios
    across dtypes are kept apart from those in one dtype. Needs the extra [bench].

    Each NAME's numbers replace its earlier ones in DIR/MACHINE.json, line by line, so that nothing is lost when you
    stop; without a NAME all are measured (about 40 minutes on two cores; let nothing else run). --list and --table
    take NAMEs too.

    \b
    hf-vlr bench --list
    hf-vlr bench                                      all of it
    hf-vlr bench contrast-pairs head-training --threads 2
    hf-vlr bench --quick                              does it run here? a few minutes
    hf-vlr bench --table bench-results/my-cpu.json    as in the README
    """
    from hf_vlr.bench.board import BOARD, entry_named
    from hf_vlr.bench.table import listed

    if listing and table is not None:
        raise UserError("--list and --table: ask for one of them")
    entries = [entry_named(name) for name in names] or list(BOARD)
    if table is not None:
        _print_table(Path(table), set(names))
    elif listing:
        say_table(listed(entries))
    else:
        _measure(entries, Path(out), **given)


def _print_table(path: Path, names: set[str]) -> None:
    from hf_vlr.bench.results import read_results
    from hf_vlr.bench.table import document

    results = read_results(path)
    if missing := names - set(results["lines"]):
        raise UserError(f"{path} has no line {', '.join(sorted(missing))}; measure it with hf-vlr bench")
    lines = {name: record for name, record in results["lines"].items() if not names or name in names}
    say(document({**results, "lines": lines}))


def _measure(
    entries: list[Any], out: Path, device: str | None, threads: int | None, seed: int, quick: bool, memory: bool
) -> None:
    import torch

    from hf_vlr.bench.sitting import measure_lines

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here; use --device cpu")
    path = measure_lines(
        entries,
        out,
        say,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        threads=threads,
        seed=seed,
        scale="quick" if quick else "full",
        with_memory=memory,
    )
    say(f"written to {path}")
