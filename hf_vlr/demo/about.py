"""What a visitor should know of the model before believing it."""

from collections.abc import Mapping
from typing import Any

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.demo.bars import group_words
from hf_vlr.demo.exhibit import Exhibit
from hf_vlr.report.markup import Html, definitions, escaped, name, share

PREDICTORS = ("fused", "visual", "language", "all texts")
LIMITS = (
    "It knows only the classes it was trained on, and names one of them for any picture, also for one that shows "
    "something else.",
    "Its percentages are a softmax over classes, not measured frequencies; they can be too sure.",
    "Classes with few training images are recognised less often than those with many.",
    "A class taught by a description was never seen: its score says how well the text fits the picture, compared with "
    "the texts of the other classes.",
)
QUESTION_LIMITS = (
    "It compares the picture with the labels it is given, and names one of them also where none fits.",
    "Its percentages depend on the other labels and on the template; alone they say nothing.",
)


def about(exhibit: Exhibit) -> Html:
    """The page about a model: what it is, its classes and groups, how it was measured, what it cannot do."""
    limits = LIMITS if exhibit.recogniser else QUESTION_LIMITS
    if exhibit.recogniser and not exhibit.reads_texts:
        limits = limits[:3]
    items = "".join(f"<li>{escaped(one)}</li>" for one in limits)
    return Html(
        f'<div class="vlr vlr-about"><h2>The model</h2>{definitions(facts(exhibit))}'
        f"{_measured(exhibit.metrics)}<h2>What to keep in mind</h2><ul>{items}</ul></div>"
    )


def facts(exhibit: Exhibit) -> dict[str, str]:
    """What the checkpoint says of itself, in words."""
    config = exhibit.config
    found = {
        "model": name(exhibit.name),
        "kind": _kind(exhibit),
        "towers": f"{config.vision_config.model_type} for images"
        + (f", {config.text_config.model_type} for texts" if exhibit.reads_texts else ", none for texts"),
        "parameters": f"{sum(one.numel() for one in exhibit.model.parameters()):,}",
    }
    classes = exhibit.classes
    if classes is None:
        return found
    found["classes"] = f"{len(classes.names):,}"
    if classes.train_counts is not None:
        counts = classes.train_counts
        found["training images"] = f"{counts.sum():,}, from {counts.min():,} to {counts.max():,} a class"
        words = group_words(classes.rule)
        groups = (f"{group}: {words[group]} ({classes.groups.count(group):,} classes)" for group in words)
        found[f"groups, rule {classes.rule}"] = "; ".join(groups)
    if exhibit.has_language:
        found["sentences"] = f"at most {config.num_anchors} a class{_sources(config.anchor_selection)}"
        found["fusion weight α"] = f"{config.fusion_weight:g} (the share of the visual branch)"
    return found


def _kind(exhibit: Exhibit) -> str:
    if not exhibit.recogniser:
        return "dual encoder: compares a picture with texts"
    return "recogniser with a visual and a language branch" if exhibit.has_language else "recogniser, visual only"


def _sources(selection: Mapping[str, Any] | None) -> str:
    texts = (selection or {}).get("texts")
    if not isinstance(texts, list):
        return ""
    names = [f"{one.get('source')} ({one.get('license')})" for one in texts if isinstance(one, Mapping)]
    return f", from {', '.join(names)}" if names else ""


def _measured(metrics: Mapping[str, Any]) -> str:
    """The accuracies in `metrics.json` and the protocol they were measured under; "" without."""
    predictors, protocol = metrics.get("predictors"), metrics.get("protocol")
    if not isinstance(predictors, Mapping) or not isinstance(protocol, Mapping):
        return ""
    shown = {key: predictors[key] for key in PREDICTORS if isinstance(predictors.get(key), Mapping)}
    try:
        rows = {
            key: [one["accuracy"], *(one["groups"][group]["accuracy"] for group in SHOT_NAMES)]
            for key, one in shown.items()
        }
    except (KeyError, TypeError):
        return ""
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escaped(key)}</th>{"".join(f"<td>{share(value)}</td>" for value in values)}</tr>'
        for key, values in rows.items()
    )
    head = "".join(f'<th scope="col">{one}</th>' for one in ("predictor", "all", *SHOT_NAMES))
    said = {key: str(protocol[key]) for key in ("source", "split", "resolution", "texts") if protocol.get(key)}
    caption = "Top-1 accuracy; " + ", ".join(f"{key}: {value}" for key, value in said.items())
    return (
        '<h2>How it was measured</h2><div class="vlr-scroll" role="region" aria-label="Accuracies" tabindex="0">'
        f"<table><caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
