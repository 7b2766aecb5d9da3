"""The numbers that rows are compared by, and how each is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_vlr.comparison.images import Images
from hf_vlr.evaluation.table import TITLES

NOTHING = "-"


@dataclass(frozen=True)
class Measure:
    """A number of an evaluation.

    key: its name in `compare.json`. title: its name for readers. path: its place in an entry of `metrics.json`.
    percent: a fraction, shown in percent and its differences in points; else shown as it is, with three decimals.
    lower_is_better. tested: an average over images, whose differences are tested.
    """

    key: str
    title: str
    path: tuple[str, ...]
    percent: bool = True
    lower_is_better: bool = False
    tested: bool = False

    def value(self, entry: Mapping[str, Any]) -> float | None:
        """The number in an entry, None where there is nothing to measure."""
        found: Any = entry
        for key in self.path:
            found = found[key]
        return found

    def text(self, value: float | None) -> str:
        """A value for readers, "-" for None."""
        if value is None:
            return NOTHING
        return f"{100 * value:.1f}" if self.percent else f"{value:.3f}"

    def change(self, difference: float | None) -> str:
        """A difference with its sign, in points or as it is; "-" for None."""
        if difference is None:
            return NOTHING
        text = f"{100 * difference:+.1f}" if self.percent else f"{difference:+.3f}"
        # what rounds to nothing has no sign
        return text[1:] if not text.strip("+-0.") else text.replace("-", "\u2212")


# No average over images: the mean of what is worst in each run, of what is not linear, of what is biased upwards in
# every resample. An interval over images would promise what it cannot hold.
UNTESTED = (
    Measure("macro_f1", "macro-F1", ("macro_f1",)),
    Measure("harmonic_mean", "h-mean", ("harmonic_mean",)),
    Measure("worst_tenth", "worst 10 %", ("worst_tenth",)),
    Measure("ece", "ECE", ("ece",), lower_is_better=True),
)


def measures_of(images: Images) -> list[Measure]:
    """The measures of a comparison: accuracies over all images, classes and groups, the NLL, and the untested ones."""
    means = [Measure(key, title, (key,), tested=True) for key, title in TITLES.items()]
    sizes = {name: int((mask & (images.per_class > 0)).sum()) for name, mask in images.groups.items()}
    groups = [Measure(one, f"{one} ({size})", ("groups", one, "accuracy"), tested=True) for one, size in sizes.items()]
    likelihood = Measure("nll", "NLL", ("nll",), percent=False, lower_is_better=True, tested=True)
    return [*means, *groups, likelihood, *UNTESTED]
