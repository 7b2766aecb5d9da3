"""The tables of predictors: accuracies with their intervals, and what else was measured."""

from hf_vlr.report.columns import MEANS, column_interval, column_value, leads
from hf_vlr.report.markup import NOTHING, Cell, Html, counted, name, paragraph, percent, table
from hf_vlr.report.view import View

_RATES = ("top5", "macro_f1", "harmonic_mean", "geometric_mean", "worst_class", "worst_tenth")


def headline_table(view: View) -> Html:
    """All predictors by all images, the class mean and the shot groups, each with its interval."""
    predictors = view.document["predictors"]
    groups = next(iter(predictors.values()))["groups"]
    sizes = {group: values["classes"] for group, values in groups.items()}
    columns: list[str | Cell] = [
        "predictor",
        *MEANS.values(),
        *(Cell(group, note=counted(size, "class", "classes")) for group, size in sizes.items()),
    ]
    rows = [[Cell(name(one)), *(_measured(view, one, column) for column in (*MEANS, *sizes))] for one in predictors]
    bounds = any("intervals" in entry for entry in predictors.values())
    caption = "Accuracy in percent" + (", with 95 % bootstrap intervals over the test images" if bounds else "")
    leading = " Bold: its interval lies above those of all other predictors." if bounds and len(rows) > 1 else ""
    mixed = {one: entry["note"] for one, entry in predictors.items() if entry.get("mixed")}
    below = "".join(paragraph(f"{one}: {note}.", "warning") for one, note in mixed.items())
    return Html(table(f"{caption}.{leading}", columns, rows) + below)


def measures_table(view: View) -> Html:
    """What else was measured of each predictor."""
    header = ["predictor", "top-5", "macro-F1", "harmonic mean", "geometric mean", "worst class", "worst 10 %"]
    header += ["NLL (nats)", "Brier", "ECE", "MCE"]
    rows = []
    for predictor, entry in view.document["predictors"].items():
        shares = [percent(entry[key]) for key in _RATES]
        worst = Cell(shares[4], note=name(entry["worst_class_name"])) if entry["worst_class"] is not None else "-"
        raw = [NOTHING if entry[key] is None else f"{entry[key]:z.3f}" for key in ("nll", "brier")]
        errors = [percent(entry[key]) for key in ("ece", "mce")]
        rows.append([Cell(name(predictor)), *shares[:4], worst, shares[5], *raw, *errors])
    return table("Further measures, in percent where no unit is given.", header, rows)


def _measured(view: View, predictor: str, column: str) -> Cell:
    """A number with its interval, set off where it leads."""
    entry = view.document["predictors"][predictor]
    interval = column_interval(entry, column)
    note = "" if interval is None else f"{percent(interval[0])}–\u2060{percent(interval[1])}"
    return Cell(percent(column_value(entry, column)), "best" if leads(view, predictor, column) else "", note)
