"""What a model is, and how it is used, in Markdown."""

from typing import Any

from hf_vlr.hub.markdown import blocks, cell, code, facts_table, plural
from hf_vlr.hub.run_facts import RunFacts

TIAN = "Tian et al., ECCV 2022"
YANG = "Yang et al., CVPR 2022"
KANG = "Kang et al., ICLR 2020"
CONVERTED = {
    "vl-ltr": f"a VL-LTR checkpoint ({TIAN})",
    "unicl": f"a UniCL checkpoint ({YANG})",
    "openai-clip": "an OpenAI CLIP archive",
    "hf-clip": "a transformers checkpoint",
    "open-clip": "an open_clip checkpoint",
}
RECOGNISER = """```python
import hf_vlr
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{repo_id}")
print(model.predict("photo.png", top_k=3))
```"""
DUAL = """```python
import hf_vlr
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{repo_id}")
print(classify("photo.png", candidate_labels={labels}))
```"""
TOWER = """```python
import hf_vlr
from transformers import AutoImageProcessor, AutoModel
from transformers.image_utils import load_image

model, processor = AutoModel.from_pretrained("{repo_id}"), AutoImageProcessor.from_pretrained("{repo_id}")
print(model.get_image_features(**processor(load_image("photo.png"), return_tensors="pt")).shape)
```"""
STRANGER = {
    "recogniser": """```python
from transformers import pipeline

classify = pipeline("image-classification", model="{repo_id}", trust_remote_code=True)
print(classify("photo.png", top_k=3))
```""",
    "dual": """```python
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{repo_id}", trust_remote_code=True)
print(classify("photo.png", candidate_labels={labels}))
```""",
    "tower": """```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
```""",
}


def description(facts: RunFacts) -> str:
    """What the model is: a sentence, and a table of what it is made of."""
    return blocks(_sentence(facts), facts_table(_rows(facts)))


def usage(facts: RunFacts, repo_id: str) -> str:
    """Code to paste: with the package, and without it."""
    kind = "recogniser" if facts.recogniser else "dual" if facts.reads_texts else "tower"
    own = {"recogniser": RECOGNISER, "dual": DUAL, "tower": TOWER}[kind]
    names = [row.name for row in (facts.measurements[0].classes if facts.measurements else ())][:2]
    labels = names if len(names) == 2 else ["a cat", "a dog"]
    more = {
        "recogniser": (f"Each answer has the classes' names{_evidence(facts)}."),
        "dual": "`AutoModel` gives the dual encoder itself, for features of images and texts.",
        "tower": "It gives features of images.",
    }[kind]
    return blocks(
        "With the package `hf_vlr`, installed by `pip install -e .` in a copy of its repository (no index has it):",
        own.format(repo_id=repo_id, labels=labels),
        more,
        "Without it, by the code in this repository; read that before you trust it:",
        STRANGER[kind].format(repo_id=repo_id, labels=labels),
    )


def _evidence(facts: RunFacts) -> str:
    if not facts.language:
        return " and probabilities"
    if not keeps_sentences(facts):
        return ", probabilities and both branches' opinions"
    return ", probabilities, both branches' opinions and the sentences that were attended to"


def keeps_sentences(facts: RunFacts) -> bool:
    """Whether the words of the anchors are in the weights, and not their features alone."""
    return bool(facts.config.get("num_sentence_bytes"))


def method(facts: RunFacts) -> str:
    """How the model came about, with the source."""
    if facts.conversion:
        return f"converted from {CONVERTED.get(facts.conversion.get('format'), 'another checkpoint')}"
    task, method_name = facts.setting("task"), facts.setting("rebalance.method")
    if task == "recognition" and not facts.language:
        return "visual-only baseline: a classifier on the image tower, without language"
    return {
        "unicl": f"UniCL, contrast in image-text-label space ({YANG})",
        "cvlp": f"VL-LTR, stage 1: class-wise visual-linguistic pre-training ({TIAN})",
        "recognition": f"VL-LTR, stage 2: language-guided recognition ({TIAN})",
        "joint": f"the contrast of stage 1 and the recognition of stage 2 of VL-LTR ({TIAN}) in one training",
        "rebalance": f"the classifier of a trained recogniser made anew by {method_name}, its features frozen ({KANG})",
    }.get(task, "not stated: no recipe lies with the weights")


def _sentence(facts: RunFacts) -> str:
    if facts.recogniser:
        seen = facts.setting("data.source") and f", trained on long-tailed data ({cell(facts.data_name)})"
        branch = "" if facts.language else ", by the image alone"
        return f"A recogniser of {plural(facts.classes, 'class', 'classes')}{branch}{seen or ''}."
    if facts.language and facts.tokenizer:
        return "A dual encoder of images and texts: it compares an image with any sentence. It has no classifier."
    if facts.language:
        return "A dual encoder of images and texts without its tokenizer: as it lies here it reads images alone."
    return "An encoder of images. It has no text tower and no classifier."


def _rows(facts: RunFacts) -> list[tuple[str, str]]:
    config, parts = facts.config, facts.parts
    kinds = {"image tower": _kind(config.get("vision_config")), "text tower": _kind(config.get("text_config"))}
    rows = [("method", cell(method(facts))), ("model class", code(parts.model))]
    for name, count in parts.parameters.items():
        kind = f"{code(kinds[name])}, " if name in kinds else ""
        rows.append((name, f"{kind}{count:,} parameters"))
    rows.append(("parameters in all", f"{parts.total:,}"))
    if facts.image_size:
        rows.append(("image size", f"{facts.image_size} × {facts.image_size} pixels"))
    rows.append(("shared width", f"{config.get('projection_dim')}"))
    if facts.recogniser:
        rows.append(("classes", f"{facts.classes:,}"))
        rows.append(("visual head", code(config.get("visual_head"))))
    if facts.recogniser and facts.language:
        alpha = config.get("fusion_weight")
        chosen = "chosen on validation images" if chooses_weight(facts) else "set beforehand"
        rows.append(("fusion", f"visual branch {alpha:g}, language branch {1 - alpha:g} ({chosen})"))
        rows.append(("anchors", _anchors(config, keeps_sentences(facts))))
    if facts.conversion:
        rows += [*_conversion(facts.conversion), *facts.stub]
    return rows


def chooses_weight(facts: RunFacts) -> bool:
    """Whether the run looked for the fusion weight on validation images."""
    return facts.recipe is not None and facts.setting("model.fusion_weight") is None


def _anchors(config: dict[str, Any], words: bool) -> str:
    chosen = config.get("anchor_selection") or {}
    kept = "kept in the weights" if words else "their features alone kept, not their words"
    how = [f"at most {config.get('num_anchors')} sentences per class, {kept}"]
    if chosen.get("selection") == "scored":
        per_class, split = chosen.get("images_per_class"), chosen.get("split")
        how.append(f"those that best find at most {per_class} images of their class on the split {split}")
    elif chosen.get("selection"):
        how.append(f"selection: {cell(chosen['selection'])}")
    return "; ".join(how)


def _conversion(conversion: dict[str, Any]) -> list[tuple[str, str]]:
    sources = ", ".join(code(name) for name in conversion.get("sources") or ())
    moved, dropped = len(conversion.get("moves") or ()), len(conversion.get("dropped") or ())
    told = [f"{plural(moved, 'tensor')} moved", f"{dropped:,} dropped"]
    resized = conversion.get("interpolated") or ()
    told += [f"{code(name)} interpolated from {before} to {after} positions" for name, before, after in resized]
    made = conversion.get("made") or ()
    told += [f"made anew: {', '.join(map(code, made))}"] * bool(made)
    return [("source", sources or "not stated"), ("conversion", "; ".join(told) + " (`conversion.json`)")]


def _kind(tower: dict[str, Any] | None) -> str:
    found = tower or {}
    return found.get("architecture") or found.get("model_type") or "unknown"
