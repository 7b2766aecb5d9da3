"""`hf-vlr data make-longtail`."""

import click

from hf_vlr.cli.grammar import as_options, settings
from hf_vlr.cli.output import say, say_table

SHOWN = 10


@click.command()
@click.argument("source")
@settings
@click.option("--out", required=True, metavar="DIR", help="Folder for the Parquet dataset.")
def command(source: str, words: tuple[str, ...], out: str) -> None:
    """Cut the training images of the labelled dataset SOURCE to a long tail and write it to a Parquet folder.

    SOURCE is imagefolder:DIR, a folder of Parquet files or ORG/NAME on the Hub. Other splits stay as they are.

    \b
    hf-vlr data make-longtail imagefolder:photos --out data/photos-lt imbalance_factor=100
    hf-vlr data make-longtail ORG/NAME --out data/name-lt imbalance_factor=50 type=step seed=1
    hf-vlr train RECIPE --data data/photos-lt

    \b
    imbalance_factor=100   images of the largest class divided by those of the smallest
    type=exp               exp (falls evenly), step (two halves) or pareto (with its power alpha=6)
    seed=0                 which images of a class are kept
    order=size             size: the class with most images stays the largest; given: classes in their order
    largest=N              images of the largest class; by default as many as it has
    image=, label=, text=  names of the columns, where they are not found
    """
    from hf_vlr.data.longtail_dataset import COLUMNS, LongTail, make_longtail

    options = as_options(words)
    columns = {key: str(options.pop(key)) for key in COLUMNS if key in options}
    cut = make_longtail(source, out, LongTail.from_mapping(options), columns)
    kept, available = cut.kept, cut.available
    rows = [("split train", f"{kept.sum()} of {available.sum()} images")]
    rows += [(f"split {split}", f"{count} images, as they were") for split, count in cut.others.items()]
    rows.append(("classes", f"{len(kept)} of {kept.max()} … {kept.min()} training images"))
    if cut.unlabelled:
        rows.append(("left out", f"{cut.unlabelled} training images without a class"))
    say_table(rows)
    short = cut.short()
    if short:
        say(f"classes with fewer images than their size: {len(short)}")
        for line in short[:SHOWN]:
            say(f"  {line}")
        if len(short) > SHOWN:
            say(f"  and {len(short) - SHOWN} more, all in the card")
    say(f"written to {out}; train on it with --data {out}")
