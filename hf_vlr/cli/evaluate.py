"""`hf-vlr eval`."""

from pathlib import Path
from typing import Any

import click

from hf_vlr.cli.grammar import data_option, overrides
from hf_vlr.errors import UserError

EPILOG = """\b
What is written, to DIR/eval/SPLIT for a model, to DIR for arrays:
  metrics.json     every number, with the protocol it was measured under
  report.html      the same to look at: plots, examples, what the tail is taken for
  per_class.csv    a row for each class and predictor
  predictions.npz  scores, labels and training counts, for compare, posthoc and --predictions
Encoded images and texts are kept in the assets cache of the Hugging Face libraries, so that a second evaluation does
not run the towers again; data.cache_dir=DIR keeps them elsewhere, data.cache_dir=off nowhere.
"""


# what only --logits needs
FILES = ("labels", "train_counts", "class_names", "predictor")


@click.command(epilog=EPILOG)
@click.argument("words", nargs=-1, metavar="[MODEL] [KEY=VALUE]...")
@data_option()
@click.option("--split", metavar="SPLIT", help="Short for eval.splits=[SPLIT]: test, validation, train or unseen.")
@click.option("--out", metavar="DIR", help="Where to write; by default beside the model, for a Hub id to runs/NAME.")
@click.option(
    "--reference", metavar="FOLDER", help="An evaluation on the same split; the report shows the gain over it."
)
@click.option(
    "--class-order", is_flag=True, help="The model's outputs are the dataset's classes in order, not by name."
)
@click.option("--logits", metavar="FILE", help="Scores [images, classes] or predicted classes, .npy: no model is run.")
@click.option("--labels", metavar="FILE", help="With --logits: true classes, .npy, .npz, .csv or .txt.")
@click.option("--train-counts", metavar="FILE", help="With --logits: training images of each class.")
@click.option("--class-names", metavar="FILE", help="With --logits: a name a line.")
@click.option("--predictor", metavar="NAME", help="With --logits: what the row of numbers is called.")
@click.option("--predictions", metavar="FOLDER", help="A run or an evaluation to measure anew, without its model.")
def command(words: tuple[str, ...], **options: Any) -> None:
    """Measure MODEL on a dataset, or predictions that exist already.

    MODEL is a folder or a Hub id: what hf-vlr train wrote (each branch and their fusion), a dual encoder such as CLIP
    or SigLIP (zero-shot by data.texts), or any image classifier of transformers or timm. Overall, balanced and
    many/medium/few accuracy under eval.rule, calibration, intervals and more, each row from one predictor.

    \b
    hf-vlr eval runs/RECIPE --data imagefolder:photos
    hf-vlr eval openai/clip-vit-base-patch32 --data imagefolder:photos data.texts=clip-templates:1
    hf-vlr eval timm/resnet50.a1_in1k --data ORG/NAME eval.crops=five --reference runs/RECIPE
    hf-vlr eval --logits logits.npy --labels labels.npy --train-counts counts.npy eval.rule=vl-ltr --out DIR
    hf-vlr eval --predictions runs/RECIPE eval.rule=custom:50,10
    """
    if options["logits"] or options["predictions"]:
        _arrays(words, options)
    else:
        _model(words, options)


def _model(words: tuple[str, ...], options: dict[str, Any]) -> None:
    _refuse(options, FILES, "--logits")
    if not words:
        raise UserError("name a MODEL, or give --logits or --predictions")
    model, *rest = words
    settings = overrides(tuple(rest), options["data"])
    named = any(word.startswith(("data.source=", "data=")) for word in settings)
    if not named and not (Path(model) / "recipe.yaml").is_file():
        raise UserError(f"Missing option '--data'. It says what {model} is measured on")
    if options["split"]:
        settings.append(f"eval.splits=[{options['split']}]")
    from hf_vlr.evaluate import evaluate_checkpoint

    reference, order = options["reference"], options["class_order"]
    evaluate_checkpoint(model, settings, options["out"], reference=reference, same_order=order)


def _arrays(words: tuple[str, ...], options: dict[str, Any]) -> None:
    if options["logits"] and options["predictions"]:
        raise UserError("give --logits or --predictions, not both")
    given = "--logits" if options["logits"] else "--predictions"
    for name in ("data", "split", "class_order"):
        if options[name]:
            raise UserError(f"--{name.replace('_', '-')} is for a MODEL; with {given} write protocol.split=NAME")
    settings = overrides(words)
    out, reference = options["out"], options["reference"]
    if options["predictions"]:
        _refuse(options, FILES, "--logits")
        from hf_vlr.evaluation.existing import measure_folder

        measure_folder(options["predictions"], settings, out, reference)
        return
    for name in ("labels", "train_counts"):
        if not options[name]:
            raise UserError(f"--logits needs --{name.replace('_', '-')} FILE")
    from hf_vlr.evaluation.arrays import read_arrays
    from hf_vlr.evaluation.existing import measure_predictions

    files = (options["logits"], options["labels"], options["train_counts"], options["class_names"])
    measure_predictions(read_arrays(*files, options["predictor"] or "logits"), settings, out, reference)


def _refuse(options: dict[str, Any], names: tuple[str, ...], needed: str) -> None:
    for name in names:
        if options[name]:
            raise UserError(f"--{name.replace('_', '-')} goes with {needed}")
