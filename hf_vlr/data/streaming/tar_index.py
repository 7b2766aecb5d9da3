"""Which samples a tar shard holds and where: made in one pass over the shard, then kept."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from hf_vlr.data.places import IMAGE_SUFFIXES
from hf_vlr.data.streaming.files import ShardFile, digest_of
from hf_vlr.data.streaming.store import FileStore
from hf_vlr.data.streaming.tar_members import Member, TarReader, tar_members
from hf_vlr.errors import UserError

# Changes when the index does, so that older ones are not read.
VERSION = 1
TEXTS = ("cls", "txt", "json")
MAX_TEXT = 1 << 20
READERS = 8
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "kinds": pa.list_(pa.string()),
        "offsets": pa.list_(pa.int64()),
        "sizes": pa.list_(pa.int64()),
        **{kind: pa.string() for kind in TEXTS},
    }
)


def read_indexes(shards: Sequence[ShardFile], store: FileStore) -> list[pa.Table]:
    """The samples of each shard, a row each in the order in which they stand.

    Columns: `key`; of its image files `kinds` (what follows the key, without the dot), `offsets` and `sizes` in the
    shard; the texts of its members `cls`, `txt` and `json`, null where it has none.

    A shard is read once, a remote one from its beginning to its end, and the index kept in `store`. Raises `UserError`
    naming shard and member for what is not a sample.
    """

    def index(shard: ShardFile) -> pa.Table:
        def write(path: Path) -> None:
            pq.write_table(make_index(shard), path)

        return store.get(digest_of(shard.key, "tar", VERSION), write, pq.read_table)

    with ThreadPoolExecutor(READERS if shards[0].remote else 1) as pool:
        made = pool.map(index, shards)
        quiet = None if len(shards) > 4 else True
        return list(tqdm(made, total=len(shards), desc="indexing shards", unit="shard", leave=False, disable=quiet))


def make_index(shard: ShardFile) -> pa.Table:
    """The index of one shard."""
    samples: dict[str, dict[str, Any]] = {}
    last = None
    with closing(TarReader(shard)) as reader:
        for member in tar_members(shard, reader):
            key, kind = split_name(member.name)
            if kind is None:
                continue
            where = f"{shard.name}: member {member.name!r}"
            if key in samples and key != last:
                raise UserError(f"{where}: its key stands twice in the shard, not in one piece; write the shard anew")
            sample = samples.setdefault(key, {"key": key, "kinds": [], "offsets": [], "sizes": []})
            last = key
            if kind in TEXTS:
                if kind in sample:
                    raise UserError(f"{where}: stands twice in the shard; remove one")
                sample[kind] = _text(where, member, reader)
            elif f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES:
                if kind in sample["kinds"]:
                    raise UserError(f"{where}: stands twice in the shard; remove one")
                for column, value in (("kinds", kind), ("offsets", member.offset), ("sizes", member.size)):
                    sample[column].append(value)
    for key, sample in samples.items():
        if not sample["kinds"]:
            raise UserError(f"{shard.name}: sample {key!r} has no image; remove it, or add {key}.jpg")
    return pa.Table.from_pylist(list(samples.values()), schema=SCHEMA)


def split_name(name: str) -> tuple[str, str | None]:
    """(`key`, what follows its first dot, in lower case); no kind where the name has no dot or begins with one."""
    folder, slash, base = name.rpartition("/")
    stem, dot, kind = base.partition(".")
    return f"{folder}{slash}{stem}", kind.lower() if stem and dot else None


def _text(where: str, member: Member, reader: TarReader) -> str:
    if member.size > MAX_TEXT:
        raise UserError(f"{where}: a text of {member.size} bytes; texts have at most {MAX_TEXT}")
    try:
        return reader.read(member.offset, member.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 text ({error.reason}); write it as UTF-8") from error
