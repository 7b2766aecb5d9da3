"""`hf-vlr data`."""

import click

from hf_vlr.cli.lazy import LazyGroup

COMMANDS = {
    "build": ("hf_vlr.cli.data_build", "Make a Parquet dataset from downloaded files."),
    "make-longtail": ("hf_vlr.cli.data_make_longtail", "Cut a labelled dataset to a long tail."),
    "stats": ("hf_vlr.cli.data_stats", "Count a source: images, classes, shot groups, texts."),
    "texts": ("hf_vlr.cli.data_texts", "Show what texts the classes have, or collect them from Wikipedia."),
}


@click.group(cls=LazyGroup, commands_from=COMMANDS)
def command() -> None:
    """Build a dataset once, train on it often."""
