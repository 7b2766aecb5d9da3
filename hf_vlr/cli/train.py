"""`hf-vlr train`."""

import click

from hf_vlr.cli.grammar import data_option, overrides, settings
from hf_vlr.cli.output import say
from hf_vlr.cli.recipes import key_rows


class _WithKeys(click.Command):
    """A command whose help ends with every key of a recipe; they are only listed when the help is."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Keys (default)"):
            formatter.write_dl([(key, f"{text} ({default})") for key, _, default, text in key_rows()])


@click.command(cls=_WithKeys)
@click.argument("recipe")
@settings
@data_option()
@click.option("--out", metavar="DIR", help="Folder to write to; short for output=DIR.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in that folder.")
def command(recipe: str, words: tuple[str, ...], data: str | None, out: str | None, resume: bool) -> None:
    """Train what RECIPE describes: a packaged name (see hf-vlr recipes) or a YAML file.

    \b
    hf-vlr train RECIPE --data imagefolder:photos data.texts=texts.jsonl
    hf-vlr train RECIPE vision=timm:resnet50 text=hf:ORG/NAME model.freeze=text_model
    hf-vlr train RECIPE --out runs/second model.init=runs/first train.epochs=5
    accelerate launch --num_processes 4 -m hf_vlr train RECIPE train.mixed_precision=bf16

    vision= and text= take timm:NAME, hf:NAME, a folder, a file or scratch:KIND. The folder that is written
    holds the model, which AutoModel.from_pretrained reads, and the checkpoints that --resume goes on from.
    """
    from hf_vlr.training.recipe import load_recipe

    lines = overrides(words, data)
    # Read here first: a misspelt key is reported at once, not after the seconds it takes to import torch.
    load_recipe(recipe, lines)
    from hf_vlr.training.run import train_recipe

    say(f"written to {train_recipe(recipe, lines, out, resume)}")
