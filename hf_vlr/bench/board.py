"""All lines of the scoreboard, in their order."""

import difflib

from hf_vlr.bench.contest import Contest, Study
from hf_vlr.bench.contests import (
    anchors,
    answer,
    contrast,
    contrast_parts,
    growth,
    head_epoch,
    house,
    images,
    pairs,
    prompts,
    recognition,
    text_step,
    two_passes,
)
from hf_vlr.errors import UserError

BOARD: tuple[Contest | Study, ...] = (
    contrast.DISTINCT,
    contrast.DISTINCT_LABELLED,
    contrast.DISTINCT_SHARP,
    contrast_parts.PARTS,
    contrast.PROMPTED,
    contrast.PROMPTED_LABELLED,
    prompts.PROMPTS,
    prompts.TOKENS,
    text_step.TEXT_STEP,
    recognition.IMAGENET_TRAINING,
    recognition.INATURALIST_TRAINING,
    recognition.ONE_IMAGE,
    recognition.ONE_IMAGE_INATURALIST,
    anchors.SELECTION,
    images.EVALUATION,
    images.LARGE,
    images.TRAINING,
    answer.ANSWER,
    pairs.PATCHES_OF_16,
    pairs.PATCHES_OF_32,
    two_passes.TWO_PASSES,
    head_epoch.EPOCH,
    growth.GROWTH,
    house.STARTING,
    house.TESTING,
)


def entry_named(name: str) -> Contest | Study:
    """The line of a name. Raises `UserError` for another one."""
    for entry in BOARD:
        if entry.name == name:
            return entry
    names = [entry.name for entry in BOARD]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    raise UserError(f"there is no line {name!r} on the scoreboard; {hint}")


def contest_named(name: str) -> Contest:
    """The contest of a name. Raises `UserError` for a study."""
    entry = entry_named(name)
    if isinstance(entry, Contest):
        return entry
    raise UserError(f"{name} is no contest")
