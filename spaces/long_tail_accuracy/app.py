"""A form for the metric: three lists of numbers in, a table of percentages out."""

import gradio as gr
from long_tail_accuracy import DESCRIPTION, LongTailAccuracy


def measure(predictions: str, references: str, train_counts: str, rule: str) -> list[list[str]]:
    """Long-tail accuracies, in percent, from comma-separated class ids and training counts."""
    try:
        numbers = LongTailAccuracy(keep_in_memory=True).compute(
            predictions=whole_numbers(predictions),
            references=whole_numbers(references),
            train_counts=whole_numbers(train_counts),
            rule=rule,
        )
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return [[name.replace("_", " "), f"{100 * value:.1f}"] for name, value in numbers.items()]


def whole_numbers(text: str) -> list[int]:
    """The numbers of a line, which commas or spaces separate."""
    words = text.replace(",", " ").split()
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{text!r}: write whole numbers with commas between them") from error


demo = gr.Interface(
    measure,
    [
        gr.Textbox("0, 0, 1, 1, 2, 0", label="Predicted class of each image"),
        gr.Textbox("0, 0, 1, 1, 2, 2", label="True class of each image"),
        gr.Textbox("500, 60, 4", label="Training images of each class"),
        gr.Dropdown(["oltr", "vl-ltr"], label="Rule for many, medium and few", allow_custom_value=True),
    ],
    gr.Dataframe(headers=["number", "%"], label="Accuracy"),
    title="Long-tail accuracy",
    description=DESCRIPTION,
    api_name="measure",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
