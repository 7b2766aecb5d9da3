"""Putting a built dataset on the Hub: one commit, or one line that says why there is none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_vlr.errors import UserError

PUBLISHED = ["README.md", "build_report.json", "data/*.parquet", "texts/*.parquet"]
AGAIN = "what is uploaded is not uploaded twice"
REFUSED = {
    402: "the Hub asks for payment; see the billing page of the account",
    403: "this token may not write there; choose a name of your own or your organisation's, or a token that may write",
    404: "not found, or not for this token; check the name, or log in: hf auth login",
    409: "this name is taken; choose another",
    413: "the upload is larger than the Hub takes; build it with size=, or in more shards",
    429: f"too many requests; start again in some minutes: {AGAIN}",
}


def push_dataset(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a built dataset as `repo_id` and return the URL of the commit.

    The card, `data/`, `texts/` and `build_report.json` become the repository's; Parquet files of an earlier build go
    in the same commit, so that shards of two builds never mix. (huggingface_hub divides very many files among several
    commits.) Files that are there already are not uploaded again, so that an interrupted upload is only started again.

    repo_id: ORG/NAME. private: of a repository that is made now; one that is public already is refused. token: by
    default the one that `hf auth login` saved. Raises `UserError` for a folder that is no built dataset, one whose
    images are paths on this machine, and everything the Hub or the network refuses.
    """
    require_publishable(Path(folder).expanduser())
    api = open_hub(repo_id, token)
    with one_line_errors(repo_id):
        claim(api, repo_id, private)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder).expanduser(),
            repo_type="dataset",
            commit_message="Upload the dataset",
            allow_patterns=PUBLISHED,
            delete_patterns=PUBLISHED[1:],
        )
    return commit.commit_url


def check_destination(repo_id: str, *, token: str | None = None) -> None:
    """Ask the Hub whether it knows the token, before hours are spent on building. Raises `UserError`."""
    api = open_hub(repo_id, token)
    with one_line_errors(repo_id):
        api.whoami()


def require_publishable(folder: Path) -> None:
    """`UserError` unless `folder` is a built dataset that holds its images."""
    files = sorted(folder.glob("data/*.parquet"))
    if not files or not (folder / "README.md").is_file():
        raise UserError(f"{folder}: no built dataset (README.md and data/*.parquet); make one: hf-vlr data build")
    for file in files:
        try:
            missing = images_without_bytes(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a readable Parquet file; build the dataset again") from error
        if missing:
            raise UserError(
                f"{file}: {missing:,} images are paths on this machine, which nobody else can read; "
                "build the dataset with images=embed"
            )


def images_without_bytes(file: Path) -> int:
    """Rows of a Parquet file whose image has no bytes of its own; from the file's statistics where it has any."""
    with pq.ParquetFile(file) as parquet:
        metadata, missing = parquet.metadata, 0
        paths = [parquet.schema.column(index).path for index in range(metadata.num_columns)]
        for index, path in enumerate(paths):
            if not path.endswith(".bytes") or path.removesuffix("bytes") + "path" not in paths:
                continue
            for group in range(metadata.num_row_groups):
                statistics = metadata.row_group(group).column(index).statistics
                if statistics is not None and statistics.has_null_count:
                    missing += statistics.null_count
                else:
                    column = parquet.read_row_group(group, columns=[path]).flatten().column(path)
                    missing += column.null_count
    return missing


def open_hub(repo_id: str, token: str | None) -> HfApi:
    """The Hub with a token; `UserError` without one, or for a name that cannot be."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: not a name on the Hub; write ORG/NAME in letters, digits, - _ and .") from error
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id}: the name of its owner is missing; write ORG/NAME")
    token = token or get_token()
    if not token:
        raise UserError("no token for the Hub; log in first: hf auth login (or set HF_TOKEN)")
    return HfApi(token=token)


def claim(api: HfApi, repo_id: str, private: bool) -> None:
    """Make the repository, or see that the one that exists may be written to."""
    try:
        # None leaves the choice to the organisation's own default.
        api.create_repo(repo_id, repo_type="dataset", private=private or None)
        return
    except HfHubHTTPError as error:
        # A token for one repository alone may not create it, and may write to it all the same.
        if error.response.status_code not in (401, 403, 409) or not api.repo_exists(repo_id, repo_type="dataset"):
            raise
    if private and not api.repo_info(repo_id, repo_type="dataset").private:
        raise UserError(f"{repo_id}: exists and is public; make it private in its settings, or choose another name")


@contextmanager
def one_line_errors(repo_id: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into `UserError`s that say what to do."""
    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE=1 forbids the network; unset it to push") from error
    except HTTPError as error:
        raise UserError(explain(error, repo_id)) from error
    except (RuntimeError, OSError) as error:
        # huggingface_hub wraps what happens to a single file; hf_xet raises these kinds itself.
        cause = error.__cause__
        if isinstance(cause, HTTPError):
            raise UserError(explain(cause, repo_id)) from error
        raise UserError(f"{repo_id}: the upload broke off ({first_line(error)}); start again: {AGAIN}") from error
    except ValueError as error:
        if "README.md" not in str(error):
            raise
        raise UserError(f"{repo_id}: the Hub refuses the card: {' '.join(str(error).split())}") from error


def explain(error: HTTPError, repo_id: str) -> str:
    """What happened between here and the Hub, and what to do about it."""
    if not isinstance(error, HfHubHTTPError):
        return f"cannot reach {constants.ENDPOINT} ({first_line(error)}); check the network and start again: {AGAIN}"
    status = error.response.status_code
    if status == 401:
        first = "unset HF_TOKEN, which wins over a login, or mend it" if os.environ.get("HF_TOKEN") else "log in again"
        return f"the Hub refuses the token, it is wrong or has expired; {first}: hf auth login --force"
    if status in REFUSED:
        return f"{repo_id}: {REFUSED[status]}"
    if status >= 500:
        return f"{repo_id}: the Hub is in trouble ({status}); start again later: {AGAIN}"
    return f"{repo_id}: the Hub refuses ({status}): {error.server_message or first_line(error)}"


def first_line(error: Exception) -> str:
    """The error in a few words."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
