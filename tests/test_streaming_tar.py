"""Tar shards: the same members as Python's own reader finds, samples as WebDataset names them, hostile ones refused."""

import importlib.util
import io
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_vlr.data.source import load_source
from hf_vlr.data.streaming import tar_index
from hf_vlr.data.streaming.files import ShardFile
from hf_vlr.data.streaming.listing import find_shards
from hf_vlr.data.streaming.tar_members import TarReader, tar_members
from hf_vlr.errors import UserError

SPEC = importlib.util.spec_from_file_location("streaming_data", Path(__file__).with_name("streaming_data.py"))
data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(data)
PICTURE = data.picture(1)
# where the second member of a shard begins whose first one is the picture
KEY = 512 + -(-len(PICTURE) // 512) * 512


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def shard(path: Path) -> ShardFile:
    return ShardFile(str(path), path.stat().st_size, str(path.stat().st_mtime_ns))


def load(folder: Path, **options: object):
    return load_source(f"stream:webdataset:{folder}", "train", validation_fraction=0, options=options)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_pythons_own_reader_finds_them(form, tmp_path):
    rng = np.random.default_rng(form)
    names = [f"{'d' * int(rng.integers(1, 60))}/{at:03d}{'n' * int(rng.integers(1, 90))}.jpg" for at in range(40)]
    if form != tarfile.USTAR_FORMAT:
        names += ["f" * 300 + "/ü" * 90 + ".txt", "./plain.cls"]
    members = [(name, bytes(rng.integers(0, 256, int(rng.integers(0, 1500)), dtype=np.uint8))) for name in names]
    folder = tarfile.TarInfo("folder/")
    folder.type = tarfile.DIRTYPE
    path = data.write_tar(tmp_path / "a.tar", [(folder, b""), *members], form)
    found = list(tar_members(shard(path), TarReader(shard(path))))
    with tarfile.open(path) as tar:
        expected = [member for member in tar if member.isfile()]
    assert [(member.offset, member.size) for member in found] == [(it.offset_data, it.size) for it in expected]
    assert [member.name for member in found] == [it.name.removeprefix("./") for it in expected]
    assert [shard(path).read(it.offset, it.size) for it in found] == [content for _, content in members]


def test_a_pax_size_counts_for_the_member_alone(tmp_path):
    member = tarfile.TarInfo("a.txt")
    member.size, member.pax_headers = 5, {"size": "5", "comment": "x=y\nz"}
    path = data.write_tar(tmp_path / "a.tar", [(member, b"hello"), ("b.txt", b"you")])
    found = list(tar_members(shard(path), TarReader(shard(path))))
    assert [(it.name, shard(path).read(it.offset, it.size)) for it in found] == [("a.txt", b"hello"), ("b.txt", b"you")]


@pytest.mark.parametrize(
    ("kinds", "names", "caption"),
    [
        (["cls"], ["0", "1", "2"], None),
        (["name", "txt"], ["elk", "fox", "owl"], "a caption of 5"),
        (["json"], ["elk", "fox", "owl"], "told of 5"),
        (["cls", "txt", "json"], ["0", "1", "2"], "a caption of 5"),
        (["txt"], [], "a caption of 5"),
    ],
)
def test_samples_have_labels_and_texts_of_their_members(kinds, names, caption, tmp_path):
    data.write_tar(tmp_path / "shards" / "0.tar", data.samples(range(8), *kinds))
    data.write_tar(tmp_path / "shards" / "1.tar", data.samples(range(8, 12), *kinds))
    source = load(tmp_path / "shards")
    assert source.class_names == names
    assert [data.row_of(image) for image in source.images] == list(range(12))
    assert source.captions[5] == caption
    called = [data.NAMES[row % 3] for row in range(12)]
    expected = (
        [names.index(name) for name in called] if "elk" in names else [row % 3 if names else -1 for row in range(12)]
    )
    assert source.labels.tolist() == expected
    assert source.blocks.tolist() == [0] * 8 + [1] * 4


def test_options_choose_among_images_labels_and_texts(tmp_path):
    members = [
        ("a.left.png", data.picture(1)), ("a.png", data.picture(2)), ("a.cls", b"1"),
        ("a.json", b'{"kind": ["x"], "said": "so", "label": "never"}'),
    ]  # fmt: skip
    data.write_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=r"0\.tar: sample 'a' has several images \(left\.png, png\); name one with"):
        load(tmp_path)
    source = load(tmp_path, image="left.png", label="kind", text="said")
    assert (source.class_names, source.captions, data.row_of(source.images[0])) == (["x"], ["so"], 1)
    assert data.row_of(load(tmp_path, image="png").images[0]) == 2
    for option, message in (
        ({"image": "jpg"}, "sample 'a' has no image 'jpg'"),
        ({"image": "png", "label": "sort"}, r"no sample has 'sort' for the label; name a field of \.json, or 'cls'"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path, **option)


def test_a_file_of_names_beside_the_shards_names_numbered_classes(tmp_path):
    data.write_tar(tmp_path / "train" / "0.tar", data.samples(range(4), "cls"))
    (tmp_path / "classnames.txt").write_text("owl\nred fox\n\nelk\n")
    assert load(tmp_path).class_names == ["owl", "red fox", "elk"]
    (tmp_path / "classnames.txt").write_text("owl\nred fox\n")
    with pytest.raises(UserError, match="row 2: label 2 is outside -1 … 1"):
        load(tmp_path)


def test_splits_stand_in_the_paths(tmp_path):
    for name in ("train-0.tar", "val/0.tar", "more/test-1.tar", "more/test-0.tar", "latest.tar"):
        data.write_tar(tmp_path / "test" / name, data.samples([1], "cls"))
    found = find_shards(str(tmp_path / "test"))
    assert {split: [Path(it.name).name for it in shards] for split, shards in found.items()} == {
        "train": ["latest.tar", "train-0.tar"], "validation": ["0.tar"], "test": ["test-0.tar", "test-1.tar"],
    }  # fmt: skip
    assert set(find_shards(str(tmp_path / "test" / "val" / "*.tar"))) == {"train"}
    assert set(find_shards(str(tmp_path / "test" / "more" / "*.tar"))) == {"test"}
    with pytest.raises(UserError, match=r"no \.parquet or \.tar file is found there"):
        find_shards(str(tmp_path / "none" / "*"))


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def claiming(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    return header


def raw(name: str, size: int) -> bytes:
    return claiming(name, size).tobuf(tarfile.GNU_FORMAT)


GOOD = [("k.png", PICTURE), ("k.cls", b"0")]
HOSTILE = {
    "absolute": ([("/etc/k.png", PICTURE)], r"member '/etc/k\.png' points outside its folder"),
    "upwards": ([("a/../../k.png", PICTURE)], r"member 'a/\.\./\.\./k\.png' points outside"),
    "backslashes": ([("..\\k.png", PICTURE)], r"points outside its folder"),
    "a drive": ([("C:k.png", PICTURE)], r"member 'C:k\.png' points outside"),
    "a symbolic link": ([(link("k.png", tarfile.SYMTYPE), b"")], r"member 'k\.png' is a symbolic link"),
    "a hard link": ([(link("k.png", tarfile.LNKTYPE, "k.cls"), b"")], r"member 'k\.png' is a link"),
    "a device": ([(link("k.png", tarfile.CHRTYPE), b"")], r"member 'k\.png' is no regular file"),
    "no image": ([*GOOD, ("q.cls", b"1")], r"sample 'q' has no image; remove it, or add q\.jpg"),
    "a key twice": ([*GOOD, ("q.png", PICTURE), ("k.txt", b"x")], r"member 'k\.txt': its key stands twice"),
    "a member twice": ([*GOOD, ("k.cls", b"0")], r"member 'k\.cls': stands twice in the shard"),
    "an image twice": ([("k.png", PICTURE), ("k.png", PICTURE)], r"member 'k\.png': stands twice in the shard"),
    "a long text": ([*GOOD, ("k.txt", b"x" * (1 << 20) + b"x")], r"member 'k\.txt': a text of 1048577 bytes"),
    "no text": ([*GOOD, ("k.txt", b"\xff\xfe")], r"member 'k\.txt': is not UTF-8 text"),
    "no JSON": ([("k.png", PICTURE), ("k.json", b"{")], r"member 'k\.json' is not JSON"),
    "deep JSON": ([("k.png", PICTURE), ("k.json", b"[" * 100000)], r"member 'k\.json' is not JSON"),
    "no object": ([("k.png", PICTURE), ("k.json", b"[1]")], r"member 'k\.json' is no JSON object"),
    "no label": ([("k.png", PICTURE)], r"samples have neither \.cls nor \.txt"),
    "a huge label": ([("k.png", PICTURE), ("k.cls", b"999999999")], r"the label 999999999 in 'label' is no class"),
    "nothing": ([], "there are no samples in the shards"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_sample_is_refused_by_shard_and_member(name, tmp_path):
    members, message = HOSTILE[name]
    before = set(tmp_path.rglob("*"))
    data.write_tar(tmp_path / "in" / "bad.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "in")
    assert "bad.tar" in str(caught.value) or "webdataset:" in str(caught.value)
    assert "\n" not in str(caught.value)
    new = {path for path in set(tmp_path.rglob("*")) - before if "cache" not in path.parts}
    assert new == {tmp_path / "in", tmp_path / "in" / "bad.tar"}


def cut(content: bytes, at: int) -> bytes:
    return content[:at]


def whole() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in GOOD:
            tar.addfile(claiming(name, len(content)), io.BytesIO(content))
    return buffer.getvalue()


DAMAGED = {
    "cut in a member": (cut(whole(), 1000), r"member 'k\.png' claims \d+ bytes, more than the shard has"),
    "cut in a header": (cut(whole(), KEY + 100), rf"ends at byte {KEY} without an end mark"),
    "cut between members": (cut(whole(), KEY + 1024), rf"ends at byte {KEY + 1024} without an end mark"),
    "empty": (b"", "ends at byte 0 without an end mark"),
    "no tar": (b"no tar at all" * 100, "is no tar file"),
    "compressed": (b"\x1f\x8b\x08" + whole(), "is compressed, so that no image in it can be read alone"),
    "a flipped bit": (whole()[:KEY] + b"K" + whole()[KEY + 1 :], f"has a damaged header at byte {KEY}"),
    "a huge size": (raw("k.png", 1 << 60) + bytes(1024), rf"member 'k\.png' claims {1 << 60} bytes"),
    "a negative size": (raw("k.png", -5) + bytes(1024), r"member 'k\.png' claims \d+ bytes"),
    "a size that is no number": (b"", "has a damaged header at byte 0"),
    "two tars in one": (whole() + whole(), "goes on after its end mark"),
    "a huge name": (b"", "an extended header of 99999 bytes"),
    "a broken pax header": (b"", "a damaged extended header"),
    "a sparse file": (b"", "GNU.sparse"),
}


def extended(kind: bytes, body: bytes) -> bytes:
    header = claiming("./@", len(body))
    header.type = kind
    return header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512) + whole()


def damaged(name: str) -> bytes:
    made = {
        "a huge name": lambda: extended(b"L", b"n" * 99999),
        "a broken pax header": lambda: extended(b"x", b"99 path=k.png\n"),
        "a sparse file": lambda: extended(b"x", b"22 GNU.sparse.major=1\n"),
    }
    if name == "a size that is no number":
        header = bytearray(raw("k.png", 5))
        header[124:136] = b"12x45678901\0"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + bytes(1024)
    return made[name]() if name in made else DAMAGED[name][0]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_shard_is_named(name, tmp_path):
    (tmp_path / "bad.tar").write_bytes(damaged(name))
    with pytest.raises(UserError, match=DAMAGED[name][1]) as caught:
        load(tmp_path)
    assert str(tmp_path / "bad.tar") in str(caught.value)


def test_no_single_damaged_byte_does_more_than_a_user_error(tmp_path):
    """Each either changes nothing but contents, or is refused; no other exception, no endless loop, no lost member."""
    good, rng = whole(), np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(good), 400, replace=False).tolist():
        bad = good[:at] + bytes([good[at] ^ int(rng.integers(1, 256))]) + good[at + 1 :]
        (tmp_path / "bad.tar").write_bytes(bad)
        try:
            index = tar_index.make_index(shard(tmp_path / "bad.tar"))
            assert index["key"].to_pylist() == ["k"]
        except UserError:
            refused += 1
    assert refused > 100


def test_a_broken_image_is_named_by_shard_and_key_when_it_is_read(tmp_path):
    data.write_tar(tmp_path / "0.tar", [*GOOD, ("q.png", PICTURE[:900]), ("q.cls", b"1")])
    source = load(tmp_path)
    assert source.images[0].size == (32, 32)
    with pytest.raises(UserError, match=r"0\.tar: member 'q\.png': not a readable image"):
        source.images[1]


def test_an_index_is_made_once_and_anew_for_a_changed_shard(tmp_path, monkeypatch):
    made = []
    whole_index = tar_index.make_index
    monkeypatch.setattr(tar_index, "make_index", lambda shard: made.append(shard.name) or whole_index(shard))
    path = data.write_tar(tmp_path / "0.tar", data.samples(range(4), "cls"))
    first = load(tmp_path)
    assert (len(load(tmp_path)), len(made)) == (4, 1)
    (index,) = (tmp_path / "cache" / "hf_vlr" / "stream" / "index").glob("*.block")
    index.write_bytes(index.read_bytes()[:-9])
    assert (load(tmp_path).fingerprint(), len(made)) == (first.fingerprint(), 2)
    data.write_tar(path, data.samples(range(6), "cls"))
    os.utime(path, ns=(1, 1))
    second = load(tmp_path)
    assert (len(second), len(made)) == (6, 3)
    assert second.fingerprint() != first.fingerprint()


def test_a_shard_that_changes_under_a_run_is_named(tmp_path):
    path = data.write_tar(tmp_path / "0.tar", data.samples(range(4), "cls"))
    source = load(tmp_path)
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(UserError, match=r"0\.tar: ends before byte \d+; the file was cut off"):
        source.images[3]
    path.unlink()
    with pytest.raises(UserError, match=r"0\.tar: cannot be read \(No such file"):
        source.images[3]
