"""What a model is not good at, as far as its own numbers and texts say, in Markdown."""

from hf_vlr.hub.card_model import chooses_weight
from hf_vlr.hub.markdown import bullets, cell, plural
from hf_vlr.hub.measurements import Measurement
from hf_vlr.hub.run_facts import GENERATED, RunFacts

# sources whose sentences are patterns filled with a class's name or its attributes
TEMPLATED = ("templates", "clip-templates", "shapes-lt")


def limits(facts: RunFacts) -> str:
    """A list of facts; each comes from a file of the run, or says what no file tells."""
    lines = [*_data(facts), *_language(facts)]
    for measurement in facts.measurements[:1]:
        lines += [*_groups(measurement), *_classes(measurement), *_confidence(measurement)]
    return bullets([*lines, *_unmeasured(facts)])


def _data(facts: RunFacts) -> list[str]:
    if facts.data_name in GENERATED:
        return [f"{cell(facts.data_name)} is drawn by a program. Its numbers say nothing of photographs."]
    if facts.recogniser:
        known = plural(facts.classes, "class", "classes")
        return [f"It knows its {known} and nothing else: any image gets one of them."]
    return []


def _language(facts: RunFacts) -> list[str]:
    lines, total = [], sum(use.sentences for use in facts.texts)
    templated = sum(use.sentences for use in facts.texts if use.source in TEMPLATED)
    if templated:
        lines.append(
            f"{100 * templated / total:.0f} % of the class texts are templates filled with a class's name or "
            "attributes, which is not language as people write it."
        )
    if facts.recogniser and facts.language and facts.recipe is not None and not chooses_weight(facts):
        lines.append("The weight between its branches was set beforehand, not chosen on data.")
    if facts.recogniser and not facts.config.get("has_text_model", True):
        lines.append("It has no text tower: it cannot read sentences of yours.")
    return lines


def _groups(measurement: Measurement) -> list[str]:
    groups, lines = measurement.entry["groups"], []
    rule = measurement.protocol.get("rule") or {}
    few, many = groups.get("few") or {}, groups.get("many") or {}
    if few.get("classes"):
        below = f" (fewer than {rule['few_below']} training images)" if "few_below" in rule else ""
        text = f"{few['classes']:,} of {measurement.entry['num_classes']:,} classes are few-shot{below}"
        if few.get("accuracy") is not None and many.get("accuracy") is not None:
            low, high = f"{100 * few['accuracy']:.1f} %", f"{100 * many['accuracy']:.1f} %"
            text += f": {low} accuracy, against {high} of many-shot ones"
        lines.append(f"{text}.")
    small = [name for name, row in groups.items() if row.get("images") and row["images"] < 100]
    if small:
        lines.append(f"Measured on fewer than 100 test images: the group {', '.join(map(cell, small))}.")
    share = measurement.entry.get("tail_to_head")
    if share:
        lines.append(f"{100 * share:.0f} % of its errors on few-shot classes name a many-shot one.")
    return lines


def _classes(measurement: Measurement) -> list[str]:
    tested = [row for row in measurement.classes if row.accuracy is not None]
    missed = [row for row in tested if row.accuracy == 0]
    lines = []
    if missed:
        names = ", ".join(cell(row.name) for row in missed[:5])
        more = f" and {len(missed) - 5:,} more" if len(missed) > 5 else ""
        lines.append(f"Never recognised on the test images: {plural(len(missed), 'class', 'classes')} ({names}{more}).")
    if tested and max(row.test_images for row in tested) <= 20:
        most = max(row.test_images for row in tested)
        lines.append(f"No class has more than {plural(most, 'test image')}: the accuracy of a single one is coarse.")
    unseen = sum(row.train_count == 0 for row in measurement.classes)
    if unseen and unseen < len(measurement.classes):
        lines.append(f"{plural(unseen, 'class has', 'classes have')} no training image.")
    return lines


def _confidence(measurement: Measurement) -> list[str]:
    error = measurement.entry.get("ece")
    return [] if error is None else [f"Its probabilities are off by {100 * error:.1f} points on average (ECE)."]


def _unmeasured(facts: RunFacts) -> list[str]:
    splits = {str(one.protocol.get("split")).partition(" ")[0] for one in facts.measurements}
    lines = []
    if facts.measurements:
        listed = ", ".join(sorted(map(cell, splits)))
        own = {one.protocol.get("source") for one in facts.measurements} == {facts.setting("data.source")}
        kind = ", on images of the kind that it was trained on" if own else ""
        lines.append(f"Measured on the split {listed} alone{kind}.")
        if "unseen" not in splits and facts.language:
            lines.append("What it makes of classes that were not trained on has not been measured.")
        if facts.recipe is not None:
            seed = facts.setting("seed", 0)
            if any("intervals" in entry for one in facts.measurements for entry in one.document["predictors"].values()):
                lines.append(f"One run, seed {seed}: the intervals hold for other test images, not for other seeds.")
            else:
                lines.append(f"One run, seed {seed}: how far the numbers move with other seeds or images is not known.")
    if facts.protocol.get("pretraining"):
        lines.append("Whether its pre-training has seen the test images is not known.")
    lines.append("Nothing was measured of people, places or cultures in the images, nor of images made to deceive it.")
    return lines
