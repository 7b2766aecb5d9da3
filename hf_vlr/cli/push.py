"""`hf-vlr push`."""

from pathlib import Path

import click

from hf_vlr.cli.output import say
from hf_vlr.errors import UserError


@click.command()
@click.argument("folder", metavar="RUN_DIR")
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--dry-run", "dry", is_flag=True, help="Show the files and the card; touch no network.")
@click.option("--dataset", metavar="ORG/NAME", help="Where the data set is on the Hub, if RUN_DIR used a local copy.")
@click.option("--license", metavar="ID", help="The weights' license, such as cc-by-4.0. Default: unknown.")
@click.option("--predictions", is_flag=True, help="Upload predictions.npz too.")
@click.option("--space", metavar="ORG/NAME", help="Also make a Space there that shows the model.")
@click.option("--examples", metavar="DIR", help="Pictures for the Space. Default: the run's own, or the quickstart's.")
def command(
    folder: str,
    repo_id: str,
    private: bool,
    dry: bool,
    dataset: str | None,
    license: str | None,
    predictions: bool,
    space: str | None,
    examples: str | None,
) -> None:
    """Publish the model in RUN_DIR as ORG/NAME on the Hub, in one commit, with a card written from the run.

    RUN_DIR is what hf-vlr train or hf-vlr convert wrote. Weights, processor, the code that loads them without this
    package, recipe, measurements, report and plots go; checkpoints and paths of this machine do not. Class texts go
    where each of them states its license. Pushing again brings the repository up to date and leaves files of others
    alone; what is uploaded is not uploaded twice. Log in first: hf auth login.

    \b
    hf-vlr push runs/RECIPE ORG/NAME --dry-run
    hf-vlr push runs/RECIPE ORG/NAME --private
    hf-vlr push runs/RECIPE ORG/NAME --dataset ORG/DATA --license cc-by-4.0 --space ORG/DEMO --examples my/pictures
    """
    from hf_vlr.hub.push import UNCHANGED, push_run

    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        say(line)

    if space is not None:
        from hf_vlr.hub.space import push_space

        examples = examples or own_examples(folder)
        # before anything is uploaded: a name that is none, pictures that cannot be read
        push_space(space, repo_id, dry_run=True, examples=examples, say=lambda line: None)
        if examples:
            say(f"the Space shows pictures of {examples}")
    elif examples is not None:
        raise UserError("--examples are pictures of a Space; name it with --space ORG/NAME")
    url = push_run(
        folder,
        repo_id,
        private=private,
        dry_run=dry,
        dataset=dataset,
        license=license,
        predictions=predictions,
        space=space,
        say=tell,
    )
    if not dry:
        say(f"there: {url}" if UNCHANGED in told else f"pushed: {url}")
    if space is not None:
        address = push_space(space, repo_id, private=private, dry_run=dry, examples=examples, say=say)
        if not dry:
            say(f"Space: {address}")


def own_examples(folder: str) -> str | None:
    """The pictures of a run: its folder `examples`, or the one that the quickstart drew beside its runs."""
    run = Path(folder).expanduser()
    if (run / "examples").is_dir():
        return str(run / "examples")
    drawn = run.parent / "examples"
    return str(drawn) if drawn.is_dir() and (run.parent / "quickstart.md").is_file() else None
