"""The model card: a page that a run's own files answer for, in Markdown with the Hub's metadata."""

import re
from importlib.resources import files
from string import Template

from huggingface_hub import ModelCardData

from hf_vlr import __version__
from hf_vlr.hub.card_limits import limits
from hf_vlr.hub.card_model import description, usage
from hf_vlr.hub.card_origin import origin
from hf_vlr.hub.card_results import results
from hf_vlr.hub.card_training import training
from hf_vlr.hub.doubts import doubts
from hf_vlr.hub.eval_results import eval_results, pipeline_tag
from hf_vlr.hub.licenses import model_license
from hf_vlr.hub.markdown import blocks, quote
from hf_vlr.hub.run_facts import RunFacts

TAGS = ["long-tailed-recognition", "vision-language"]


def render_card(facts: RunFacts, repo_id: str, files_pushed: list[str], license: str | None = None) -> str:
    """`README.md` of a repository.

    files_pushed: the paths of the other files in it; the card speaks of no file that is not among them. license: its
    identifier on the Hub, stated by whoever publishes; else as `model_license` has it.
    """
    license_id, license_words = model_license(facts, license)
    found = doubts(facts)
    template = Template((files("hf_vlr.hub") / "card.md").read_text(encoding="utf-8"))
    text = template.substitute(
        metadata=metadata(facts, repo_id, license_id).to_yaml(),
        title=repo_id.partition("/")[2],
        doubts=quote("**Before you use this model:**", found) if found else "",
        description=description(facts),
        usage=usage(facts, repo_id),
        results=results(facts, files_pushed),
        origin=blocks(origin(facts, files_pushed), license_words),
        training=training(facts, repo_id, files_pushed),
        limits=limits(facts),
        citation=citation(),
        version=__version__,
    )
    return re.sub(r"\n{3,}", "\n\n", facts.paths.clean_text(text))


def metadata(facts: RunFacts, repo_id: str, license: str) -> ModelCardData:
    """The head of the card, as the Hub reads it."""
    return ModelCardData(
        library_name="hf_vlr",
        pipeline_tag=pipeline_tag(facts),
        license=license,
        tags=[*TAGS, facts.config["model_type"], *(["converted"] if facts.conversion else [])],
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        base_model=list(facts.base_models) or None,
        metrics=["accuracy"] if facts.measurements else None,
        model_name=repo_id.partition("/")[2] if facts.measurements else None,
        eval_results=eval_results(facts) or None,
    )


def citation() -> str:
    """Both papers in BibTeX."""
    entries = (files("hf_vlr.hub") / "citations.bib").read_text(encoding="utf-8").strip()
    return f"```bibtex\n{entries}\n```"
