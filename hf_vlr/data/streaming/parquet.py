"""Parquet shards: labels and texts are read up front, images by blocks of neighbouring row groups."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image

from hf_vlr.data.streaming import images
from hf_vlr.data.streaming.files import ShardFile, digest_of
from hf_vlr.data.streaming.store import FileStore, OpenBlocks
from hf_vlr.errors import UserError, first_line

# Files whose beginnings are read at a time.
READERS = 8


class ParquetShards:
    """The image column of Parquet files that follow one another.

    files, footers: the files and what their ends say of them. column: the image column. store: keeps blocks as Arrow
    files that every process of the machine maps into its memory; a local file's blocks too, because a row of a row
    group cannot be had without decoding all of it. name: the split, for messages.
    """

    def __init__(
        self,
        files: Sequence[ShardFile],
        footers: Sequence[pq.FileMetaData],
        column: str,
        store: FileStore,
        name: str,
    ) -> None:
        self.files, self.footers, self.column, self.store, self.name = files, footers, column, store, name
        groups = [group for number, footer in enumerate(footers) for group in _groups(number, footer, column)]
        self.members = _neighbours(groups)
        rows = [sum(rows for _, _, rows, _ in members) for members in self.members]
        self.sizes = np.array([sum(size for *_, size in members) for members in self.members], dtype=np.int64)
        self.starts = np.cumsum([0, *rows])
        self.blocks = np.repeat(np.arange(len(rows)), rows)
        self.opened = OpenBlocks(images.OPEN_BLOCKS)

    def encoded(self, row: int) -> tuple[bytes | None, str | None, str]:
        block = int(self.blocks[row])
        file = self.files[self.members[block][0][0]]
        table = self.opened.get(block, lambda: self._block(block, file))
        value = table.column(0)[row - int(self.starts[block])].as_py()
        value = value if isinstance(value, dict) else {"bytes": value, "path": None}
        where = f"{self.name} row {row} in {file.name}" + (f" ({value['path']})" if value.get("path") else "")
        if value["bytes"] is None and value.get("path") and file.remote:
            raise UserError(f"{where}: the file holds only the image's path; publish it with the images in it")
        return value["bytes"], value.get("path"), where

    def identity(self) -> str:
        return "/".join([self.column, *(file.key for file in self.files)])

    def _block(self, block: int, file: ShardFile) -> pa.Table:
        groups = [group for _, group, _, _ in self.members[block]]

        def write(path: Path) -> None:
            table = read_table(file, self.footers[self.members[block][0][0]], [self.column], groups)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        return self.store.get(digest_of(file.key, self.column, groups), write, _mapped)


def read_footers(files: Sequence[ShardFile], store: FileStore) -> list[pq.FileMetaData]:
    """What the end of each file says: its rows, columns and where they lie. Those of remote files are kept."""

    def footer(file: ShardFile) -> pq.FileMetaData:
        if not file.remote:
            return _footer(file)

        def write(path: Path) -> None:
            _footer(file).write_metadata_file(path)

        return store.get(digest_of(file.key, "footer"), write, pq.read_metadata)

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(footer, files))


def read_columns(
    files: Sequence[ShardFile], footers: Sequence[pq.FileMetaData], columns: Sequence[str], store: FileStore
) -> pa.Table:
    """Some columns of all files, none of them of images. Those of remote files are kept."""

    def part(file: ShardFile, footer: pq.FileMetaData) -> pa.Table:
        missing = [name for name in columns if name not in footer.schema.to_arrow_schema().names]
        if missing:
            raise UserError(f"{file.name}: has no column {missing[0]!r}, which other files of the dataset have")
        if not file.remote:
            return read_table(file, footer, columns)

        def write(path: Path) -> None:
            pq.write_table(read_table(file, footer, columns), path)

        return store.get(digest_of(file.key, columns), write, pq.read_table)

    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(part, files, footers))
    return pa.concat_tables(parts, promote_options="permissive")


def read_table(
    file: ShardFile, footer: pq.FileMetaData, columns: Sequence[str], groups: Sequence[int] | None = None
) -> pa.Table:
    """Columns of some row groups (None: all) of one file."""
    groups = range(footer.num_row_groups) if groups is None else groups
    try:
        with file.open() as stream, pq.ParquetFile(stream, metadata=footer, pre_buffer=True) as reader:
            return reader.read_row_groups(list(groups), columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.name}: not a readable Parquet file ({first_line(error)}); restore it") from error


def features_of(schema: pa.Schema, described: Features | None = None) -> Features:
    """The columns' types: as `datasets` wrote them into the file, else as `described`, else as they are stored.

    Columns of `{bytes, path}` are images even where nobody says so.
    """
    features = Features.from_arrow_schema(schema)
    if b"huggingface" in (schema.metadata or {}):
        return features
    if described:
        return described
    structs = {field.name for field in schema if pa.types.is_struct(field.type) and _holds_bytes(field.type)}
    return Features({name: Image() if name in structs else kind for name, kind in features.items()})


def _holds_bytes(kind: pa.StructType) -> bool:
    return {kind.field(at).name for at in range(kind.num_fields)} >= {"bytes", "path"}


def _footer(file: ShardFile) -> pq.FileMetaData:
    try:
        with file.open() as stream:
            return pq.read_metadata(stream)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file.name}: not a readable Parquet file ({first_line(error)}); restore it") from error


def _groups(number: int, footer: pq.FileMetaData, column: str) -> list[tuple[int, int, int, int]]:
    """(file, row group, its rows, bytes of its images) of every row group that has rows."""
    found = []
    for group in range(footer.num_row_groups):
        about = footer.row_group(group)
        chunks = (about.column(at) for at in range(about.num_columns))
        size = sum(it.total_uncompressed_size for it in chunks if it.path_in_schema.split(".")[0] == column)
        found.append((number, group, about.num_rows, size))
    return [group for group in found if group[2]]


def _neighbours(groups: list[tuple[int, int, int, int]]) -> list[list[tuple[int, int, int, int]]]:
    """Row groups of one file that follow each other, together as large as a block."""
    blocks: list[list[tuple[int, int, int, int]]] = []
    size = 0
    for group in groups:
        if not blocks or group[0] != blocks[-1][0][0] or size + group[3] > images.BLOCK_BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(group)
        size += group[3]
    return blocks


def _mapped(path: Path) -> pa.Table:
    """An Arrow file, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
