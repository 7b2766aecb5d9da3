"""`hf-vlr compare`."""

import click

from hf_vlr.cli.output import say


@click.command()
@click.argument("runs", metavar="[NAME=]RUN[,RUN...][:PREDICTOR]...", nargs=-1, required=True)
@click.option("--against", metavar="NAME", help="The row that all others are compared with; the first by default.")
@click.option(
    "--predictor", metavar="NAME", help="For rows that name none; else what posthoc adjusted last, fused, language …"
)
@click.option("--rule", default="oltr", show_default=True, help="Shot groups: oltr, vl-ltr or custom:HI,LO.")
@click.option("--counts-from", metavar="NAME", help="The row whose training counts define the shot groups.")
@click.option("--allow-different-splits", is_flag=True, help="Splits of other names hold the same images.")
@click.option(
    "--resamples", type=click.IntRange(1), default=10000, show_default=True, help="Draws of each interval and test."
)
@click.option("--out", metavar="DIR", help="Also write compare.html and compare.json there.")
def command(
    runs: tuple[str, ...],
    against: str | None,
    predictor: str | None,
    rule: str,
    counts_from: str | None,
    allow_different_splits: bool,
    resamples: int,
    out: str | None,
) -> None:
    """Hold runs against each other, image by image, and say which differences are more than chance.

    A RUN is the folder of a run or an evaluation, or its predictions.npz. Folders that are joined by commas are seeds
    of one row: their mean is compared, and their spread counts as chance, too.

    A difference is called better or worse only if its 95 % paired-bootstrap interval over the test images excludes
    zero and it passes a randomisation test over the images, and over seeds Student's t test, after Holm's adjustment
    for all the numbers that are compared. What differs in the runs' protocols is marked.

    \b
    hf-vlr compare runs/first runs/second
    hf-vlr compare before=a-0,a-1,a-2 after=b-0,b-1,b-2 --out compared
    hf-vlr compare visual=runs/vl-ltr:visual fused=runs/vl-ltr:fused --rule vl-ltr
    """
    from hf_vlr.comparison.comparison import Options, compare_runs
    from hf_vlr.comparison.console import show

    options = Options(against, predictor, rule, resamples, counts_from, allow_different_splits)
    found = compare_runs(runs, options)
    say(show(found))
    if out is not None:
        from hf_vlr.comparison.document import write_comparison
        from hf_vlr.comparison.page import comparison_html

        say()
        for path in write_comparison(out, found, comparison_html(found)):
            say(f"written to {path}")
