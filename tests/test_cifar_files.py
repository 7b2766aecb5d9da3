"""CIFAR's four archives, made here in their real layout with few images, and files that mean harm."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision

from hf_vlr.data.cifar_files import MAX_BYTES, read_cifar
from hf_vlr.data.cifar_layouts import CLASSES, LAYOUTS, Layout
from hf_vlr.data.longtail import class_sizes, published_cifar_subset
from hf_vlr.errors import UserError

FORMS = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]
PYTHON10, BINARY10 = LAYOUTS["cifar10"]
PYTHON100, BINARY100 = LAYOUTS["cifar100"]
HUGE = b"\x8a\xc8" + b"\x7f" * 200
SUFFIX = "; download cifar-10-python.tar.gz again"


def text2(words: bytes) -> bytes:
    """A string as Python 2 pickled it."""
    return (b"U" + bytes([len(words)]) if len(words) < 256 else b"T" + struct.pack("<I", len(words))) + words


def list2(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def array2(pixels: np.ndarray, by_columns: bool = False, shape: tuple[int, int] | None = None) -> bytes:
    """A byte matrix as numpy pickled it under Python 2."""
    rows, columns = shape or pixels.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        + struct.pack("<cIcI", b"J", rows, b"J", columns)
        + b"\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        + (b"\x88" if by_columns else b"\x89")
        + text2(pixels.tobytes("F" if by_columns else "C"))
        + b"tb"
    )


def dict2(**entries: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text2(key.encode()) + entry for key, entry in entries.items()) + b"u."


def pickle2(kind: str, **entries: np.ndarray | list) -> bytes:
    """A dictionary pickled by Python 2 (by hand) or by Python 3 in the same protocol."""
    if kind == "python 3":
        return pickle.dumps(entries, protocol=2)
    programs = {
        key: array2(value)
        if isinstance(value, np.ndarray)
        else list2([b"K" + bytes([item]) if isinstance(item, int) else text2(item.encode()) for item in value])
        for key, value in entries.items()
    }
    return dict2(**programs)


def batch3(columns: int, label: int, dtype: str = "uint8") -> bytes:
    """A batch of one black image, pickled by Python 3."""
    return pickle.dumps({"data": np.zeros((1, columns), dtype), "labels": [label]}, 2)


@dataclasses.dataclass
class Sample:
    """Images, fine labels and names that the archives are made of."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    names: list[str]

    def pixels(self, split: str) -> np.ndarray:
        return self.images[split].transpose(0, 3, 1, 2).reshape(len(self.images[split]), -1)


def sample(name: str) -> Sample:
    rng = np.random.default_rng(0)
    count = {"train": 2 * CLASSES[name], "test": CLASSES[name]}
    return Sample(
        images={split: rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8) for split, number in count.items()},
        labels={split: rng.permutation(number) % CLASSES[name] for split, number in count.items()},
        names=[f"class_{index}" for index in range(CLASSES[name])],
    )


def files(name: str, layout: Layout, kind: str = "python 2") -> dict[str, bytes]:
    """The files of a form, with few images."""
    made, found = sample(name), {}
    for split, members in (("train", layout.train), ("test", layout.test)):
        for member, rows in zip(members, np.array_split(np.arange(len(made.labels[split])), len(members))):
            pixels, labels = made.pixels(split)[rows], made.labels[split][rows]
            if layout.label_bytes:
                head = [labels // 5, labels][-layout.label_bytes :]
                found[member] = np.column_stack([*head, pixels]).astype(np.uint8).tobytes()
            else:
                lists = {layout.labels: labels.tolist(), "filenames": [f"image_s_{row}.png" for row in rows]}
                if name == "cifar100":
                    lists["coarse_labels"] = (labels // 5).tolist()
                found[member] = pickle2(kind, data=pixels, **lists)
    if layout.label_bytes:
        found[layout.meta] = ("\n".join(made.names) + "\n\n").encode()
    else:
        found[layout.meta] = pickle2(kind, **{layout.key: made.names, "coarse_label_names": ["fish"]})
    return found


def pack(path: Path, members: dict[str, bytes], mode: str = "w:gz", kind: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, mode, format=kind) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def packed(path: Path, name: str, layout: Layout, **changed: bytes | None) -> Path:
    """The archive of a form; of `changed` files, None are left out. The folder and a readme are in it too."""
    found = {file: data for file, data in (files(name, layout) | changed).items() if data is not None}
    return pack(path, {"readme.html": b"read me", **{f"{layout.folder}/{file}": data for file, data in found.items()}})


def unpacked(folder: Path, found: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for file, data in found.items():
        (folder / file).write_bytes(data)
    return folder


PLACES: dict[str, Callable[[Path, str, Layout], Path]] = {
    "archive": lambda at, name, layout: packed(at / layout.archive, name, layout),
    "folder": lambda at, name, layout: unpacked(at / layout.folder, files(name, layout)),
    "around a folder": lambda at, name, layout: unpacked(at / "in" / layout.folder, files(name, layout)).parent,
    "around an archive": lambda at, name, layout: packed(at / layout.archive, name, layout).parent,
    "unzipped": lambda at, name, layout: pack(at / "x.tar", files(name, layout), "w", tarfile.USTAR_FORMAT),
    "with long headers": lambda at, name, layout: pack(
        at / "x.tgz", {f"{'long' * 60}/ü": b"x" * 700, **files(name, layout)}, kind=tarfile.PAX_FORMAT
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("name", "layout"), FORMS, ids=[layout.folder for _, layout in FORMS])
def test_every_form_gives_the_same_arrays(name, layout, place, tmp_path):
    made = sample(name)
    data = read_cifar(PLACES[place](tmp_path, name, layout), name)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert np.array_equal(data.train_images, made.images["train"])
    assert np.array_equal(data.train_labels, made.labels["train"])
    assert np.array_equal(data.test_images, made.images["test"])
    assert np.array_equal(data.test_labels, made.labels["test"])
    assert data.class_names == made.names
    assert not data.official
    assert data.remarks == (
        f"train has {2 * CLASSES[name]} images, the published one 50,000",
        f"test has {CLASSES[name]} images, the published one 10,000",
    )


@pytest.mark.parametrize("layout", [PYTHON10, PYTHON100], ids=["cifar10", "cifar100"])
def test_python_2_and_python_3_pickles_are_the_same(layout, tmp_path):
    name = "cifar10" if layout is PYTHON10 else "cifar100"
    one, other = (
        read_cifar(unpacked(tmp_path / kind, files(name, layout, kind)), name) for kind in ("python 2", "python 3")
    )
    for entry in ("train_images", "train_labels", "test_images", "test_labels", "class_names"):
        assert np.array_equal(getattr(one, entry), getattr(other, entry))


def test_the_crafted_pickles_are_what_python_takes_them_for():
    # our own bytes, so that unpickling them is safe
    batch = pickle.loads(files("cifar10", PYTHON10)["test_batch"], encoding="latin1")
    assert np.array_equal(batch["data"], sample("cifar10").pixels("test"))
    assert batch["labels"] == sample("cifar10").labels["test"].tolist()
    columns = pickle.loads(dict2(data=array2(batch["data"], by_columns=True)), encoding="latin1")["data"]
    assert columns.flags.f_contiguous and np.array_equal(columns, batch["data"])


def test_a_matrix_stored_by_columns_is_read_as_such(tmp_path):
    made = sample("cifar10")
    labels = list2([b"K" + bytes([label]) for label in made.labels["test"]])
    changed = dict2(data=array2(made.pixels("test"), by_columns=True), labels=labels)
    path = packed(tmp_path / "x.tar.gz", "cifar10", PYTHON10, test_batch=changed)
    assert np.array_equal(read_cifar(path, "cifar10").test_images, made.images["test"])


def test_the_check_sums_are_those_that_torchvision_knows():
    for layout, known in ((PYTHON10, torchvision.datasets.CIFAR10), (PYTHON100, torchvision.datasets.CIFAR100)):
        assert (layout.archive, layout.folder, layout.archive_md5) == (known.filename, known.base_folder, known.tgz_md5)
        assert layout.md5 == dict([*known.train_list, *known.test_list, [known.meta["filename"], known.meta["md5"]]])
        assert layout.key == known.meta["key"]


def test_the_official_archive_and_files_are_recognised(tmp_path, monkeypatch):
    found = files("cifar10", PYTHON10)
    archive, other = packed(tmp_path / "a.tar.gz", "cifar10", PYTHON10), pack(tmp_path / "b.tar", found, "w")
    archive_md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    sums = {file: hashlib.md5(data).hexdigest() for file, data in found.items()}
    published = dataclasses.replace(PYTHON10, archive_md5=archive_md5, md5=sums)
    monkeypatch.setitem(LAYOUTS, "cifar10", (published, BINARY10))
    data = read_cifar(archive, "cifar10")
    assert (data.official, data.origin) == (True, f"the official archive cifar-10-python.tar.gz (md5 {archive_md5})")
    data = read_cifar(other, "cifar10")
    assert (data.official, data.origin) == (True, "the official files of cifar-10-python.tar.gz (all 7 md5 sums agree)")


def test_other_files_are_told_apart(tmp_path):
    archive = packed(tmp_path / "a.tar.gz", "cifar100", BINARY100)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    assert read_cifar(archive, "cifar100").origin == (
        f"not the official archive cifar-100-binary.tar.gz: md5 {md5} instead of 03b5dce01913d631647c71ecec9e9cb8"
    )
    folder = unpacked(tmp_path / "python", files("cifar100", PYTHON100))
    assert read_cifar(folder, "cifar100").origin == (
        "not the official files of cifar-100-python.tar.gz: other md5 sums for train, test, meta"
    )
    folder = unpacked(tmp_path / "binary", files("cifar10", BINARY10))
    assert read_cifar(folder, "cifar10").origin == (
        "unpacked files of cifar-10-binary.tar.gz, for which there are no published check sums"
    )


def test_the_published_subset_of_what_was_read(tmp_path):
    folder = unpacked(tmp_path / "x", files("cifar100", PYTHON100))
    labels = read_cifar(folder, "cifar100").train_labels
    rows = published_cifar_subset(labels, 2)
    assert np.bincount(labels[rows]).tolist() == class_sizes(100, 2, 2).tolist()


def refused(path: Path, name: str = "cifar10") -> str:
    """The one line that says why, without the path."""
    with pytest.raises(UserError) as caught:
        read_cifar(path, name)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < len(str(path)) + 250
    return message[len(str(path)) :].lstrip(": ")


def test_a_source_that_is_none(tmp_path):
    archives = "cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
    assert refused(tmp_path / "no") == f"there is no such file or folder; give {archives}, or its folder"
    assert refused(tmp_path).startswith(f"holds neither {archives} nor the files in them")
    with pytest.raises(UserError, match="there is no CIFAR called 'cifar20'; choose one of: cifar10, cifar100"):
        read_cifar(tmp_path, "cifar20")


@pytest.mark.parametrize(("name", "layout"), FORMS, ids=[layout.folder for _, layout in FORMS])
def test_the_other_cifar_is_named(name, layout, tmp_path):
    (other,) = set(LAYOUTS) - {name}
    path = packed(tmp_path / "x.tar.gz", name, layout)
    assert refused(path, other) == f"holds {name}, not {other}; give the archive of {other}"


@pytest.mark.parametrize(("name", "layout"), FORMS, ids=[layout.folder for _, layout in FORMS])
def test_missing_files_are_named(name, layout, tmp_path):
    gone = [layout.test[0], layout.meta]
    path = packed(tmp_path / "x.tar.gz", name, layout, **dict.fromkeys(gone))
    assert refused(path, name) == f"{', '.join(gone)} is missing; download {layout.archive} again"


@pytest.mark.parametrize(
    ("file", "changed", "said"),
    [
        ("data_batch_2", b"", "its pickle is damaged or cut short (copy or download the file again)"),
        ("data_batch_2", b"\x80\x02]q\0.", "is no batch of CIFAR; download the archive again"),
        ("data_batch_2", dict2(labels=list2([b"K\1"])), "its data is no array of 1 × 3072 bytes; download it again"),
        ("data_batch_2", dict2(labels=list2([b"\x88"])), f"its labels are no list of whole numbers{SUFFIX}"),
        ("data_batch_2", dict2(labels=list2([HUGE])), f"its labels are no list of whole numbers{SUFFIX}"),
        ("data_batch_2", batch3(3072, 1, "float64"), "its data is no array of 1 "),
        ("data_batch_2", batch3(3071, 1), "its data is no array of 1 "),
        ("data_batch_2", batch3(3072, 10), "label 10 of image 0 is "),
        ("data_batch_2", batch3(3072, -1), "label -1 of image 0 is "),
        ("batches.meta", pickle.dumps({"label_names": ["a"] * 10}, 2), "does not list 10 class names"),
        ("batches.meta", pickle.dumps({"label_names": ["a\nb", *"bcdefghij"]}, 2), "does not list 10 class names"),
        ("batches.meta", pickle.dumps({"label_names": [["a"], *"bcdefghij"]}, 2), "does not list 10 class names"),
        ("batches.meta", pickle.dumps({}, 2), "does not list 10 class names"),
    ],
)  # fmt: skip
def test_wrong_pickles(file, changed, said, tmp_path):
    path = packed(tmp_path / "x.tar.gz", "cifar10", PYTHON10, **{file: changed})
    assert refused(path).removeprefix(f"{file}: ").removeprefix(f"{file} ").startswith(said)


def test_a_shape_that_claims_more_than_there_is(tmp_path):
    pixels = np.zeros((1, 3072), np.uint8)
    changed = dict2(data=array2(pixels, shape=(2**31 - 1, 3072)), labels=list2([b"K\0"]))
    assert "its data is no array" in refused(packed(tmp_path / "x.tgz", "cifar10", PYTHON10, test_batch=changed))


def test_wrong_records(tmp_path):
    for file, data, said in (
        ("test_batch.bin", b"", "0 bytes are no whole number of records of 3073; "),
        ("test_batch.bin", bytes(3072), "3072 bytes are no whole number of records of 3073; "),
        ("data_batch_3.bin", b"\x0a" + bytes(3072), "label 10 of image 0 is outside 0 … 9"),
    ):
        path = packed(tmp_path / "x.tgz", "cifar10", BINARY10, **{file: data})
        assert refused(path).startswith(f"{file}: {said}")
    path = packed(tmp_path / "x.tgz", "cifar10", BINARY10, **{"batches.meta.txt": b"\n".join([b"cat"] * 9)})
    assert refused(path) == "batches.meta.txt does not list 10 class names; download cifar-10-binary.tar.gz again"


def test_calls_in_a_pickle_are_not_made(tmp_path):
    touched = tmp_path / "touched"
    call = b"cpathlib\nPath\n" + text2(str(touched).encode()) + b"\x85Rcpathlib\nPath.touch\n0(cpathlib\nPath\n"
    call += text2(str(touched).encode()) + b"\x85RtR0"
    system = b"cposix\nsystem\n" + text2(f"touch {touched}".encode()) + b"\x85R"
    for program in (b"\x80\x02" + system + b".", dict2(labels=system, data=system), dict2(data=system + b"0" + call)):
        path = packed(tmp_path / "x.tgz", "cifar10", PYTHON10, data_batch_1=program)
        refused(path)
    assert not touched.exists()


def test_names_in_an_archive_lead_nowhere(tmp_path):
    found = files("cifar10", BINARY10)
    members = {f"../../{'/' if index % 2 else ''}evil/{file}": data for index, (file, data) in enumerate(found.items())}
    path = pack(tmp_path / "x.tgz", members)
    assert len(read_cifar(path, "cifar10").test_labels) == 10
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["x.tgz"]


def test_links_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(3073))
    path = tmp_path / "x.tar"
    pack(path, {**files("cifar10", BINARY10), "test_batch.bin": b""} | {"x": b"x"}, "w")
    kept = {file: data for file, data in files("cifar10", BINARY10).items() if file != "test_batch.bin"}
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        pack(path, kept, "w")
        link = tarfile.TarInfo("test_batch.bin")
        link.type, link.linkname = kind, str(tmp_path / "secret")
        with tarfile.open(path, "a") as archive:
            archive.addfile(link)
        assert refused(path) == "test_batch.bin is missing; download cifar-10-binary.tar.gz again"


def test_two_files_of_one_name(tmp_path):
    found = files("cifar10", BINARY10)
    path = pack(tmp_path / "x.tgz", {**found, **{f"b/{file}": data for file, data in found.items()}})
    assert refused(path).startswith("holds two files ")


def test_a_bomb_is_bounded(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(2**20)) * (MAX_BYTES // 2**20 + 1))
    assert path.stat().st_size < 2**20
    assert refused(path) == "unpacks to more than 256 MiB, far more than CIFAR has"


def test_cut_short_anywhere(tmp_path):
    whole = packed(tmp_path / "x.tar.gz", "cifar10", BINARY10).read_bytes()
    plain = gzip.decompress(whole)
    end = len(plain.rstrip(b"\0"))
    path = tmp_path / "y.tar.gz"
    for data, last in ((whole, len(whole) - 1), (plain, end - 1)):
        for length in [0, 1, 2, 9, 511, 512, 513, 1024, 3073, *range(5000, last, last // 9), last]:
            path.write_bytes(data[:length])
            assert refused(path)


def test_damage_is_a_user_error_or_harmless(tmp_path):
    rng = random.Random(0)
    folder = unpacked(tmp_path / "x", files("cifar10", PYTHON10))
    whole = (folder / "test_batch").read_bytes()
    pixels = whole.index(sample("cifar10").pixels("test").tobytes())
    program = [*range(pixels), *range(pixels + 10 * 3072, len(whole))]
    harmless = 0
    for _ in range(400):
        data = bytearray(whole)
        for at in rng.sample(program, rng.choice((1, 1, 3))):
            data[at] = rng.randrange(256)
        (folder / "test_batch").write_bytes(data)
        try:
            harmless += len(read_cifar(folder, "cifar10").test_labels) == 10
        except UserError as error:
            assert "\n" not in str(error)
    # names of files and memo numbers do not matter
    assert 0 < harmless < 300


def test_noise_is_no_archive(tmp_path):
    path = tmp_path / "x"
    for data in (
        random.Random(0).randbytes(5000),
        b"\x1f\x8b" + bytes(100),
        gzip.compress(b"a" * 2000),
        b"PK\3\4" * 300,
    ):
        path.write_bytes(data)
        assert refused(path) == "is no tar archive, damaged or cut short; download it again"
    path.write_bytes(gzip.compress(bytes(2048)))
    assert refused(path) == "holds no files of cifar10; download cifar-10-python.tar.gz again"
