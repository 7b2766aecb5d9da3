"""`hf-vlr suite`."""

import click

from hf_vlr.cli.grammar import data_option, overrides, settings
from hf_vlr.cli.output import say


@click.command()
@click.argument("suite")
@settings
@data_option()
@click.option("--out", required=True, metavar="DIR", help="Folder for all runs; complete ones in it are kept.")
def command(suite: str, words: tuple[str, ...], data: str | None, out: str) -> None:
    """Train the runs of SUITE over its folds and seeds and compare them, with paired-bootstrap intervals.

    SUITE is a packaged name or a YAML file. KEY=VALUE words go to every recipe; suite.seeds=[0] and suite.folds=4
    change the suite itself.

    \b
    hf-vlr suite openclipart-pretrained --data DIR vision=FILE text=DIR --out runs/openclipart
    """
    from hf_vlr.suite import load_suite, markdown, run_suite

    lines = overrides(words, data)
    load_suite(suite, lines)
    say(markdown(run_suite(suite, lines, out)))
