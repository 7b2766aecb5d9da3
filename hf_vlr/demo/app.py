"""The page: a picture on the left, what is made of it on the right."""

import os
from typing import TYPE_CHECKING, Any

from hf_vlr.demo import ask_tab, recognise_tab, teach_tab
from hf_vlr.demo.about import about
from hf_vlr.demo.endpoints import add_endpoints
from hf_vlr.demo.examples import example_pictures, lessons
from hf_vlr.demo.exhibit import Exhibit, open_exhibit
from hf_vlr.demo.session import FORGET, Seen, Stage, in_words, look, received
from hf_vlr.demo.style import css, theme
from hf_vlr.errors import UserError
from hf_vlr.report.markup import escaped, paragraph

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

MAX_FILE = "20mb"
PRIVACY = "A picture stays on this server for at most two hours and is used for nothing else."
# thumbnails are buttons without a name of their own
NAME_EXAMPLES = """() => document.querySelectorAll('#vlr-examples button').forEach(
  (one, number) => one.setAttribute('aria-label', `Example ${number + 1}`))"""
RECOGNISER = (
    "Upload a picture and see what the model names, what its visual and its language branch each say, and which "
    "sentences it reads for it. Bars are coloured by how many training images a class had."
)
VISUAL = "Upload a picture and see what the model names. Bars are coloured by how many training images a class had."
DUAL_ENCODER = "Upload a picture and compare it with labels of your own; nothing is trained."


def build(model: str, examples: str | None = None) -> "gr.Blocks":
    """The page for a model, a folder or a Hub id; launch it with `launch_options()`.

    A recogniser has all tabs, a dual encoder (stage 1) only free questions. `examples`: a folder of pictures to choose
    from. Raises `UserError` for a model or a folder that cannot be shown, and where gradio is not installed.
    """
    gr = import_gradio()
    exhibit = open_exhibit(model)
    pictures = example_pictures(exhibit, examples)
    with gr.Blocks(title=f"hf_vlr: {exhibit.name}", analytics_enabled=False, delete_cache=(FORGET, FORGET)) as page:
        gr.HTML(_lead(exhibit), padding=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                stage = _add_picture(exhibit, pictures)
            with gr.Column(scale=3, min_width=320):
                _add_tabs(stage)
        page.load(None, js=NAME_EXAMPLES)
    return page.queue(max_size=64)


def launch_options() -> dict[str, Any]:
    """What `launch` needs besides where to listen: looks, limits, and nothing that asks anybody else."""
    return {
        "theme": theme(),
        "css": css(),
        "footer_links": ["api", "settings"],
        "max_file_size": MAX_FILE,
        "ssr_mode": False,
        "pwa": False,
    }


def import_gradio() -> Any:
    """gradio, told before its import that nobody counts. Raises `UserError` where it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError('gradio is not installed: in the package\'s repository, pip install -e ".[demo]"') from error
    return gradio


def _lead(exhibit: Exhibit) -> str:
    said = RECOGNISER if exhibit.has_language else VISUAL if exhibit.recogniser else DUAL_ENCODER
    return f'<div class="vlr-lead"><h1>What {escaped(exhibit.name)} sees</h1><p>{said}</p></div>'


def _add_picture(exhibit: Exhibit, pictures: "list[Image.Image]") -> Stage:
    import gradio as gr

    image = gr.Image(
        type="filepath",
        sources=["upload", "clipboard"],
        label="Picture",
        height=300,
        buttons=["fullscreen"],
        elem_id="vlr-picture",
    )
    image.preprocess = received
    if pictures:
        gr.Examples(
            [[one] for one in pictures], [image], label="Examples", elem_id="vlr-examples", api_visibility="private"
        )
    gr.HTML(paragraph(PRIVACY, "vlr-note"))
    seen = gr.State(None, time_to_live=FORGET)

    def see(picture: Any) -> Seen | None:
        """Run the tower on a new picture."""
        return None if picture is None else look(exhibit, picture)

    quiet = {"api_visibility": "undocumented", "show_progress": "hidden"}
    # forgotten first: what is shown after a picture that cannot be read is nothing, and not the one before
    cleared = image.change(lambda: None, None, [seen], api_name="clear", queue=False, **quiet)
    looked = cleared.then(
        in_words(see),
        [image],
        [seen],
        api_name="look",
        api_visibility="undocumented",
        concurrency_id="tower",
        show_progress_on=[image],
    )
    return Stage(exhibit, image, seen, looked)


def _add_tabs(stage: Stage) -> None:
    import gradio as gr

    settings = None
    with gr.Tabs():
        if stage.exhibit.recogniser:
            with gr.Tab("Recognise"):
                settings = recognise_tab.add_tab(stage)
        with gr.Tab("Ask"):
            ask_tab.add_tab(stage)
        if stage.exhibit.recogniser:
            with gr.Tab("Teach"):
                teach_tab.add_tab(stage, lessons(stage.exhibit))
        with gr.Tab("About"):
            gr.HTML(about(stage.exhibit), padding=False)
    add_endpoints(stage, settings)
