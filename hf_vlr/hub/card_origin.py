"""Where a model's images and texts came from, and under which licenses, in Markdown."""

from hf_vlr.hub.markdown import blocks, bullets, cell, code, plural, table
from hf_vlr.hub.run_facts import GENERATED, TEXTS_FILE, RunFacts

# more sources than a reader looks at
SHOWN = 20


def origin(facts: RunFacts, files: list[str]) -> str:
    """Training data, class texts by source and license, and what training began from."""
    return blocks(bullets(_images(facts)), _texts(facts, files))


def _images(facts: RunFacts) -> list[str]:
    if facts.recipe is None:
        return ["Training data: not stated; no recipe lies with the weights."]
    lines = [f"Training images: {_data(facts)}."]
    mixed = facts.setting("data.mix", [])
    lines += [f"Mixed in: {', '.join(map(code, mixed))}; their licenses are not recorded."] if mixed else []
    classes = facts.measurements[0].classes if facts.measurements else ()
    counts = sorted((row.train_count for row in classes), reverse=True)
    if counts and counts[0]:
        rarest = f"{counts[-1]:,} to {counts[0]:,} of a class"
        images, named = plural(sum(counts), "labelled training image"), plural(len(counts), "class", "classes")
        lines.append(f"{images} in {named}, {rarest}.")
    held = facts.setting("data.validation_fraction", 0)
    if held:
        lines.append(f"Up to {100 * held:g} % of each class were held out to choose on, and not trained on.")
    begun = facts.protocol.get("pretraining") if facts.protocol else None
    lines.append(f"Training began from: {cell(begun)}." if begun else _fresh(facts))
    return lines


def _data(facts: RunFacts) -> str:
    name = cell(facts.data_name)
    if facts.dataset_id:
        name = f"[{name}](https://huggingface.co/datasets/{facts.dataset_id})"
    if facts.data_name in GENERATED:
        return f"{name}, drawn by hf_vlr itself, from nobody's pictures"
    return f"{name}, license {cell(facts.data_license) if facts.data_license else 'not stated'}"


def _fresh(facts: RunFacts) -> str:
    init = facts.setting("model.init")
    if init:
        return f"Training began from {code(init)}, an earlier run of hf_vlr, itself from fresh weights."
    return "Training began from fresh weights." if facts.protocol else "What training began from is not recorded."


def _texts(facts: RunFacts, files: list[str]) -> str:
    if not facts.texts:
        return "" if facts.language and facts.recipe is None else "Class texts: none were used."
    total, (fewest, most) = sum(use.sentences for use in facts.texts), facts.texts_per_class
    spread = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    head = f"Class texts: {plural(total, 'sentence')}, {spread} of a class that has any."
    none = "not stated"
    rows = [(cell(use.source or none), cell(use.license or none), f"{use.sentences:,}") for use in facts.texts]
    if len(rows) > SHOWN:
        others = facts.texts[SHOWN:]
        rows = [*rows[:SHOWN], (f"{len(others)} others", "", f"{sum(use.sentences for use in others):,}")]
    if TEXTS_FILE in files:
        note = f"They are in [{TEXTS_FILE}]({TEXTS_FILE})."
    else:
        note = "They are not in this repository, because not every one of them states a license."
    if facts.recogniser and facts.config.get("num_sentence_bytes"):
        note += " The sentences chosen as anchors are kept, word for word, in the weights."
    return blocks(head, table(["source", "license", "sentences"], rows, right=1), note)
