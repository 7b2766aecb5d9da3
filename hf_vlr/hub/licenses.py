"""The license of a model: what its publisher states, beside what is known of that of its images and texts."""

import re

from hf_vlr.errors import UserError
from hf_vlr.hub.markdown import cell
from hf_vlr.hub.run_facts import GENERATED, RunFacts

UNKNOWN = "unknown"
IDENTIFIER = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*", re.IGNORECASE)


def check_license(stated: str) -> None:
    """`UserError` for what cannot be the identifier of a license on the Hub."""
    if not IDENTIFIER.fullmatch(stated):
        raise UserError(f"license {stated!r}: not an identifier; write one such as cc-by-4.0, or `other`")


def model_license(facts: RunFacts, stated: str | None = None) -> tuple[str, str]:
    """(identifier on the Hub, sentences that say why).

    Only the publisher can license the weights: where nothing is `stated` the identifier is `unknown`, whatever the
    images and texts came under.
    """
    gaps, known = unknowns(facts), sorted({use.license for use in facts.texts if use.license} | {*_of_data(facts)})
    made_of = f" Stated of the images and texts: {', '.join(map(cell, known))}." if known else ""
    made_of += f" Not known: {'; '.join(gaps)}." if gaps else ""
    if stated:
        return stated.lower(), f"License of these weights, as their publisher states it: `{stated.lower()}`.{made_of}"
    return UNKNOWN, f"License of these weights: unknown, their publisher has stated none.{made_of}"


def unknowns(facts: RunFacts) -> list[str]:
    """What the license of a model may depend on and nobody has stated, in words."""
    if facts.conversion:
        return ["the license that the converted weights, others' work, came with"]
    if facts.recipe is None:
        return ["what they were trained on, for want of a recipe"]
    found = []
    if facts.data_name not in GENERATED and not facts.data_license:
        found.append("the license of the training images")
    if facts.setting("data.mix"):
        found.append("the license of the images that were mixed in")
    bare = sum(use.sentences for use in facts.texts if not use.license)
    if bare:
        found.append(f"the license of {bare:,} of {sum(use.sentences for use in facts.texts):,} sentences")
    if facts.protocol.get("pretraining"):
        found.append(f"the license of {cell(facts.protocol['pretraining'])}, from whose weights training began")
    return found


def _of_data(facts: RunFacts) -> list[str]:
    return [facts.data_license] if facts.data_license else []
