"""CLIP's 80 prompts for ImageNet, as OpenAI published them."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from hf_vlr.data.templates import spoken_name
from hf_vlr.data.texts.names import bare_name
from hf_vlr.data.texts.row import TextRow
from hf_vlr.errors import UserError

SOURCE, LICENSE = "clip-templates", "MIT"
Template = Callable[[str], str]


@cache
def clip_templates() -> tuple[Template, ...]:
    """The 80 templates as functions of a name, in OpenAI's order, read from the installed open_clip.

    Raises `UserError` where open_clip is not installed.
    """
    package = find_spec("open_clip")
    if package is None:
        raise UserError("CLIP's templates are read from open_clip; install it: pip install 'hf_vlr[convert]'")
    # Its file of names and templates alone: the package itself takes seconds to import.
    file = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    if not file.is_file():
        raise UserError("this open_clip has no templates; install a newer one: pip install 'hf_vlr[convert]'")
    spec = spec_from_file_location("_open_clip_zero_shot_metadata", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.OPENAI_IMAGENET_TEMPLATES)


def clip_template_rows(class_names: Sequence[str]) -> Iterator[TextRow]:
    """Every one of CLIP's templates filled with every class's name, as words."""
    templates = clip_templates()
    for label, name in enumerate(class_names):
        for template in templates:
            yield TextRow(label, template(spoken_name(bare_name(name))), SOURCE, LICENSE)
