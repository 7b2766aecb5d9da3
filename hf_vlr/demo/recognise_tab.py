"""The tab that names what a picture shows, and says which branch and which sentences say so."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_vlr.demo.bars import ON_LOAD, bars, nothing_yet, sentence_list
from hf_vlr.demo.exhibit import Exhibit
from hf_vlr.demo.recognition import Row, ranked
from hf_vlr.demo.session import Seen, Stage, in_words, numbers_only, require
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

TOP, MOST = 5, 20
MAX_TAU = 2.0
SENTENCES = 8
EMPTY = "Upload a picture or choose an example; what the model sees in it appears here."


@dataclass(frozen=True)
class Settings:
    """The sliders of the tab."""

    weight: "gr.Slider"
    tau: "gr.Slider"
    top: "gr.Slider"

    def all(self) -> list[Any]:
        """In the order that functions take them."""
        return [self.weight, self.tau, self.top]


class Recognise:
    """What the tab's events do; without gradio, so that it can be called by itself."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit, self.classes = exhibit, exhibit.classes

    def rows(self, seen: Seen, fusion_weight: float, tau: float, top: int) -> list[Row]:
        """The best classes under the sliders."""
        return ranked(seen.opinion, self.classes, fusion_weight, tau, int(top))

    def first(self, seen: Seen | None, fusion_weight: float, tau: float, top: int) -> tuple[str, int | None, str]:
        """(bars, best class, its sentences) of a new picture."""
        if seen is None:
            return nothing_yet(EMPTY), None, ""
        label = self.rows(seen, fusion_weight, tau, 1)[0].index
        return self.bars(seen, fusion_weight, tau, top, label), label, self.sentences(seen, label)

    def bars(self, seen: Seen | None, fusion_weight: float, tau: float, top: int, chosen: int | None) -> str:
        """Score the picture again by the kept log-probabilities; no tower runs."""
        if seen is None:
            return nothing_yet(EMPTY)
        rows = self.rows(seen, fusion_weight, tau, top)
        pressable = self.exhibit.has_language
        return bars(rows, "Classes, the most probable first", self.classes.rule, chosen=chosen, buttons=pressable)

    def sentences(self, seen: Seen | None, label: int | None) -> str:
        """The sentences of a class that the picture attends to."""
        if seen is None or label is None or not self.exhibit.has_language:
            return ""
        label = self.require_label(label)
        found = self.exhibit.attended(seen.feature, label, SENTENCES)
        row = Row(label, self.classes.names[label], 0.0, group=self.classes.groups[label])
        return sentence_list(row.name, found, row)

    def require_label(self, label: Any) -> int:
        """A class index out of a browser's hands. Raises `UserError`."""
        if not isinstance(label, int) or not 0 <= label < len(self.classes.names):
            raise UserError("There is no such class.")
        return label


def add_sliders(exhibit: Exhibit) -> Settings:
    """The sliders; those that have no meaning for the model are hidden."""
    import gradio as gr

    counted = exhibit.classes is not None and exhibit.classes.train_counts is not None
    share = float(getattr(exhibit.config, "fusion_weight", 1.0)) if exhibit.has_language else 1.0
    weight = gr.Slider(
        0,
        1,
        share,
        step=0.05,
        label="Fusion weight α",
        info=f"1: the visual branch alone, 0: the language branch alone. The checkpoint's own is {share:g}.",
        visible=exhibit.has_language,
    )
    tau = gr.Slider(
        0,
        MAX_TAU,
        0,
        step=0.1,
        label="Prior correction τ",
        info="Above 0, rare classes gain. 1 takes out the frequencies that plain cross-entropy learns; after balanced "
        "draws less is right.",
        visible=counted,
    )
    top = gr.Slider(1, MOST, TOP, step=1, label="Classes shown", visible=exhibit.recogniser)
    return Settings(*map(numbers_only, (weight, tau, top)))


def add_tab(stage: Stage) -> Settings:
    """Lay the tab out and wire it; returns its sliders."""
    import gradio as gr

    exhibit = stage.exhibit
    tab = Recognise(exhibit)
    shown = gr.HTML(
        nothing_yet(EMPTY), label="What the picture shows", elem_id="vlr-classes", js_on_load=ON_LOAD, padding=False
    )
    with gr.Accordion("Adjust: fusion and rare classes", open=False, elem_id="vlr-adjust"):
        settings = add_sliders(exhibit)
    with gr.Group(visible=exhibit.has_language):
        chosen = gr.Dropdown(
            [(name, index) for index, name in enumerate(exhibit.classes.names)],
            value=None,
            label="Sentences of the class",
            info="Press a bar above, or choose any class.",
            elem_id="vlr-chosen",
        )
    sentences = gr.HTML("", label="Sentences attended to", elem_id="vlr-sentences", padding=False)

    quiet = {"show_progress": "hidden", "api_visibility": "undocumented"}
    stage.looked.then(
        in_words(tab.first),
        [stage.seen, *settings.all()],
        [shown, chosen, sentences],
        api_name="show_classes",
        **quiet,
    )
    gr.on(
        [one.change for one in settings.all()],
        in_words(tab.bars),
        [stage.seen, *settings.all(), chosen],
        [shown],
        api_name="score_again",
        trigger_mode="always_last",
        **quiet,
    )
    chosen.input(in_words(tab.sentences), [stage.seen, chosen], [sentences], api_name="show_sentences", **quiet).then(
        in_words(tab.bars), [stage.seen, *settings.all(), chosen], [shown], api_name="mark_class", **quiet
    )

    def press(seen: Seen | None, event: gr.EventData) -> tuple[int, str]:
        """A bar was pressed: its class, and its sentences."""
        label = tab.require_label(event.label)
        return label, tab.sentences(require(seen), label)

    shown.select(in_words(press), [stage.seen], [chosen, sentences], api_name="press_class", **quiet)
    return settings
