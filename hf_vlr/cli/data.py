"""`hf-vlr data`."""

import click

from hf_vlr.cli.lazy import LazyGroup

COMMANDS = {
    "build": ("hf_vlr.cli.data_build", "Make a Parquet dataset from downloaded files."),
    "stats": ("hf_vlr.cli.data_stats", "Count a source: images, classes, shot groups, texts."),
}


@click.group(cls=LazyGroup, commands_from=COMMANDS)
def command() -> None:
    """Build a dataset once, train on it often."""
