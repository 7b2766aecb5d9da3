"""`hf-vlr push`."""

import click

from hf_vlr.cli.output import say


@click.command()
@click.argument("folder", metavar="RUN_DIR")
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository a private one.")
@click.option("--dry-run", "dry", is_flag=True, help="Show the files and the card; touch no network.")
@click.option("--dataset", metavar="ORG/NAME", help="Where the data set is on the Hub, if RUN_DIR used a local copy.")
@click.option("--license", metavar="ID", help="The weights' license, such as cc-by-4.0. Default: unknown.")
@click.option("--predictions", is_flag=True, help="Upload predictions.npz too.")
@click.option("--space", metavar="ORG/NAME", help="Also make a Space there that shows the model.")
def command(
    folder: str,
    repo_id: str,
    private: bool,
    dry: bool,
    dataset: str | None,
    license: str | None,
    predictions: bool,
    space: str | None,
) -> None:
    """Publish the model in RUN_DIR as ORG/NAME on the Hub, in one commit, with a card written from the run.

    RUN_DIR is what hf-vlr train or hf-vlr convert wrote. Weights, processor, the code that loads them without this
    package, recipe, measurements, report and plots go; checkpoints and paths of this machine do not. Class texts go
    where each of them states its license. Pushing again brings the repository up to date and leaves files of others
    alone; what is uploaded is not uploaded twice. Log in first: hf auth login.

    \b
    hf-vlr push runs/RECIPE ORG/NAME --dry-run
    hf-vlr push runs/RECIPE ORG/NAME --private
    hf-vlr push runs/RECIPE ORG/NAME --dataset ORG/DATA --license cc-by-4.0 --space ORG/DEMO
    """
    from hf_vlr.hub.push import push_run

    if space:
        from hf_vlr.hub.connection import check_name

        check_name(space)
    url = push_run(
        folder,
        repo_id,
        private=private,
        dry_run=dry,
        dataset=dataset,
        license=license,
        predictions=predictions,
        say=say,
    )
    if not dry:
        say(f"pushed: {url}")
    if space:
        from hf_vlr.hub.space import push_space

        address = push_space(space, repo_id, private=private, dry_run=dry, say=say)
        if not dry:
            say(f"Space: {address}")
