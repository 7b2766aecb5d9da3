"""`hf-vlr data build`."""

import click

from hf_vlr.cli.grammar import as_options, settings
from hf_vlr.cli.output import say


@click.command()
@click.argument("name")
@settings
@click.option("--source-dir", metavar="DIR", help="Where the downloaded files are.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the Parquet dataset.")
def command(name: str, words: tuple[str, ...], source_dir: str | None, out: str) -> None:
    """Decode and resize the images of dataset NAME once, into Parquet files that train and eval read fast.

    \b
    hf-vlr data build NAME --source-dir downloads --out data/NAME size=64
    hf-vlr train RECIPE --data data/NAME
    """
    from hf_vlr.data.registry import build_dataset

    build_dataset(name, source_dir, out, **as_options(words))
    say(f"written to {out}; train on it with --data {out}")
