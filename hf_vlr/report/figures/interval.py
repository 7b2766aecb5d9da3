"""All predictors at a glance: accuracies with their intervals, by all images, the class mean and the groups."""

from hf_vlr.data.shots import SHOT_NAMES
from hf_vlr.report import svg
from hf_vlr.report.columns import MEANS, column_interval, column_value, comparable
from hf_vlr.report.markup import Html, figure, legend
from hf_vlr.report.view import View

COLUMNS = {**MEANS, **{name: name for name in SHOT_NAMES}}
# inches that a predictor takes in each row, and that the axis takes
ROW, AXIS = 0.11, 0.5
# a difference of a tenth of a point must not look like a large one
LEAST_WIDTH = 0.1


def interval_figure(view: View) -> Html:
    """A row for each mean and group, in it a dot for each predictor and a line for its interval, where it has one."""
    predictors = comparable(view)
    height = max(svg.SIZE[1], AXIS + ROW * len(COLUMNS) * (len(predictors) + 1))
    drawn, axes = svg.plot((svg.SIZE[0], height))
    entries = {}
    for number, (one, entry) in enumerate(predictors.items()):
        role, _ = svg.series(number)
        entries[one] = (svg.css(role), "dot")
        for row, column in enumerate(COLUMNS):
            value, interval = column_value(entry, column), column_interval(entry, column)
            place = row + (number + 1) / (len(predictors) + 1) - 0.5
            if interval is not None:
                axes.plot(interval, [place, place], color=svg.colour(role), linewidth=1.6)
            if value is not None:
                axes.plot([value], [place], "o", color=svg.colour(role), markersize=5, markeredgewidth=0)
    axes.set_yticks(range(len(COLUMNS)), COLUMNS.values())
    axes.set_ylim(len(COLUMNS) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=svg.colour("line"), linewidth=0.6)
    for edge in range(1, len(COLUMNS)):
        axes.axhline(edge - 0.5, color=svg.colour("line"), linewidth=0.6)
    low, high = axes.get_xlim()
    high = min(high, 1.02)
    axes.set_xlim(max(min(low, high - LEAST_WIDTH), -0.02), high)
    axes.set_xlabel("accuracy")
    svg.percentages(axes.xaxis)
    bounds = any(column_interval(entry, "accuracy") for entry in predictors.values())
    label = f"Accuracy of {', '.join(predictors)} on all images, as the class mean and by shot group, as in the table"
    caption = "The table below as a picture" + ("; lines are 95\u00a0% intervals." if bounds else ".")
    return figure(svg.svg(drawn, "interval", label), caption, legend(entries))
