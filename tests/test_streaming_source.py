"""Streamed sources: the plain source's rows, each once an epoch whoever reads, few reads, a bounded cache."""

import importlib.util
import json
import multiprocessing
import os
import pickle
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from hf_vlr.cli.main import main
from hf_vlr.data.batches import EpochBatches, TrainingSet
from hf_vlr.data.longtail_dataset import make_longtail
from hf_vlr.data.mixture import as_pairs, mix
from hf_vlr.data.source import ImageSource, load_source
from hf_vlr.data.streaming import images, parquet
from hf_vlr.data.streaming.store import FileStore
from hf_vlr.errors import UserError

SPEC = importlib.util.spec_from_file_location("streaming_data", Path(__file__).with_name("streaming_data.py"))
data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(data)
ROWS = 330


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """A block is one row group of five images, or about three samples of a tar."""
    monkeypatch.setattr(images, "BLOCK_BYTES", 20_000)


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Row groups read so far, by all processes: (file, columns, row groups)."""
    log = tmp_path / "reads.jsonl"
    log.touch()
    read = parquet.read_table

    def counting(file, footer, columns, groups=None):
        with log.open("a") as lines:
            lines.write(json.dumps([Path(file.name).name, list(columns), list(groups or [])]) + "\n")
        return read(file, footer, columns, groups)

    monkeypatch.setattr(parquet, "read_table", counting)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def parquet_folder(folder: Path) -> str:
    for part in range(3):
        rows = range(110 * part, 110 * (part + 1))
        data.write_parquet(folder / f"train-{part}.parquet", rows, fold=[row % 2 for row in rows])
    data.write_parquet(folder / "test-0.parquet", range(400, 409), fold=[0] * 9)
    return str(folder)


def tar_folder(folder: Path) -> str:
    for part in range(3):
        data.write_tar(folder / f"train-{part}.tar", data.samples(range(110 * part, 110 * (part + 1)), "cls", "txt"))
    return f"webdataset:{folder}"


MADE = {"parquet": parquet_folder, "tar": tar_folder}


def streamed(kind: str, folder: Path, **options: object) -> ImageSource:
    return load_source(f"stream:{MADE[kind](folder)}", "train", validation_fraction=0, options=options)


def as_row(image) -> torch.Tensor:
    return torch.tensor(data.row_of(image))


def epoch_of(source: ImageSource, ranks: int, workers: int, start: int = 0, batch: int = 12) -> list[list[list[int]]]:
    """The rows that pictures show, by rank and batch."""
    found = []
    for rank in range(ranks):
        keys = EpochBatches(source.labels, batch, "instance", 0, rank=rank, world_size=ranks, blocks=source.blocks)
        keys.set_epoch(1, start)
        dataset = TrainingSet(source, None, as_row, 0)
        loader = DataLoader(dataset, batch_sampler=keys, collate_fn=list, num_workers=workers)
        found.append([[int(it["image"]) for it in samples if not it.get("blank")] for samples in loader])
    return found


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_row_of_an_epoch_is_read_once(kind, workers, tmp_path, small_blocks):
    source = streamed(kind, tmp_path / "data")
    alone = epoch_of(source, 1, workers)[0]
    assert sorted(row for rows in alone for row in rows) == list(range(ROWS))
    assert alone != [list(range(12 * at, min(ROWS, 12 * at + 12))) for at in range(28)]
    for ranks in (2, 3):
        shown = epoch_of(source, ranks, workers)
        assert [[row for part in parts for row in part] for parts in zip(*shown)] == alone


@pytest.mark.parametrize("kind", MADE)
def test_an_epoch_goes_on_from_any_batch(kind, tmp_path, small_blocks):
    source = streamed(kind, tmp_path / "data")
    whole = epoch_of(source, 1, 0)[0]
    again = streamed(kind, tmp_path / "data")
    for start in (1, 13, 27):
        halves = [[rows[: len(rows) // 2], rows[len(rows) // 2 :]] for rows in whole[start:]]
        assert epoch_of(again, 2, 0, start) == [list(part) for part in zip(*halves)]
    assert epoch_of(again, 1, 2, 14)[0] == whole[14:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("machines", [1, 2])
def test_an_epoch_reads_every_row_group_about_once(machines, workers, tmp_path, small_blocks, reads):
    """Two ranks on one machine, and on two that share no cache: all reads together, against the size of the data."""
    spec = parquet_folder(tmp_path / "data")
    for rank in range(2):
        options = {"cache_dir": str(tmp_path / f"cache {rank % machines}")}
        source = load_source(f"stream:{spec}", "train", validation_fraction=0, options=options)
        keys = EpochBatches(source.labels, 30, "instance", 0, rank=rank, world_size=2, blocks=source.blocks)
        dataset = TrainingSet(source, None, as_row, 0)
        loader = DataLoader(dataset, batch_sampler=keys, collate_fn=list, num_workers=workers)
        assert sum(len(samples) for samples in loader) == ROWS // 2
    groups = Counter((file, group) for file, columns, found in reads() if "image" in columns for group in found)
    assert len(groups) == ROWS // 5
    assert sum(groups.values()) <= {1: 1.0, 2: 1.15}[machines] * len(groups)


def test_without_blocks_the_same_reads_are_many_more(tmp_path, small_blocks, reads):
    """What the order is for: a cache of a few blocks is no help to a plain permutation."""
    options = {"cache_gib": 20 * 25_000 / 2**30}
    counts = {}
    for name in ("blocks", "plain"):
        source = streamed("parquet", tmp_path / "data", cache_dir=str(tmp_path / name), **options)
        before = len(reads())
        blocks = source.blocks if name == "blocks" else None
        for key in (key for batch in EpochBatches(source.labels, 32, "instance", 0, blocks=blocks) for key in batch):
            assert data.row_of(source.images[key.index]) == key.index
        counts[name] = len(reads()) - before - 3
    assert counts["blocks"] <= 1.15 * ROWS / 5
    assert counts["plain"] > 2 * ROWS / 5


def test_a_streamed_folder_is_the_plain_one(tmp_path):
    spec = parquet_folder(tmp_path / "data")
    for split, words in (
        ("train", {}),
        ("validation", {}),
        ("train", {"fold": 0}),
        ("test", {"fold": 1}),
        ("validation", {"fold": 1}),
    ):
        plain, stream = load_source(spec, split, **words), load_source(f"stream:{spec}", split, **words)
        assert stream.labels.tolist() == plain.labels.tolist()
        assert (stream.captions, stream.class_names) == (plain.captions, plain.class_names)
        assert (stream.name, stream.split, plain.blocks) == (plain.name, plain.split, None)
        assert [data.row_of(image) for image in stream.images] == [data.row_of(image) for image in plain.images]
        assert len(stream.blocks) == len(stream)
        again = load_source(f"stream:{spec}", split, **words)
        assert stream.fingerprint() == again.fingerprint() != plain.fingerprint()
        part = stream.subset([7, 2, 2])
        assert (part.blocks.tolist(), len(part)) == (stream.blocks[[7, 2, 2]].tolist(), 3)
        assert [data.row_of(image) for image in part.images] == [data.row_of(stream.images[at]) for at in (7, 2, 2)]
    assert load_source(f"stream:{spec}", "test").labels.tolist() == [row % 3 for row in range(400, 409)]


def test_groups_and_unnamed_images_are_read_as_they_are_stored(tmp_path):
    schema = data.write_parquet(tmp_path / "data" / "a.parquet", range(10), group=[row // 2 for row in range(10)])
    bare = pq.read_table(schema).replace_schema_metadata(None)
    pq.write_table(bare, tmp_path / "data" / "a.parquet", row_group_size=3)
    source = load_source(f"stream:{tmp_path / 'data'}", "train", validation_fraction=0)
    assert source.groups.tolist() == [row // 2 for row in range(10)]
    assert source.class_names == ["0", "1", "2"]
    assert [data.row_of(image) for image in source.images] == list(range(10))
    # bytes alone, as other writers leave them
    column = pq.read_table(tmp_path / "data" / "a.parquet").column("image").combine_chunks().field("bytes")
    pq.write_table(bare.drop_columns("image").append_column("jpg", column), tmp_path / "data" / "a.parquet")
    with pytest.raises(UserError, match="no image column ; the columns are label, text, group, jpg"):
        load_source(f"stream:{tmp_path / 'data'}", "train")
    source = load_source(f"stream:{tmp_path / 'data'}", "train", validation_fraction=0, options={"image": "jpg"})
    assert [data.row_of(image) for image in source.images] == list(range(10))


def test_statistics_and_captions_read_no_image(tmp_path, monkeypatch, capsys, reads):
    spec = parquet_folder(tmp_path / "data")
    pairs = tar_folder(tmp_path / "pairs")
    monkeypatch.setattr(images.StreamedImages, "_found", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(SystemExit) as caught:
        main(["data", "stats", f"stream:{spec}", f"data.mix=[pairs:stream:{pairs}]", "data.texts=captions"])
    out = capsys.readouterr().out
    assert caught.value.code == 0, out
    assert "330 images" in out or "297 images" in out
    assert f"pairs:stream:{pairs}" in out
    assert reads() and all("image" not in columns for _, columns, _ in reads())


def test_a_mixture_keeps_the_blocks_of_each_source(tmp_path, small_blocks):
    first, pairs = streamed("parquet", tmp_path / "first"), as_pairs(streamed("tar", tmp_path / "second"))
    plain = load_source(str(tmp_path / "first"), "test")
    mixed = mix(plain, [first, pairs])
    assert mixed.blocks[:9].tolist() == [-1] * 9
    assert mixed.blocks[9:339].tolist() == first.blocks.tolist()
    assert mixed.blocks[339:].tolist() == (pairs.blocks + first.blocks.max() + 1).tolist()
    assert mix(plain, [plain]).blocks is None
    keys = EpochBatches(mixed.labels, 8, "instance", 0, parts=mixed.parts, blocks=mixed.blocks)
    assert sorted(key.index for batch in keys for key in batch) == list(range(669))
    assert mixed.captions[-1] == "a caption of 329"


def test_a_long_tailed_copy_is_cut_from_a_streamed_source(tmp_path):
    spec = parquet_folder(tmp_path / "data")
    cuts = [make_longtail(one, tmp_path / f"out{at}") for at, one in enumerate((spec, f"stream:{spec}"))]
    assert cuts[0].kept.tolist() == cuts[1].kept.tolist()
    tables = [pq.read_table(tmp_path / f"out{at}" / "data" / "train-00000-of-00001.parquet") for at in (0, 1)]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("kind", MADE)
def test_a_worker_that_is_started_afresh_reads_the_same(kind, tmp_path, small_blocks):
    source = streamed(kind, tmp_path / "data")
    first = source.images[7]
    images_again = pickle.loads(pickle.dumps(source.images))
    assert data.row_of(images_again[7]) == data.row_of(first) == 7
    assert images_again.identity() == source.images.identity()
    assert data.row_of(source.images[-1]) == ROWS - 1
    assert source.images.images.encoded(7)["bytes"] == data.picture(7)
    with pytest.raises(IndexError):
        source.images[ROWS]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("webdataset:x", {}, "data.source=webdataset:x is not understood; did you mean stream:webdataset:x"),
        ("stream:imagefolder:x", {}, "stream:imagefolder:x is not understood; stream: takes: a folder of Parquet"),
        ("stream:/no/such/place", {}, "/no/such/place: there is no such folder"),
        ("stream:webdataset:/no/such/place", {}, r"/no/such/place: no \.tar file is found there"),
        ("stream:DATA", {"lable": "x"}, "unknown data option 'lable' of a streamed source; there are: cache_dir"),
        ("stream:DATA", {"label": "kind"}, "no column 'kind' for the label"),
        ("stream:DATA", {"image": "text"}, "no image column text; the columns are image, label, text, fold"),
        ("stream:DATA", {"cache_gib": 0}, "cache_gib=0 must be a number of GiB above 0"),
        ("stream:DATA", {"cache_gib": "much"}, "cache_gib=much must be a number of GiB above 0"),
        (
            "stream:DATA",
            {"cache_gib": 1e-9},
            r"the 3 blocks that are read at a time take .* GiB; set .*cache_gib=0\.25",
        ),
    ],
)
def test_a_wrong_streamed_source_is_named(spec, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_source(spec.replace("DATA", parquet_folder(tmp_path / "data")), "train", options=options)


def test_a_folder_without_parquet_and_files_that_differ_are_named(tmp_path):
    data.write_tar(tmp_path / "0.tar", data.samples([1], "cls"))
    with pytest.raises(UserError, match="no Parquet files here; for tar shards write stream:webdataset:"):
        load_source(f"stream:{tmp_path}", "train")
    spec = parquet_folder(tmp_path / "data")
    pq.write_table(pq.read_table(f"{spec}/train-1.parquet").drop_columns("text"), f"{spec}/train-1.parquet")
    with pytest.raises(UserError, match=r"train-1\.parquet: has no column 'text', which other files"):
        load_source(f"stream:{spec}", "train")
    Path(spec, "train-1.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(UserError, match=r"train-1\.parquet: not a readable Parquet file"):
        load_source(f"stream:{spec}", "train")


def test_a_broken_picture_is_named_by_row_and_file(tmp_path):
    file = data.write_parquet(tmp_path / "data" / "a.parquet", range(4))
    table = pq.read_table(file).to_pylist()
    table[2]["image"]["bytes"] = b"nothing"
    table[3]["image"] = None
    datasets.Dataset.from_list(table, features=datasets.load_dataset("parquet", data_files=str(file))["train"].features)
    schema = pq.read_schema(file)
    pq.write_table(parquet.pa.Table.from_pylist(table, schema=schema), file)
    source = load_source(f"stream:{tmp_path / 'data'}", "train", validation_fraction=0)
    with pytest.raises(UserError, match=r"data train row 2 in .*a\.parquet \(2\.png\): not a readable image"):
        source.images[2]
    with pytest.raises(UserError, match=r"train row 3 in .*a\.parquet: there is no image in this row"):
        source.images[3]


def hammer(folder: str, seed: int, wrong) -> None:
    store = FileStore(Path(folder), budget=3000)
    rng = np.random.default_rng(seed)
    for key in rng.integers(0, 12, 150).tolist():
        name = f"{key:02d}x"
        if (
            store.get(name, lambda path, key=key: path.write_bytes(bytes([key]) * 1000), Path.read_bytes)
            != bytes([key]) * 1000
        ):
            wrong.value += 1


def test_several_processes_share_and_clear_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    wrong = context.Value("i", 0)
    processes = [context.Process(target=hammer, args=(str(tmp_path / "blocks"), seed, wrong)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert wrong.value == 0
    left = list((tmp_path / "blocks").glob("*.block"))
    assert 0 < sum(path.stat().st_size for path in left) <= 3000
    assert not list((tmp_path / "blocks").glob("*.partial"))


def test_the_cache_removes_what_was_opened_longest_ago(tmp_path):
    store = FileStore(tmp_path, budget=2500)
    for at, key in enumerate(("aa", "bb", "aa", "cc")):
        store.get(key, lambda path: path.write_bytes(b"x" * 1000), Path.read_bytes)
        os.utime(tmp_path / f"{key}.block", ns=(at, at))
    assert sorted(path.stem for path in tmp_path.glob("*.block")) == ["aa", "cc"]
    (tmp_path / "of the living.partial").touch()
    (tmp_path / "of the dead.partial").touch()
    os.utime(tmp_path / "of the dead.partial", (1, 1))
    store.get("dd", lambda path: path.write_bytes(b"x"), Path.read_bytes)
    assert [path.stem for path in tmp_path.glob("*.partial")] == ["of the living"]


def test_a_damaged_block_is_read_anew_and_a_full_disk_is_named(tmp_path, monkeypatch):
    source = streamed("parquet", tmp_path / "data")
    assert data.row_of(source.images[3]) == 3
    (block,) = (tmp_path / "cache" / "hf_vlr" / "stream" / "blocks").glob("*.block")
    block.write_bytes(b"")
    assert data.row_of(streamed("parquet", tmp_path / "data").images[3]) in (3,)
    (tmp_path / "file").write_text("in the way")
    blocked = streamed("parquet", tmp_path / "data", cache_dir=str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"file/blocks: cannot be used .*; choose another folder with data\.options\.cache_dir"
    ):
        blocked.images[3]
