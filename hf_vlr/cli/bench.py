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
@click.option("--quick", is_flag=True, help="Small sizes: whether it runs, not how fast.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory, in processes of its own.")
@click.option("--table", metavar="FILE", help="Print a file of results as a Markdown table, and measure nothing.")
def command(names: tuple[str, ...], listing: bool, out: str, table: str | None, **given: Any) -> None:
    """Measure this package's fast paths beside what one would otherwise run.

    Every line is the same work done by this package and by peers (open_clip, transformers, timm, the methods' own
    formulations) in alternating turns in one process. Beside each ratio stand how far the answers are apart, values and
    gradients, the peak memory, and the share of what this machine's products of matrices or memory can do. Ratios
    across dtypes are kept apart from those in one dtype. Needs the extra [bench].

    Each NAME's numbers replace its earlier ones in DIR/MACHINE.json; without a NAME all are measured (about half an
    hour on two cores; let nothing else run).

    \b
    hf-vlr bench --list
    hf-vlr bench                                      all of it
    hf-vlr bench contrast-pairs head-training --threads 2
    hf-vlr bench --quick --out try                   does it run here?
    hf-vlr bench --table bench-results/my-cpu.json    as in the README
    """
    if table is not None:
        _print_table(Path(table))
        return
    from hf_vlr.bench.board import BOARD, entry_named
    from hf_vlr.bench.table import listed

    if listing:
        say_table(listed(BOARD))
        return
    _measure([entry_named(name) for name in names] or list(BOARD), Path(out), **given)


def _print_table(path: Path) -> None:
    from hf_vlr.bench.results import read_results
    from hf_vlr.bench.table import document

    say(document(read_results(path)))


def _measure(
    entries: list[Any], out: Path, device: str | None, threads: int | None, seed: int, quick: bool, memory: bool
) -> None:
    import torch

    from hf_vlr.bench.machine import hardware
    from hf_vlr.bench.results import keep, results_path
    from hf_vlr.bench.running import run
    from hf_vlr.bench.setting import Setting
    from hf_vlr.bench.table import told

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here; use --device cpu")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found, scale = hardware(target), "quick" if quick else "full"
    path = results_path(out, found)
    for entry in entries:
        setting = Setting(target, threads or torch.get_num_threads(), entry.size_for(scale, target.type), scale, seed)
        record = run(entry, setting, with_memory=memory)
        keep(path, found, record)
        for line in told(record):
            say(line)
    say(f"written to {path}")
