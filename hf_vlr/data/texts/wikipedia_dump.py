"""Pages from a dump of Wikipedia in Parquet, such as the dataset `wikimedia/wikipedia`."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_vlr.data.texts.page import Page, as_title, title_key
from hf_vlr.errors import UserError

COLUMNS = ("title", "url", "text")


class WikipediaDump:
    """The pages of a folder of Parquet files (columns `title, url, text`) that have one of `titles`, in any case.

    The files are read once, a row group at a time: titles first, and texts only where a title is wanted. A dump has
    no redirects. Raises `UserError` for a folder without such files.
    """

    def __init__(self, folder: str | Path, titles: Iterable[str]) -> None:
        self._pages: dict[str, list[Page]] = {}
        wanted = pa.array(sorted({title_key(title) for title in titles}), type=pa.string())
        for file in _files(folder):
            for page in _matches(file, wanted):
                self._pages.setdefault(title_key(page.title), []).append(page)

    def page(self, title: str) -> Page:
        """The page of this spelling, else the only one of another case; several of them count as a disambiguation."""
        pages = self._pages.get(title_key(title), [])
        exact = [page for page in pages if page.title == as_title(title)]
        if len(exact or pages) > 1:
            return Page(title, "disambiguation")
        return (exact or pages or [Page(title, "missing")])[0]


def _files(folder: str | Path) -> list[Path]:
    root = Path(folder).expanduser()
    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise UserError(f"{root}: no Parquet files of a Wikipedia dump in this folder; check the path")
    return files


def _matches(file: Path, wanted: pa.Array) -> Iterator[Page]:
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: no readable Parquet file ({error}); fetch it again") from error
    missing = [name for name in COLUMNS if name not in parquet.schema_arrow.names]
    if missing:
        raise UserError(f"{file}: no column {missing[0]!r}; a dump has the columns {', '.join(COLUMNS)}")
    with parquet:
        for group in range(parquet.num_row_groups):
            titles = parquet.read_row_group(group, columns=["title"])["title"]
            found = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(titles)), value_set=wanted)
            if pc.any(found).as_py():
                for row in parquet.read_row_group(group, columns=list(COLUMNS)).filter(found).to_pylist():
                    yield _page(row["title"], row["url"], row["text"])


def _page(title: str, url: str | None, text: str | None) -> Page:
    text = text or ""
    lists = re.search(r"\b(?:may|can|might) (?:also )?refer to\b", text[:300])
    if lists or title.casefold().endswith("(disambiguation)"):
        return Page(title, "disambiguation", url or "")
    return Page(title, "article", url or "", text)
