"""`hf-vlr eval`."""

import click

from hf_vlr.cli.grammar import data_option, overrides, settings


@click.command()
@click.argument("model_dir", metavar="MODEL")
@settings
@data_option(required=True)
@click.option("--out", metavar="DIR", help="Write to DIR/eval/SPLIT; MODEL/eval/SPLIT by default.")
def command(model_dir: str, words: tuple[str, ...], data: str, out: str | None) -> None:
    """Measure MODEL, a folder that hf-vlr train wrote or a Hub id, on a dataset.

    Overall, balanced and many/medium/few accuracy of the visual branch, the language branch and their fusion.

    \b
    hf-vlr eval runs/RECIPE --data imagefolder:photos
    hf-vlr eval runs/RECIPE --data shapes-lt data.options.classes=108 eval.rule=vl-ltr
    """
    from hf_vlr.evaluate import evaluate_checkpoint

    evaluate_checkpoint(model_dir, overrides(words, data), out)
