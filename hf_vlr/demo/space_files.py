"""The files of a Space that shows a model."""

from importlib.resources import files
from pathlib import Path

from packaging.requirements import Requirement

from hf_vlr.demo.examples import COUNT, pictures_in
from hf_vlr.demo.packing import pack_wheel, requirements
from hf_vlr.demo.pictures import read_picture
from hf_vlr.errors import UserError

PUBLISHED = "hf_vlr[demo]"
# the version that the page is tested with
GRADIO = "6.31.0"
NAMES = ("README.md", "app.py", "requirements.txt")
EXAMPLES = "examples"
# pixels of a side; a page shows no more
EXAMPLE_SIDE = 512


def space_texts(space: str, model: str, needed: str = PUBLISHED) -> dict[str, str]:
    """README.md, app.py and requirements.txt of a Space, by name.

    space, model: ORG/NAME. needed: the lines of requirements.txt, by default the package where it is published.
    """
    values = {"space": space, "model": model, "requirements": needed, "gradio": GRADIO}
    found = {}
    for name in NAMES:
        text = files("hf_vlr.demo").joinpath("space", f"{name}.template").read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace("{{" + key + "}}", value)
        found[name] = text
    return found


def write_space(
    folder: Path, space: str, model: str, *, package: str | None = None, examples: str | Path | None = None
) -> list[str]:
    """Write a Space's files into a folder; their names, sorted.

    package: a requirement of pip that installs this package; without, a wheel of the package as it is installed here
    goes along and what it needs is required instead. examples: a folder whose pictures go along, smaller. Raises
    `UserError` for an `examples` without pictures, and where the package's files cannot be packed.
    """
    needed = package or "\n".join(dependencies())
    for name, text in space_texts(space, model, needed).items():
        (folder / name).write_text(text, encoding="utf-8")
    if package is None:
        pack_wheel(folder)
    if examples is not None:
        _write_examples(Path(examples), folder / EXAMPLES)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def dependencies(extra: str = "demo") -> list[str]:
    """The requirements of this package and of one of its extras. Raises `UserError` as `packing.requirements` does."""
    stated = [Requirement(line) for line in requirements()]
    kept = [one for one in stated if one.marker is None or one.marker.evaluate({"extra": extra})]
    return sorted(f"{one.name}{_extras(one)}{one.specifier}" for one in kept if one.name != "hf_vlr")


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def _write_examples(source: Path, target: Path) -> None:
    found = pictures_in(source)
    if not found:
        raise UserError(f"{source}: no pictures to show as examples; name a folder that has some")
    target.mkdir()
    for number, path in enumerate(found[:COUNT]):
        # drawn again: what a camera wrote beside the pixels, such as a place, stays here
        picture = read_picture(path, str(path))
        picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        picture.save(target / f"{number + 1}.png")
