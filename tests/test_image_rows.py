"""What images are called: by their content, wherever they lie, and without reading them twice."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vlr.contents import content_of, image_digests
from hf_vlr.data.images import DatasetImages
from hf_vlr.data.source import ImageSource, load_source
from hf_vlr.data.transforms import build_eval_transform
from hf_vlr.evaluation.image_rows import image_rows
from hf_vlr.features import StateCache, Tower, image_states

EVALUATION = build_eval_transform(8, [0.5] * 3, [0.5] * 3, crop_pct=1)


@pytest.fixture
def photos(tmp_path) -> Path:
    for label, name in enumerate(("fox", "wolf")):
        for split in ("train", "test"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (12, 12), (90 * label, 40 * index, len(split))).save(folder / f"{index}.png")
    return tmp_path / "photos"


def opened(folder: Path, split: str = "test", **options) -> ImageSource:
    return load_source(f"imagefolder:{folder}", split, **options)


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """The rows whose files were read."""
    found, read = [], DatasetImages.encoded

    def counted(self: DatasetImages, index: int) -> dict:
        found.append(index)
        return read(self, index)

    monkeypatch.setattr(DatasetImages, "encoded", counted)
    return found


def test_copies_and_touched_files_keep_their_names(photos, tmp_path):
    names = image_rows(opened(photos)).tolist()
    assert len(set(names)) == 6
    copied = shutil.copytree(photos, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert image_rows(opened(copied)).tolist() == names
    for file in photos.rglob("*.png"):
        os.utime(file, (10**9, 10**9))
    assert image_rows(opened(photos)).tolist() == names
    assert image_rows(opened(photos).subset([4, 1])).tolist() == [names[4], names[1]]
    assert not set(names) & set(image_rows(opened(photos, "train", validation_fraction=0.0)).tolist())


def test_another_picture_has_another_name(photos):
    names = image_rows(opened(photos)).tolist()
    Image.new("RGB", (12, 12), "white").save(photos / "test" / "fox" / "1.png")
    again = image_rows(opened(photos)).tolist()
    assert [index for index in range(6) if names[index] != again[index]] == [1]


def test_copies_within_a_set_have_names_of_their_own(photos):
    for index in (1, 2):
        shutil.copyfile(photos / "test" / "fox" / "0.png", photos / "test" / "fox" / f"{index}.png")
    names = image_rows(opened(photos)).tolist()
    assert names[1:3] == [f"{names[0]}.1", f"{names[0]}.2"]
    assert len(set(names)) == 6


def test_digests_are_read_once_and_damaged_ones_anew(photos, tmp_path, reads):
    first = image_digests(opened(photos).images, tmp_path / "kept")
    assert len(reads) == 6
    assert image_digests(opened(photos).images, tmp_path / "kept") == first
    # a part of a set whose digests are known
    assert image_digests(opened(photos).subset([3, 0]).images, tmp_path / "kept") == [first[3], first[0]]
    assert len(reads) == 6
    (path,) = (tmp_path / "kept").iterdir()
    path.write_text(path.read_text()[:-5])
    assert image_digests(opened(photos).images, tmp_path / "kept") == first
    assert len(reads) == 12
    # a part alone reads that part alone
    assert image_digests(opened(photos).subset([3, 0]).subset([1]).images, tmp_path / "other") == [first[0]]
    assert reads[12:] == [0]


def test_generated_images_are_called_by_what_generates_them():
    options = {"classes": 4, "max_count": 4, "imbalance": 2, "size": 16, "test": 2}
    one, two = (load_source("shapes-lt", "test", seed=seed, options=options) for seed in (0, 1))
    assert image_digests(one.images) is None
    assert image_rows(one).tolist() == image_rows(load_source("shapes-lt", "test", options=options)).tolist()
    assert not set(image_rows(one).tolist()) & set(image_rows(two).tolist())
    assert content_of(one.images) != content_of(two.images)


@pytest.mark.parametrize("whole", [True, False])
def test_features_of_copied_and_touched_images_are_found(whole, photos, tmp_path, reads):
    module, ran = torch.nn.Flatten(), []
    module.register_parameter("weight", torch.nn.Parameter(torch.ones(1)))
    module.register_forward_hook(lambda *_: ran.append(1))
    cache = StateCache(str(tmp_path / "cache"), whole=whole)

    def states(folder: Path) -> np.ndarray:
        part = opened(folder).subset([1, 4])
        return image_states(Tower(module, module, "mine"), part.images, EVALUATION, cache=cache)[0].numpy()

    first = states(photos)
    assert (len(ran), len(reads)) == (1, 6 if whole else 2)
    np.testing.assert_array_equal(states(photos), first)
    assert (len(ran), len(reads)) == (1, 6 if whole else 2)
    copied = shutil.copytree(photos, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    np.testing.assert_array_equal(states(copied), first)
    assert len(ran) == 1
    Image.new("RGB", (12, 12), "white").save(copied / "test" / "fox" / "1.png")
    assert not np.array_equal(states(copied), first)
    assert len(ran) == 2
    # nothing is read for a key where nothing is kept
    before = len(reads)
    image_states(Tower(module, module, "mine"), opened(photos).images, EVALUATION, cache=StateCache(None))
    assert len(reads) == before
