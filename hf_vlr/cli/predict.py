"""`hf-vlr predict`."""

from pathlib import Path
from typing import Any

import click

from hf_vlr.cli.output import say
from hf_vlr.errors import UserError


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", default=3, show_default=True, type=click.IntRange(min=1), help="Classes per image.")
@click.option("--sentences", default=2, show_default=True, type=click.IntRange(min=0), help="Sentences per class.")
def command(model: str, images: tuple[str, ...], top: int, sentences: int) -> None:
    """Name what each IMAGE shows, with both branches' scores and the sentences that were attended to.

    MODEL is a recogniser: a folder that hf-vlr train wrote, or a Hub id.

    \b
    hf-vlr predict runs/RECIPE photo.jpg another.png --top 5
    """
    from hf_vlr.data.images import decode_image

    # All of them before the model: a wrong path is reported at once.
    pictures = [decode_image(Path(image), f"image {image}") for image in images]
    recogniser = _load(model)
    for image, picture in zip(images, pictures):
        _show(image, recogniser.predict([picture], top_k=top, num_sentences=sentences)[0])


def _load(model: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model {model} cannot be read: {str(error).splitlines()[0]}") from error
    if "VLLTRForImageClassification" not in (config.architectures or []):
        kind = (config.architectures or [config.model_type])[0]
        raise UserError(f"model {model} is a {kind}, not a recogniser; train one with task=recognition")
    return AutoModelForImageClassification.from_pretrained(model, config=config, trust_remote_code=False)


def _show(image: str, prediction: dict[str, Any]) -> None:
    say(f"{image}: {prediction['label']}")
    for found in prediction["classes"]:
        evidence = []
        if found["language_score"] is not None:
            evidence.append(f"visual {found['visual_score']:.1%}, language {found['language_score']:.1%}")
        if found["train_images"] is not None:
            evidence.append(f"{found['train_images']} training images")
        say(f"  {found['score']:6.1%}  {found['label']}" + (f"  ({'; '.join(evidence)})" if evidence else ""))
        for sentence in found["sentences"]:
            text = sentence["text"] or "(a sentence that the checkpoint does not keep)"
            say(f"          {sentence['weight']:.2f}  {text}")
