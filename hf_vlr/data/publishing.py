"""Putting a built dataset on the Hub: one commit, or one line that says why there is none."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_vlr.errors import UserError
from hf_vlr.hub.connection import check_destination, claim, one_line_errors, open_hub, persist

__all__ = ["check_destination", "images_without_bytes", "push_dataset", "require_publishable"]

PUBLISHED = ["README.md", "build_report.json", "data/*.parquet", "texts/*.parquet"]
HINTS = {413: "build it with size=, or in more shards"}


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

    def upload() -> str:
        claim(api, repo_id, private, "dataset")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder).expanduser(),
            repo_type="dataset",
            commit_message="Upload the dataset",
            allow_patterns=PUBLISHED,
            delete_patterns=PUBLISHED[1:],
        ).commit_url

    with one_line_errors(repo_id, HINTS):
        return persist(upload)


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
