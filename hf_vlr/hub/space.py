"""A Space on the Hub that shows a model: made in one commit, and made anew by the next."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, constants

from hf_vlr.demo.space_files import write_space
from hf_vlr.errors import UserError
from hf_vlr.hub.connection import check_name, claim, one_line_errors, open_hub, persist

# of an earlier push; the rest of a Space is its owner's
OURS = ["hf_vlr-*.whl"]


def push_space(
    space_id: str,
    model_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    dry_run: bool = False,
    package: str | None = None,
    examples: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Make or renew the Space `space_id`, which shows the model `model_id`, and return its address.

    Args:
        space_id, model_id: ORG/NAME. The model must be on the Hub.
        private: of a Space that is made now; one that is public already is refused.
        token: by default the one that `hf auth login` saved.
        dry_run: tell the files with their sizes, touch no network, return "".
        package: a requirement of pip that installs this package, where it is published; without, a wheel of the package
            as it is installed here goes along.
        examples: a folder of pictures to offer as examples.
        say: is told what happens, line by line.

    Raises `UserError` for a model that is not there, pictures that cannot be read, and everything the Hub or the
    network refuses.
    """
    for name in (space_id, model_id):
        check_name(name)
    with tempfile.TemporaryDirectory() as folder:
        names = write_space(Path(folder), space_id, model_id, package=package, examples=examples)
        if dry_run:
            for name in names:
                say(f"{(Path(folder) / name).stat().st_size:>10,}  {name}")
            return ""
        api = open_hub(space_id, token)
        with one_line_errors(space_id):
            persist(lambda: require_model(api, model_id, say), say)
            persist(lambda: claim(api, space_id, private, "space", "gradio"), say)
            persist(lambda: upload(api, space_id, model_id, folder), say)
    return f"{constants.ENDPOINT}/spaces/{space_id}"


def require_model(api: HfApi, model_id: str, say: Callable[[str], None]) -> None:
    """`UserError` for a model that is not on the Hub; a private one is told of."""
    if not api.repo_exists(model_id):
        raise UserError(f"{model_id}: no such model on the Hub, or not for this token; push it first")
    if api.model_info(model_id).private:
        say(f"{model_id} is private: give the Space a secret HF_TOKEN that may read it")


def upload(api: HfApi, space_id: str, model_id: str, folder: str) -> None:
    """The folder as one commit; wheels of earlier pushes go in the same."""
    api.upload_folder(
        repo_id=space_id,
        folder_path=folder,
        repo_type="space",
        commit_message=f"Show {model_id}",
        delete_patterns=OURS,
    )
