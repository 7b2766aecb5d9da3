"""`hf-vlr export`."""

from typing import Any

import click

from hf_vlr.cli.grammar import as_options, data_option, overrides, settings
from hf_vlr.cli.output import say, say_table
from hf_vlr.errors import UserError

OWN = ("int8.", "latency.")


@click.command()
@click.argument("model")
@settings
@click.option("--out", metavar="DIR", required=True, help="A new folder.")
@click.option("--int8", is_flag=True, help="Also write model.int8.onnx, and with --data say what it costs in accuracy.")
@click.option("--benchmark", is_flag=True, help="Time torch, onnxruntime and int8 on single images.")
@data_option()
@click.option("--texts", metavar="TEXTS", help="Short for data.texts=TEXTS: what a dual encoder's classes are called.")
@click.option("--class-names", metavar="FILE", help="A dual encoder's classes without --data, a name a line.")
def command(model: str, words: tuple[str, ...], out: str, int8: bool, benchmark: bool, **given: str | None) -> None:
    """Write MODEL as ONNX files for a server, with a program of a few lines that runs them without torch.

    MODEL is a folder or a Hub id. A recogniser becomes model.onnx: pixels to fused log-probabilities and both branches'
    logits, the anchors folded in. A dual encoder becomes an image tower and a text tower; with --data or --class-names
    its classes are put in, as a zero-shot classifier. Any number of images fits. What was written is compared with the
    model, and export.json says how far they are apart.

    \b
    hf-vlr export runs/two --out served/two
    hf-vlr export runs/two --out served/two8 --int8 --data imagefolder:photos
    hf-vlr export runs/one --out served/clip --class-names animals.txt --texts clip-templates:7
    hf-vlr export runs/two --out served/timed --benchmark latency.runs=200 latency.threads=1

    \b
    int8.kind=auto         static for towers of convolutions, which needs --data; dynamic for others
    int8.images=256        training images that a static model is calibrated on
    int8.margin=0.01       a greater fall of accuracy, or of balanced accuracy, is warned of
    int8.reduce_range=false   true for x86 processors without VNNI
    latency.runs=50        timed images of each engine;  latency.threads=N
    """
    own = tuple(word for word in words if word.startswith(OWN))
    others = overrides(tuple(word for word in words if not word.startswith(OWN)), given["data"])
    if given["texts"] is not None:
        others.append(f"data.texts={given['texts']}")
    with_data = any(word.startswith("data.source=") for word in others)
    if any(word.startswith("data.texts=") for word in others) and not (with_data or given["class_names"]):
        raise UserError("texts of which classes? give --data SOURCE or --class-names FILE")
    from hf_vlr.export.options import export_options

    options = export_options(as_options(own), int8=int8, benchmark=benchmark)
    from hf_vlr.export.exporting import export_model

    record = export_model(model, out, options, overrides=others, class_names=given["class_names"])
    _show(record)
    say(f"written to {out}")


def _show(record: dict[str, Any]) -> None:
    from hf_vlr.export.told import accuracy_lines, file_rows, latency_of, warnings_of

    say_table(file_rows(record))
    for line in accuracy_lines(record):
        say(line)
    timed = latency_of(record)
    if timed is not None:
        say()
        say_table(timed.rows())
        say(timed.conditions())
    for line in warnings_of(record):
        say(f"warning: {line}")
