"""CLIP's prompts for ImageNet, as OpenAI published them: one, seven, or all eighty."""

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
# the lists of open_clip's file, by how many they are
LISTS = {80: "OPENAI_IMAGENET_TEMPLATES", 7: "SIMPLE_IMAGENET_TEMPLATES"}


@cache
def clip_templates(count: int = 80) -> tuple[Template, ...]:
    """Templates as functions of a name, in OpenAI's order: the prompt "a photo of a {}.", 7 chosen ones, or all 80.

    All but the first are read from the installed open_clip. Raises `UserError` for another count, and where open_clip
    is needed and not installed.
    """
    if count == 1:
        return (lambda name: f"a photo of a {name}.",)
    if count not in LISTS:
        raise UserError(f"clip-templates:{count}: there are 1, 7 and 80 templates")
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
    return tuple(getattr(module, LISTS[count]))


def clip_template_rows(class_names: Sequence[str], count: int = 80) -> Iterator[TextRow]:
    """Every one of `count` of CLIP's templates filled with every class's name, as words."""
    templates = clip_templates(count)
    for label, name in enumerate(class_names):
        for template in templates:
            yield TextRow(label, template(spoken_name(bare_name(name))), SOURCE, LICENSE)
