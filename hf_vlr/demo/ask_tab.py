"""The tab that compares a picture with labels of the visitor's own."""

from dataclasses import dataclass

from hf_vlr.demo.bars import bars, nothing_yet
from hf_vlr.demo.exhibit import NO_TEXT_TOWER, Exhibit
from hf_vlr.demo.language import answers, filled, labels_of
from hf_vlr.demo.recognition import Floats, Row
from hf_vlr.demo.session import FORGET, Seen, Stage, in_words, require
from hf_vlr.report.markup import paragraph

EMPTY = "Write labels, one a line, and ask."
SUGGESTED = 6


@dataclass(frozen=True)
class Question:
    """Labels and what the text tower makes of them [labels, D]."""

    labels: tuple[str, ...]
    vectors: Floats


class Ask:
    """What the tab's events do."""

    def __init__(self, exhibit: Exhibit) -> None:
        self.exhibit = exhibit

    def question(self, labels: str | None, template: str | None) -> Question:
        """Read labels by the text tower. Raises `UserError`."""
        found = labels_of(labels)
        return Question(tuple(found), self.exhibit.text_features(filled(template, found)))

    def rows(self, seen: Seen, question: Question) -> list[Row]:
        """The labels, the best first."""
        return answers(seen.feature, question.vectors, question.labels, self.exhibit.scale)

    def ask(self, seen: Seen | None, labels: str | None, template: str | None) -> tuple[Question, str]:
        """(question, bars) of a picture and labels."""
        seen = require(seen)
        question = self.question(labels, template)
        return question, self.again(seen, question)

    def again(self, seen: Seen | None, question: Question | None) -> str:
        """The same question to another picture."""
        if seen is None or question is None:
            return nothing_yet(EMPTY)
        return bars(self.rows(seen, question), "Labels, the most probable first")

    def suggestion(self) -> str:
        """Labels to begin with: some of a recogniser's own classes."""
        classes = self.exhibit.classes
        if classes is None:
            return "a cat\na dog\na bird"
        return "\n".join(" ".join(name.split()) for name in classes.names[:SUGGESTED])


def add_tab(stage: Stage) -> None:
    """Lay the tab out and wire it."""
    import gradio as gr

    tab = Ask(stage.exhibit)
    if not stage.exhibit.reads_texts:
        gr.HTML(paragraph(NO_TEXT_TOWER, "vlr-note"))
        return
    gr.HTML(
        paragraph(
            "The picture and each label go through the two towers, and the nearest label wins: nothing is trained, and "
            "the labels need not be classes that the model knows.",
            "vlr-note",
        )
    )
    labels = gr.Textbox(tab.suggestion(), lines=6, max_lines=12, label="Labels", info="One a line.")
    template = gr.Textbox(
        stage.exhibit.template, label="Template", info="Each label takes the place of {}. Empty: the label alone."
    )
    button = gr.Button("Ask", variant="primary", elem_id="vlr-ask")
    shown = gr.HTML(nothing_yet(EMPTY), label="Answer", elem_id="vlr-answer", padding=False)
    question = gr.State(None, time_to_live=FORGET)
    gr.on(
        [button.click, labels.submit, template.submit],
        in_words(tab.ask),
        [stage.seen, labels, template],
        [question, shown],
        api_name="show_answer",
        api_visibility="undocumented",
        concurrency_id="tower",
    )
    stage.looked.then(
        in_words(tab.again),
        [stage.seen, question],
        [shown],
        api_name="ask_again",
        show_progress="hidden",
        api_visibility="undocumented",
    )
