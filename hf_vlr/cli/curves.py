"""`hf-vlr curves`."""

import click

from hf_vlr.cli.output import say, say_table


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--out", metavar="FILE.png", default="curves.png", show_default=True, help="Where the picture goes.")
@click.option("--key", default="loss", show_default=True, help="What is drawn: any key of log.jsonl.")
def command(runs: tuple[str, ...], out: str, key: str) -> None:
    """Draw what the folders RUN... have logged, in training and on validation data, over their steps.

    \b
    hf-vlr train RECIPE train.validate_every=0
    hf-vlr curves runs/RECIPE --out overfitting.png
    hf-vlr curves runs/first runs/second --key grad_norm
    """
    from hf_vlr.training.curves import plot_curves, read_curve

    curves = [read_curve(run, key) for run in runs]
    rows = [("run", f"last {key}", "last on validation", "lowest on validation")]
    for curve in curves:
        best = curve.best()
        last = [f"{points[-1][1]:.4g}" if points else "-" for points in (curve.training, curve.validation)]
        rows.append((curve.name, *last, f"{best[1]:.4g} at step {best[0]}" if best else "-"))
    say_table(rows)
    say(f"written to {plot_curves(curves, out, key)}")
