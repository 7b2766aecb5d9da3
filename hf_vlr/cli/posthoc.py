"""`hf-vlr posthoc`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_vlr.cli.output import say
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    from hf_vlr.evaluation.adjustment_inputs import Places

FILE = {"metavar": "FILE"}
SETTINGS = ("eval.rule", "eval.resamples", "eval.report")


@click.command()
@click.argument("words", nargs=-1, metavar="[PREDICTIONS] METHOD [KEY=VALUE]... [METHOD]...")
@click.option("--tune", metavar="PREDICTIONS", help="The same model on another split, which parameters are chosen on.")
@click.option("--with", "zero_shot", metavar="PREDICTIONS", help="A zero-shot model on the images of PREDICTIONS.")
@click.option("--tune-with", metavar="PREDICTIONS", help="That zero-shot model on the images of --tune.")
@click.option(
    "--predictor",
    metavar="NAME",
    help="What is adjusted: fused, visual …; by default the last that posthoc has adjusted, else fused, language …",
)
@click.option("--logits", **FILE, help="In place of PREDICTIONS: scores of any model, images x classes, .npy.")
@click.option("--labels", **FILE, help="Their classes, 0 … C-1.")
@click.option("--train-counts", **FILE, help="Training images of each class.")
@click.option("--features", **FILE, help="What the last layer saw, images x width.")
@click.option("--classifier", **FILE, help="The last layer's weight, classes x width.")
@click.option("--bias", **FILE, help="The last layer's bias; τ-normalised weights go without.")
@click.option("--tune-logits", **FILE, help="--logits, --labels and --features of the images to choose on.")
@click.option("--tune-labels", **FILE)
@click.option("--tune-features", **FILE)
@click.option("--out", metavar="DIR", help="Write all predictors and their report to DIR, as hf-vlr eval does.")
def command(words: tuple[str, ...], out: str | None, predictor: str | None, **places: str | None) -> None:
    """Adjust PREDICTIONS, a folder of hf-vlr train or eval, without training: METHODs, one after the other.

    Nothing is chosen on the images that are reported. What a method chooses, it chooses on --tune, which has to be
    another split; a value that is given, as in tau=1, needs none, and several, as in tau=0,0.5,1, are those tried.

    \b
    hf-vlr posthoc runs/two logit-adjustment tau=1
    hf-vlr eval runs/two eval.splits=test,validation                 two splits: one to report, one to choose on
    hf-vlr posthoc runs/two/eval/test --tune runs/two/eval/validation logit-adjustment temperature --out runs/three
    hf-vlr posthoc runs/two prior-correction prior=backward-10
    hf-vlr posthoc A/test --tune A/validation temperature em
    hf-vlr posthoc A/test --tune A/validation --with CLIP/test --tune-with CLIP/validation gla
    hf-vlr posthoc A/test --tune A/validation --predictor visual ensemble with=language
    hf-vlr posthoc --logits z.npy --labels y.npy --train-counts n.npy logit-adjustment tau=1
    hf-vlr posthoc --features x.npy --classifier w.npy --labels y.npy --train-counts n.npy tau-norm tau=1

    \b
    logit-adjustment   scores − tau · log training share. tau=, criterion=
    prior-correction   for test images of known class shares. prior=uniform, forward-10, backward-10 … or a .npy file;
                       learnt=, the shares in the scores: train, sqrt or uniform; by default those that follow from
                       how the run drew and weighed the classes
    em                 the same for unknown shares, estimated from the test images without their labels. learnt=
    temperature        probabilities made honest, predictions unchanged. t=; criterion=nll or balanced-nll
    tau-norm           the last layer's weights over their lengths to the power tau. tau=, criterion=
    ensemble           mixed with a zero-shot model. weight= (1: as it was), space=probability or logit, criterion=,
                       with=NAME: a predictor of --with, or without --with one of PREDICTIONS
    gla                both models freed of their class shares, those of the zero-shot model estimated on --tune. with=,
                       learnt=

    \b
    criterion=balanced-nll   what a parameter is chosen by; also nll, balanced-accuracy, accuracy
    eval.rule=oltr           which classes are many, medium and few; also eval.resamples, eval.report
    """
    settings = tuple(word for word in words if word.startswith("eval."))
    words = tuple(word for word in words if word not in settings)
    arrays = places["logits"] or (places["features"] and places["labels"])
    if not words and not arrays:
        raise UserError("nothing to adjust: name PREDICTIONS, or give --logits, --labels and --train-counts")
    source, methods = (None, words) if arrays else (words[0], words[1:])
    _check_out(out, (source, *(places[name] for name in ("tune", "zero_shot", "tune_with"))))
    from hf_vlr.evaluation.adjustment import adjust, parse_steps, write_priors
    from hf_vlr.evaluation.adjustment_inputs import Layer, read_material
    from hf_vlr.evaluation.adjustment_methods import METHODS
    from hf_vlr.evaluation.record import record
    from hf_vlr.training.options import Recipe
    from hf_vlr.training.recipe import override_recipe

    options = override_recipe(Recipe(task="recognition"), settings).eval
    for setting in settings:
        key = setting.partition("=")[0]
        if key not in SETTINGS:
            raise UserError(
                f"{key} says nothing of predictions that exist: leave it out; there are {', '.join(SETTINGS)}"
            )
    if source in METHODS and not Path(source).exists():
        raise UserError(f"{source} is a method: name PREDICTIONS before it, or give --logits")
    steps = parse_steps(methods)
    layer = Layer.read(places["classifier"], places["bias"])
    reported, tuning = _places(source, places)
    material = read_material(reported, places["train_counts"], layer)
    choosing = None if tuning is None else read_material(tuning, places["train_counts"], layer)
    adjusted = adjust(material, steps, choosing, classifier=layer and layer.weight, predictor=predictor)
    for line in (*adjusted.lines, *(f"warning: {line}" for line in adjusted.warnings), ""):
        say(line)
    record(adjusted.predictions, Path(out) if out else None, options)
    if out and adjusted.priors:
        write_priors(Path(out), adjusted.predictions, adjusted.priors)
    if out:
        say(f"written to {out}")


def _check_out(out: str | None, places: tuple[str | None, ...]) -> None:
    """Raise `UserError` where the result would be written over predictions that are read."""
    for place in map(Path, filter(None, places)):
        # arrays of any name may lie where they will
        folder = place.parent if place.is_file() and place.suffix != ".npy" else place
        if out and Path(out).resolve() == folder.resolve():
            raise UserError(f"--out {out} holds the predictions that are read: name another folder")


def _places(source: str | None, places: dict[str, str | None]) -> "tuple[Places, Places | None]":
    """Where the reported images and those to choose on lie; the latter are None where none are named."""
    from hf_vlr.evaluation.adjustment_inputs import Places

    if source and places["train_counts"]:
        raise UserError(f"--train-counts goes with --logits; {source} knows its own")
    names = ("logits", "labels", "features")
    reported = Places("--", source, *(places[name] for name in names), places["zero_shot"])
    tuning = Places("--tune-", places["tune"], *(places[f"tune_{name}"] for name in names), places["tune_with"])
    if tuning.predictions or tuning.logits or tuning.labels:
        return reported, tuning
    for option, place in (("--tune-with", tuning.zero_shot), ("--tune-features", tuning.features)):
        if place:
            raise UserError(f"{option} needs the labels of its images: give --tune or --tune-labels")
    return reported, None
