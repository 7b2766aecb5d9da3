"""The tab where a visitor adds classes by describing them; nothing is trained, and nobody else sees them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_vlr.demo.bars import bars, nothing_yet, taught_verdict
from hf_vlr.demo.examples import Lesson
from hf_vlr.demo.exhibit import NO_TEXT_TOWER, Exhibit
from hf_vlr.demo.language import MAX_TAUGHT, Taught, ranked_with_taught, teach, text_scores
from hf_vlr.demo.recognition import ranked
from hf_vlr.demo.session import FORGET, Seen, Stage, in_words
from hf_vlr.errors import UserError
from hf_vlr.report.markup import Html, paragraph, share, strong

if TYPE_CHECKING:
    import gradio as gr

TOP = 5
MAX_ADVANTAGE = 6.0
EMPTY = "Describe a class the model was never trained on; it then competes with those it was."
HOW = (
    "A class is taught by its text alone. So that old and new are on one scale, every class is scored here by the mean "
    "of its sentences in the common space of pictures and texts; the trained head, which cannot know new classes, "
    "takes no part. Known classes were trained with their sentences and a new one was not: it tends to score too low."
)
NO_SENTENCES = "This checkpoint keeps no sentences of its classes, so a described class has nothing to compete with."


class Teach:
    """What the tab's events do; what was taught is handed in and out, and kept nowhere here."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit, self.classes = exhibit, exhibit.classes

    def learn(self, taught: tuple[Taught, ...], name: str | None, description: str | None) -> tuple[Taught, ...]:
        """The taught classes and one more. Raises `UserError`."""
        if len(taught) >= MAX_TAUGHT:
            raise UserError(f"{MAX_TAUGHT} classes are taught already: forget some first.")
        known = [*self.classes.names, *(one.name for one in taught)]
        return (*taught, teach(name, description, self.exhibit.text_features, known))

    def scores(self, seen: Seen, taught: Sequence[Taught], advantage: float) -> Any:
        """Probabilities [C + K] of known and taught classes."""
        return text_scores(seen.feature, self.exhibit.known_vectors, taught, self.exhibit.scale, advantage)

    def show(self, seen: Seen | None, taught: tuple[Taught, ...], names: list[str], advantage: float) -> str:
        """Bars of the classes, those of the taught ones that are ticked among them."""
        ticked = [one for one in taught if one.name in (names or [])]
        if not ticked:
            return nothing_yet(EMPTY)
        if seen is None:
            return nothing_yet("Upload a picture or choose an example to see where the taught class comes.")
        probabilities = self.scores(seen, ticked, advantage)
        size = len(self.classes.names)
        verdict = taught_verdict([(size + place, one.name) for place, one in enumerate(ticked)], probabilities)
        rows = ranked_with_taught(probabilities, self.classes, ticked, TOP)
        return Html(verdict + bars(rows, "Known and taught classes", self.classes.rule) + self._head_says(seen))

    def _head_says(self, seen: Seen) -> str:
        """What the trained head, without the new classes, makes of the same picture."""
        best = ranked(seen.opinion, self.classes, self.exhibit.config.fusion_weight, 0.0, 1)[0]
        words = f"The trained head, which knows only its own classes, says {strong(best.name)} ({share(best.score)})."
        return f'<p class="vlr vlr-note">{words}</p>'

    def add(
        self,
        seen: Seen | None,
        taught: tuple[Taught, ...],
        names: list[str],
        advantage: float,
        name: str | None,
        description: str | None,
    ) -> tuple[tuple[Taught, ...], list[str], str]:
        """(taught, ticked names, bars) after one more class."""
        taught = self.learn(taught, name, description)
        names = [*(names or []), taught[-1].name]
        return taught, names, self.show(seen, taught, names, advantage)


def add_tab(stage: Stage, lessons: Sequence[Lesson]) -> None:
    """Lay the tab out and wire it; `lessons` are shown as examples."""
    import gradio as gr

    exhibit = stage.exhibit
    missing = NO_TEXT_TOWER if not exhibit.reads_texts else NO_SENTENCES if not exhibit.has_language else ""
    if missing:
        gr.HTML(paragraph(missing, "vlr-note"))
        return
    tab = Teach(exhibit)
    gr.HTML(paragraph(HOW, "vlr-note"))
    name = gr.Textbox(label="Name of the new class", max_lines=1)
    description = gr.Textbox(
        lines=4,
        max_lines=12,
        label="Description",
        info="One sentence a line: the whole thing, then its parts. Empty: “a NAME.”",
    )
    button = gr.Button("Teach", variant="primary", elem_id="vlr-teach")
    if lessons:
        gr.Examples(
            [[one.name, one.description, one.picture] for one in lessons],
            [name, description, stage.image],
            label="Classes it was never trained on",
            example_labels=[one.name for one in lessons],
            api_visibility="private",
        )
    shown = gr.HTML(nothing_yet(EMPTY), label="With the new class", elem_id="vlr-taught", padding=False)
    with gr.Group():
        ticked = gr.CheckboxGroup(
            [], label="Taught in this session", info="Nobody else sees them. Untick one to leave it out.", visible=False
        )
        advantage = gr.Slider(
            0,
            MAX_ADVANTAGE,
            0,
            step=0.5,
            label="Advantage of taught classes",
            info="Added to their log-odds, against the lead of the classes that were trained. Too much, and they win "
            "on every picture.",
        )
        forget = gr.Button("Forget what was taught", size="sm", elem_id="vlr-forget")
    taught = gr.State((), time_to_live=FORGET)
    _wire(stage, tab, (name, description, button, forget, shown, ticked, advantage, taught))


def _wire(stage: Stage, tab: Teach, parts: tuple[Any, ...]) -> None:
    import gradio as gr

    name, description, button, forget, shown, ticked, advantage, taught = parts

    def add(*values: Any) -> tuple[Any, ...]:
        """Teach a class and score the picture with it among the others."""
        classes, names, bars_of = tab.add(*values)
        return classes, _ticks(classes, names), bars_of

    gr.on(
        [button.click, name.submit],
        in_words(add),
        [stage.seen, taught, ticked, advantage, name, description],
        [taught, ticked, shown],
        api_name="show_taught",
        api_visibility="undocumented",
        concurrency_id="tower",
    )
    quiet = {"show_progress": "hidden", "api_visibility": "undocumented"}
    again = [stage.seen, taught, ticked, advantage]
    gr.on(
        [ticked.input, advantage.change], in_words(tab.show), again, [shown], api_name="weigh_taught",
        trigger_mode="always_last", **quiet,
    )  # fmt: skip
    stage.looked.then(in_words(tab.show), again, [shown], api_name="show_taught_again", **quiet)
    forget.click(
        lambda: ((), _ticks((), []), nothing_yet(EMPTY)), None, [taught, ticked, shown], api_name="forget", **quiet
    )


def _ticks(taught: Sequence[Taught], names: list[str]) -> "gr.CheckboxGroup":
    import gradio as gr

    return gr.CheckboxGroup(choices=[one.name for one in taught], value=names, visible=bool(taught))
