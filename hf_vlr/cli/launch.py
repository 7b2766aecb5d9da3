"""`hf-vlr launch`."""

import difflib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from hf_vlr.cli.output import is_main_process, say, say_table
from hf_vlr.errors import UserError


@click.command()
@click.argument("name", required=False)
@click.option("--out", metavar="FILE", help="Write the file there instead of printing it.")
def command(name: str | None, out: str | None) -> None:
    """List the files that start a training on given machines; with NAME print one, to be adapted.

    \b
    hf-vlr launch
    hf-vlr launch multi-gpu --out multi-gpu.yaml
    accelerate launch --config_file multi-gpu.yaml -m hf_vlr train RECIPE
    """
    if name is None:
        if out is not None:
            raise UserError("--out needs the NAME of a launch file; `hf-vlr launch` lists them")
        say_table([(one, about(read(one))) for one in launch_files()])
        return
    text = read(name)
    if out is None:
        say(text.removesuffix("\n"))
    elif is_main_process():
        write(text, Path(out))
        say(f"written to {out}")


def launch_files() -> dict[str, Traversable]:
    """The packaged launch files by their names without suffix: Accelerate configurations and scripts of schedulers."""
    entries = sorted(files("hf_vlr.launch").iterdir(), key=lambda entry: entry.name)
    return {entry.name.rpartition(".")[0]: entry for entry in entries if entry.name.endswith((".yaml", ".sh"))}


def read(name: str) -> str:
    """The text of a launch file; raises `UserError` naming the nearest one there is."""
    found = launch_files()
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown launch file {name}; {hint}There are: {', '.join(found)}")
    return found[name].read_text(encoding="utf-8")


def about(text: str) -> str:
    """The first line of comment of a launch file."""
    return next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))


def write(text: str, path: Path) -> None:
    """Write a launch file, a script ready to be run; raises `UserError` rather than overwrite something else."""
    try:
        if path.exists() and path.read_bytes() != text.encode():
            raise UserError(f"--out {path} exists and differs; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if text.startswith("#!"):
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}") from error
