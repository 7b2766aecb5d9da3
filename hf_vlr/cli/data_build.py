"""`hf-vlr data build`."""

import json
from pathlib import Path
from typing import Any

import click

from hf_vlr.cli.grammar import as_options, settings
from hf_vlr.cli.output import say, say_table
from hf_vlr.errors import UserError


@click.command()
@click.argument("name")
@settings
@click.option("--source-dir", metavar="DIR", help="Where the downloaded files are.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the Parquet dataset.")
@click.option("--texts", metavar="SPEC", help="Short for texts=SPEC: the class texts, as data.texts of a recipe.")
@click.option("--strict", is_flag=True, help="Short for strict=true: any fault found fails the build.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Publish the dataset there; a built OUT is pushed as it is.")
@click.option("--private", is_flag=True, help="Make the repository on the Hub a private one.")
def command(
    name: str,
    words: tuple[str, ...],
    source_dir: str | None,
    out: str,
    texts: str | None,
    strict: bool,
    push_to_hub: str | None,
    private: bool,
) -> None:
    """Make a Parquet dataset of dataset NAME's published files, with its class texts, for train and load_dataset.

    NAME is imagenet-lt, places-lt, inaturalist2018, cifar-lt or openclipart-lt. Nothing is downloaded: DIR holds what
    you fetched. Every fault of the files is counted in OUT/build_report.json and its rows are left out. A build that
    was interrupted goes on when it is started again.

    \b
    hf-vlr data build imagenet-lt --source-dir imagenet --out data/imagenet-lt size=256 num_proc=8
    hf-vlr data build imagenet-lt --source-dir imagenet --out data/imagenet-lt --texts wiki:imagenet/wiki --strict
    hf-vlr data build cifar-lt --source-dir downloads --out data/cifar100-lt imbalance_factor=100
    hf-vlr data build openclipart-lt --out data/openclipart size=224
    hf-vlr train RECIPE --data data/imagenet-lt

    \b
    images=embed    store the pictures' bytes; paths leaves them where they are (a dataset for this machine)
    size=N          resize the shorter side to N pixels
    verify=true     decode every picture, to find broken ones now
    num_proc=2      processes
    strict=false    leave out what is faulty; true fails
    texts=SPEC      parts joined by +, such as wiki:DIR+clip-templates (hf-vlr data texts --help lists them)

    An option that is none of the builder's is answered with those it has. ImageNet's, Places' and iNaturalist's
    licenses do not let you publish their pictures: push those with --private. Log in first: hf auth login.
    """
    options: dict[str, Any] = ({"texts": texts} if texts else {}) | ({"strict": True} if strict else {})
    options |= as_options(words)
    if private and not push_to_hub:
        raise UserError("--private is for --push-to-hub ORG/NAME; give both or neither")
    if push_to_hub:
        check_push(push_to_hub, options)
    folder = Path(out).expanduser()
    if push_to_hub and (folder / "README.md").is_file():
        from hf_vlr.data.publishing import require_publishable

        require_publishable(folder)
        say(f"{out} exists already and is pushed as it is; remove it to build anew")
    else:
        from hf_vlr.data.registry import build_dataset

        build_dataset(name, source_dir, out, **options)
        say(f"written to {out}")
    say_table(summary(folder))
    if push_to_hub:
        from hf_vlr.data.publishing import push_dataset

        say(f"pushed: {push_dataset(folder, push_to_hub, private=private)}")
    say()
    say_table(next_steps(out, push_to_hub))


def check_push(repo_id: str, options: dict[str, Any]) -> None:
    """What would fail after hours of building fails now."""
    from hf_vlr.data.publishing import check_destination

    if options.get("images") == "paths":
        raise UserError("images=paths makes a dataset for this machine alone; leave it out, or --push-to-hub")
    check_destination(repo_id)


def summary(out: Path) -> list[tuple[str, str]]:
    """Rows of each split, and the faults of the build report where there is one."""
    import pyarrow.parquet as pq

    from hf_vlr.data.manifest import Findings

    rows: dict[str, int] = {}
    for file in sorted(out.glob("data/*.parquet")):
        split = file.name.rsplit("-", 3)[0]
        rows[split] = rows.get(split, 0) + pq.read_metadata(file).num_rows
    lines = [
        (f"split {split}", f"{number:,} images")
        for split, number in sorted(rows.items(), key=lambda row: row[0] != "train")
    ]
    texts = sum(pq.read_metadata(file).num_rows for file in out.glob("texts/*.parquet"))
    lines.append(("class texts", f"{texts:,} sentences" if texts else "none"))
    report = out / "build_report.json"
    if not report.is_file():
        return lines
    found = json.loads(report.read_text(encoding="utf-8"))
    faults = Findings(found["dropped"], found["told"]).lines()
    lines += [("found", fault) for fault in faults] or [("found", "no faults")]
    return [*lines, ("every case", str(report))] if faults else lines


def next_steps(out: str, repo_id: str | None) -> list[tuple[str, str]]:
    """How to train on the dataset and how to load it."""
    lines = [
        ("train", f"hf-vlr train RECIPE --data {out}"),
        ("look", f"hf-vlr data stats {out}"),
        ("load", f'datasets.load_dataset("{out}"), its class texts: datasets.load_dataset("{out}", "texts")'),
    ]
    return lines if repo_id is None else [*lines, ("from the Hub", f'datasets.load_dataset("{repo_id}")')]
