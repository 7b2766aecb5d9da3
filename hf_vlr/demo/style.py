"""The page's looks: system fonts, the report's colours, nothing from elsewhere."""

import re
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

# many, medium, few as in a report; a taught class has a colour that no predictor of a report is drawn in beside them
ROLES = {"many": "many", "medium": "medium", "few": "few", "taught": "series-2", "plain": "accent"}
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
CODE_FONTS = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def report_colours() -> tuple[dict[str, str], dict[str, str]]:
    """The report's colours by role, (light, dark)."""
    style = files("hf_vlr.report").joinpath("style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+):\s*(#\w+)", block)) for block in blocks[:2])
    return light, dark


def css() -> str:
    """The style sheet of the page, the report's colours in front."""
    blocks = [
        f"{selector} {{ {' '.join(f'--vlr-{ours}: {colours[theirs]};' for ours, theirs in ROLES.items())} }}\n"
        for selector, colours in zip((":root", ".dark"), report_colours())
    ]
    return "".join(blocks) + files("hf_vlr.demo").joinpath("style.css").read_text(encoding="utf-8")


def theme() -> "gr.themes.Base":
    """A quiet theme whose fonts are the reader's own."""
    import gradio as gr

    base = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="sm", font=FONTS, font_mono=CODE_FONTS)
    # what explains is meant to be read
    quiet, quiet_dark = "*neutral_600", "*neutral_300"
    return base.set(
        body_text_color_subdued=quiet,
        body_text_color_subdued_dark=quiet_dark,
        block_info_text_color=quiet,
        block_info_text_color_dark=quiet_dark,
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_label_text_color=quiet,
        block_label_text_color_dark=quiet_dark,
    )
