"""A run becomes a repository on the Hub: one commit, or one line that says why there is none."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError

from hf_vlr.disk import megabytes
from hf_vlr.errors import UserError
from hf_vlr.hub.bundle import CARD, MANIFEST, Bundle, make_bundle
from hf_vlr.hub.connection import check_name, claim, one_line_errors, open_hub, persist
from hf_vlr.hub.licenses import check_license
from hf_vlr.hub.run_facts import RunFacts, check_folder, read_run

Say = Callable[[str], None]
UNCHANGED = "nothing has changed: the repository holds all of this already"


def push_run(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    predictions: bool = False,
    space: str | None = None,
    say: Say = print,
) -> str:
    """Upload a trained or converted model as `repo_id` in one commit, and return the URL of the commit.

    What goes: weights, configuration, processor, the code that loads it without this package, recipe, measurements
    with report and plots, class texts where each states a license, and a card written from all that. Paths of this
    machine do not go, nor do checkpoints. A second push brings the repository up to date: files of the first that are
    no more are removed in the same commit, those of others stay. Files that are there are not uploaded again, so that
    an interrupted push is only started again. Where the Hub answers 5xx it is asked again, three times.

    Args:
        folder: of a run, or one that `hf-vlr convert` wrote.
        repo_id: ORG/NAME.
        private: of a repository that is made now; one that is public already is refused.
        dry_run: tell the files with their sizes and the card, touch no network, return "".
        token: by default the one that `hf auth login` saved.
        dataset: ORG/NAME of the data set on the Hub, where the recipe names a copy on this machine.
        license: the identifier of the weights' license on the Hub, such as cc-by-4.0 or other; else `unknown`.
        predictions: whether `predictions.npz` goes too.
        space: ORG/NAME of a Space that is to show the model: made or found writable before anything is uploaded.
        say: is told what happens, line by line; `UNCHANGED` where the repository held everything already.

    Raises `UserError` for a folder without a complete model, and everything the Hub or the network refuses.
    """
    for name in (repo_id, dataset, space):
        if name is not None:
            check_name(name)
    if license is not None:
        check_license(license)
    if dry_run:
        bundle = make_bundle(read_run(folder, dataset), repo_id, license, predictions)
        tell(bundle, say)
        return ""
    check_folder(Path(folder).expanduser())
    api = open_hub(repo_id, token)
    facts = read_run(folder, dataset)
    with one_line_errors(repo_id):
        # before the work: a token that is none, a name that is another's
        persist(lambda: claim(api, repo_id, private), say)
        if space is not None:
            with one_line_errors(space):
                persist(lambda: claim(api, space, private, "space", "gradio"), say)
        facts = persist(lambda: with_known_ids(api, facts, dataset, say), say)
        bundle = make_bundle(facts, repo_id, license, predictions)
        say(f"{len(bundle.files)} files, {megabytes(sum(map(bundle.size, bundle.files)))}")
        return persist(lambda: commit(api, repo_id, bundle, say), say)


def with_known_ids(api: HfApi, facts: RunFacts, asked: str | None, say: Say) -> RunFacts:
    """The facts without ids that the Hub does not know; `UserError` for the data set that the user named.

    A folder that the recipe called `runs/first`, and that is no more, looks like an id.
    """
    models = tuple(name for name in facts.base_models if api.repo_exists(name))
    facts = replace(facts, base_models=models)
    if facts.dataset_id is None or api.repo_exists(facts.dataset_id, repo_type="dataset"):
        return facts
    if asked:
        raise UserError(f"{asked}: no such data set on the Hub, or not for this token; check --dataset, or push it")
    say(f"{facts.dataset_id} is no data set on the Hub; the card gives its name alone")
    return replace(facts, dataset_id=None)


def commit(api: HfApi, repo_id: str, bundle: Bundle, say: Say) -> str:
    """One commit of a bundle, and the removal of what an earlier push uploaded and this one does not."""
    # made anew at every attempt: an operation remembers what became of it
    operations = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in bundle.files.items()
    ]
    there = set(api.list_repo_files(repo_id))
    stale = sorted((earlier_files(api, repo_id, there) & there) - set(bundle.files) - {".gitattributes"})
    title = "Update the model" if MANIFEST in there else "Upload the model"
    before = api.model_info(repo_id).sha
    with without_note_of_nothing():
        made = api.create_commit(repo_id, [*operations, *map(CommitOperationDelete, stale)], commit_message=title)
    if made.oid == before:
        say(UNCHANGED)
    return made.commit_url


@contextmanager
def without_note_of_nothing() -> Iterator[None]:
    """What huggingface_hub warns of where no file has changed is left out; it is told in our own words."""
    logger = logging.getLogger("huggingface_hub.hf_api")

    def other(record: logging.LogRecord) -> bool:
        return "prevent empty commit" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def earlier_files(api: HfApi, repo_id: str, there: set[str]) -> set[str]:
    """The paths that the last push uploaded, by its own record; none where there is no readable one."""
    if MANIFEST not in there:
        return set()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = api.hf_hub_download(repo_id, MANIFEST, cache_dir=folder)
            listed = json.loads(Path(path).read_text(encoding="utf-8"))["files"]
        except (EntryNotFoundError, ValueError, KeyError, TypeError):
            return set()
    return {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()


def tell(bundle: Bundle, say: Say) -> None:
    """Every file with its size, and the card."""
    width = max(map(len, bundle.files))
    for path in bundle.files:
        say(f"{path:<{width}}  {bundle.size(path):>13,} bytes")
    say(f"{len(bundle.files)} files, {megabytes(sum(map(bundle.size, bundle.files)))}; nothing is uploaded\n")
    say(bundle.read(CARD).decode())
