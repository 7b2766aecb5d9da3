"""Tar shards of samples as WebDataset writes them: `key.jpg`, `key.cls`, `key.txt`, `key.json`."""

import json
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, Value
from datasets.table import InMemoryTable

from hf_vlr.data.columns import TEXT_COLUMNS
from hf_vlr.data.streaming import images
from hf_vlr.data.streaming.files import ShardFile, digest_of
from hf_vlr.data.streaming.store import FileStore, OpenBlocks
from hf_vlr.errors import UserError

# What a class number looks like; longer ones are names.
NUMBER = r"-?[0-9]{1,9}"


class TarShards:
    """The images of tar shards that follow one another.

    files, indexes: the shards and `read_indexes` of them. kind: which of a sample's images; None: its only one.
    store: keeps blocks of remote shards; of a local shard each image is read where it lies.
    """

    def __init__(self, files: Sequence[ShardFile], indexes: Sequence[pa.Table], kind: str | None, store: FileStore):
        self.files, self.store, self.kind = files, store, kind
        # texts stay out: together they may be larger than one array can be
        table = pa.concat_tables([index.select(["key", "kinds", "offsets", "sizes"]) for index in indexes])
        if not len(table):
            raise UserError(f"{files[0].name}: there are no samples in the shards; check the path in data.source")
        self.keys = table["key"]
        self.file_of = np.repeat(np.arange(len(files)), [len(index) for index in indexes])
        kinds = pc.list_flatten(table["kinds"])
        wanted = self._one_image(table["kinds"], kinds)
        self.offsets = pc.list_flatten(table["offsets"]).to_numpy()[wanted]
        self.lengths = pc.list_flatten(table["sizes"]).to_numpy()[wanted]
        self.kinds, self.kind_of = np.unique(kinds.to_numpy()[wanted].astype(str), return_inverse=True)
        place = self.offsets // images.BLOCK_BYTES
        _, self.blocks = np.unique(self.file_of * (place.max() + 1) + place, return_inverse=True)
        # np.unique sorts by file, then by place: blocks count up with the rows
        first = np.flatnonzero(np.diff(self.blocks, prepend=-1))
        last = np.append(first[1:], len(self.blocks)) - 1
        self.begins, self.ends = self.offsets[first], self.offsets[last] + self.lengths[last]
        self.opened = OpenBlocks(images.OPEN_BLOCKS)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each block that lies in the cache when it is read."""
        return self.ends - self.begins if self.files[0].remote else np.zeros(0, dtype=np.int64)

    def encoded(self, row: int) -> tuple[bytes, str, str]:
        file = self.files[int(self.file_of[row])]
        name = f"{self.keys[row].as_py()}.{self.kinds[self.kind_of[row]]}"
        start, length = int(self.offsets[row]), int(self.lengths[row])
        if file.remote:
            block = int(self.blocks[row])
            start -= int(self.begins[block])
            data = self.opened.get(block, lambda: self._block(block, file))[start : start + length]
        else:
            data = file.read(start, length)
        return data, name, f"{file.name}: member {name!r}"

    def identity(self) -> str:
        return "/".join([str(self.kind), *(file.key for file in self.files)])

    def _one_image(self, listed: pa.ChunkedArray, kinds: pa.ChunkedArray) -> np.ndarray:
        """Which of all images [I] is its sample's; `UserError` where a sample has not exactly one."""
        sample = np.repeat(np.arange(len(listed)), pc.list_value_length(listed).to_numpy())
        wanted = np.ones(len(kinds), dtype=bool) if self.kind is None else pc.equal(kinds, self.kind).to_numpy()
        wrong = np.flatnonzero(np.bincount(sample[wanted], minlength=len(listed)) != 1)
        if len(wrong):
            row = int(wrong[0])
            what = "several images" if self.kind is None else f"no image {self.kind!r}"
            raise UserError(
                f"{self.files[self.file_of[row]].name}: sample {self.keys[row].as_py()!r} has {what} "
                f"({', '.join(listed[row].as_py())}); name one with data.options.image=KIND"
            )
        return wanted

    def _block(self, block: int, file: ShardFile) -> mmap.mmap:
        begin, end = int(self.begins[block]), int(self.ends[block])

        def write(path: Path) -> None:
            path.write_bytes(file.read(begin, end - begin))

        def mapped(path: Path) -> mmap.mmap:
            with path.open("rb") as stream:
                found = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if len(found) != end - begin:
                raise ValueError("a block of another length")
            return found

        return self.store.get(digest_of(file.key, begin, end), write, mapped)


def tar_columns(files: Sequence[ShardFile], indexes: Sequence[pa.Table], options: dict[str, Any]) -> Dataset:
    """`label` and `text` of all samples, as columns of a dataset.

    A label is the member `.cls`, else the field `label` of `.json`; a text is `.txt`, else the first of the fields
    `text`, `caption`, `captions`. `label` and `text` of the options name another field, or `cls` and `txt`.
    """
    fields = _Fields(files, indexes)
    labels = fields.values(options.get("label"), "cls", ("label",), "label")
    texts = fields.values(options.get("text"), "txt", TEXT_COLUMNS, "text")
    if labels is None and texts is None:
        raise UserError(f"{files[0].name}: samples have neither .cls nor .txt, and no label or text in .json; add one")
    columns: dict[str, pa.Array] = {}
    if labels is not None:
        numbered = all(value is None or re.fullmatch(NUMBER, value) for value in labels)
        numbers = [int(value) if numbered and value is not None else value for value in labels]
        columns["label"] = pa.array(numbers, pa.int64() if numbered else pa.string())
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    features = Features({name: Value(str(column.type)) for name, column in columns.items()})
    return Dataset(InMemoryTable.from_pydict(columns), info=DatasetInfo(features=features))


class _Fields:
    """Members of texts and fields of JSON members, by sample."""

    def __init__(self, files: Sequence[ShardFile], indexes: Sequence[pa.Table]) -> None:
        self.files, self.indexes = files, indexes
        self.records: list[dict[str, Any]] | None = None

    def values(self, wanted: str | None, member: str, names: tuple[str, ...], use: str) -> list[str | None] | None:
        """The values of a member, or else of a JSON field; None where no sample has any."""
        if wanted in (None, member):
            found = [_plain(value) for index in self.indexes for value in index[member].to_pylist()]
            if any(value is not None for value in found):
                return found
        for name in names if wanted is None else (wanted,):
            found = [_plain(record.get(name)) for record in self._records()]
            if any(value is not None for value in found):
                return found
        if wanted is not None:
            raise UserError(
                f"{self.files[0].name}: no sample has {wanted!r} for the {use}; name a field of .json, or {member!r}"
            )
        return None

    def _records(self) -> list[dict[str, Any]]:
        if self.records is None:
            self.records = [
                _record(file, key, text)
                for file, index in zip(self.files, self.indexes)
                for key, text in zip(index["key"].to_pylist(), index["json"].to_pylist())
            ]
        return self.records


def _record(file: ShardFile, key: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name}: member {key + '.json'!r} is not JSON ({error}); mend it") from error
    if not isinstance(record, dict):
        raise UserError(f"{file.name}: member {key + '.json'!r} is no JSON object; mend it")
    return record


def _plain(value: Any) -> str | None:
    """A text or a number as text, the first of a list; None for what is neither."""
    value = value[0] if isinstance(value, list) and value else value
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip()
