"""What was found, in sentences made of the numbers."""

from hf_vlr.report.columns import FEWEST_IMAGES, Entry, column_images, column_interval, column_value, comparable, leads
from hf_vlr.report.markup import Html, bullets, counted, percent, share, strong
from hf_vlr.report.view import View


def summary(view: View) -> Html:
    """A few sentences; one predictor is called better only where its interval lies above those of all others."""
    entry = view.document["predictors"][view.main]
    images = counted(entry["num_images"], "test image", "test images")
    classes = counted(entry["num_classes"] - entry["classes_without_test_images"], "class", "classes")
    found = [
        f"{strong(view.main)} names {_with_interval(entry, 'accuracy')} of {images} right. "
        f"The mean over {classes}, each weighed alike, is {_with_interval(entry, 'balanced_accuracy')}."
    ]
    many, few = (column_value(entry, group) for group in ("many", "few"))
    if many is not None and few is not None:
        found.append(
            f"From many-shot to few-shot classes it goes from {percent(many)} to {share(few)}, "
            f"{abs(100 * (many - few)):.1f} points {'down' if few <= many else 'up'}."
        )
    if entry["tail_to_head"] is not None:
        found.append(
            f"{share(entry['tail_to_head'])} of its errors on few-shot classes take the image for a many-shot one."
        )
    found += filter(None, [_leader(view, "few", "few-shot classes"), _leader(view, "accuracy", "all images")])
    # names are escaped where they are put in, everything else is ours
    return bullets([Html(sentence) for sentence in found], "points")


def _leader(view: View, column: str, place: str) -> str:
    """Which predictor is ahead, or that none is; empty where there are not two numbers to compare."""
    values = {one: column_value(entry, column) for one, entry in comparable(view).items()}
    if len(values) < 2 or None in values.values():
        return ""
    first, second = sorted(values, key=lambda one: -values[one])[:2]
    best, next_best = strong(first), strong(second)
    numbers = f"{best} has {share(values[first])}, {next_best} {share(values[second])}"
    if values[first] == values[second]:
        return f"On {place} {best} and {next_best} are level at {share(values[first])}."
    if column_interval(view.document["predictors"][first], column) is None:
        return f"On {place} {numbers}; without intervals it is open whether this is more than chance."
    if leads(view, first, column):
        return f"On {place} {best} is ahead: {numbers}, and its interval lies above those of all others."
    few = column_images(view.document["predictors"][first], column) < FEWEST_IMAGES
    reason = "there are too few images to tell" if few else "intervals overlap"
    return f"On {place} none is clearly ahead: {numbers}, and {reason}."


def _with_interval(entry: Entry, column: str) -> str:
    interval = column_interval(entry, column)
    within = "" if interval is None else f" (95\u00a0% interval {percent(interval[0])} to {share(interval[1])})"
    return share(column_value(entry, column)) + within
