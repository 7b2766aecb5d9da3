"""`hf-vlr train`."""

import click

from hf_vlr.cli.grammar import data_option, overrides, settings
from hf_vlr.cli.output import is_main_process, say
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
@click.option("--dry-run", "dry", is_flag=True, help="Say what would be done, and what it would cost, and do nothing.")
@click.option("--full", is_flag=True, help="With --dry-run: every key of the recipe.")
def command(
    recipe: str, words: tuple[str, ...], data: str | None, out: str | None, resume: bool, dry: bool, full: bool
) -> None:
    """Train what RECIPE describes: a packaged name (see hf-vlr recipes) or a YAML file.

    \b
    hf-vlr train RECIPE --data imagefolder:photos data.texts=texts.jsonl
    hf-vlr train RECIPE vision=timm:resnet50 text=hf:ORG/NAME model.freeze=text_model
    hf-vlr train RECIPE --out runs/second model.init=runs/first train.epochs=5
    accelerate launch --num_processes 4 -m hf_vlr train RECIPE train.mixed_precision=bf16
    hf-vlr train RECIPE --data imagefolder:photos --dry-run

    vision= and text= take timm:NAME, hf:NAME, a folder, a file or scratch:KIND. The folder that is written
    holds the model, which AutoModel.from_pretrained reads, and the checkpoints that --resume goes on from.

    --dry-run prints the resolved recipe, the data's classes, steps, parameters with their rates, operations, and
    estimates of memory and time. It trains, downloads and writes nothing (configurations of towers aside); what is not
    at hand, be it data or a tower, is named and left out.
    """
    from hf_vlr.training.recipe import load_recipe

    lines = overrides(words, data)
    if full and not dry:
        raise click.UsageError("--full is for --dry-run")
    # Read here first: a misspelt key is reported at once, not after the seconds it takes to import torch.
    loaded = load_recipe(recipe, lines + ([f"output={out}"] if out else []))
    if dry:
        from hf_vlr.cli.dry_run import report
        from hf_vlr.training.dry_run import dry_run

        sheet = report(dry_run(loaded), recipe, full)
        if is_main_process():
            sheet.show()
        return
    from hf_vlr.training.run import leave, train_recipe

    say(f"written to {train_recipe(recipe, lines, out, resume)}")
    leave()
