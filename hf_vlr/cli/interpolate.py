"""`hf-vlr interpolate`."""

import click

from hf_vlr.cli.grammar import data_option, overrides, settings
from hf_vlr.cli.output import say, say_table
from hf_vlr.errors import UserError

OWN = ("weight", "criterion")


@click.command()
@click.argument("zero_shot")
@click.argument("fine_tuned")
@settings
@data_option()
@click.option("--predictor", metavar="NAME", help="What is chosen by: fused, visual …; by default fused, language …")
@click.option("--out", metavar="DIR", required=True, help="A new folder for the model.")
def command(
    zero_shot: str, fine_tuned: str, words: tuple[str, ...], data: str | None, predictor: str | None, out: str
) -> None:
    """Mix the weights of two models of one architecture, as before and after fine-tuning (WiSE-FT).

    ZERO_SHOT and FINE_TUNED are folders that save_pretrained wrote. weight=1 is the fine-tuned model, weight=0 the
    other; of several weights (0, 0.1 … 1 where none is given) the best on the validation images of --data is taken,
    by default the data of the run in FINE_TUNED. The result is a folder like theirs.

    \b
    hf-vlr interpolate CLIP runs/one --out runs/between weight=0.5
    hf-vlr interpolate CLIP runs/one --out runs/between
    hf-vlr interpolate CLIP runs/one --out runs/between --data imagefolder:photos weight=0,0.5,1 criterion=accuracy
    hf-vlr eval runs/between --data imagefolder:photos
    """
    own = dict(word.split("=", 1) for word in words if word.partition("=")[0] in OWN)
    others = overrides(tuple(word for word in words if word.partition("=")[0] not in OWN), data)
    try:
        weights = tuple(float(part) for part in own["weight"].split(",")) if "weight" in own else ()
    except ValueError:
        raise UserError(f"weight={own['weight']}: give a number from 0 to 1, or several to choose from") from None
    if not all(0.0 <= weight <= 1.0 for weight in weights):
        raise UserError(f"weight={own['weight']}: give the fine-tuned model's share, from 0 to 1")
    if len(weights) == 1:
        _check_unused(own, others, predictor)
    from hf_vlr.evaluation.weight_sweep import write_interpolation

    criterion = own.get("criterion", "balanced-nll")
    made = write_interpolation(
        zero_shot, fine_tuned, out, weights=weights, overrides=others, criterion=criterion, predictor=predictor
    )
    if made.tuned is not None:
        say(f"{criterion} on {made.tuned.split}, {made.tuned.images} images")
        say_table([(f"weight={weight:g}", f"{score:.4f}") for weight, score in zip(made.tuned.grid, made.tuned.scores)])
        if made.tuned.warning:
            say(f"warning: {made.tuned.warning}")
    say(f"weight={made.weight:g}, written to {made.folder}")


def _check_unused(own: dict[str, str], others: list[str], predictor: str | None) -> None:
    """Raise `UserError` for what only a choice among weights would need."""
    unused = [f"{key}=" for key in own if key == "criterion"] + [f"{word.partition('=')[0]}=" for word in others]
    unused += ["--predictor"] if predictor else []
    if unused:
        raise UserError(f"weight is given, so nothing is chosen: leave {', '.join(unused)} out")
