"""JPEG files as models read them: the same pixels and the same errors as Pillow's, and nothing else as pixels."""

import random
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from PIL import ImageFile
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from hf_vlr.data.batches import Key, TrainingSet
from hf_vlr.data.decoding import is_plain_jpeg
from hf_vlr.data.images import SelectedImages, decode_for_model, decode_image, picture_for_model
from hf_vlr.data.mixture import JoinedImages
from hf_vlr.data.source import load_source
from hf_vlr.data.transforms import Scaling, ToBytes, build_eval_transform, build_train_transform, takes_pixels
from hf_vlr.errors import UserError
from hf_vlr.export.int8 import calibration_batches
from hf_vlr.features import Tower, image_states
from hf_vlr.randomness import torch_seeded
from hf_vlr.views import View

# torchvision means to leave decoding to another package, and says so
pytestmark = [
    pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
ORIENTATION, XMP = 0x0112, b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PHOTOGRAPHS = [Pillow.fromarray(pixels) for pixels in load_sample_images().images]


def photograph(size: tuple[int, int] = (97, 64), number: int = 0) -> Pillow.Image:
    return PHOTOGRAPHS[number].resize(size)


def encoded(picture: Pillow.Image, kind: str = "JPEG", **options) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[ORIENTATION] = orientation
    return exif


def pixels_of(picture: Pillow.Image | torch.Tensor) -> torch.Tensor:
    return picture if isinstance(picture, torch.Tensor) else v2.functional.pil_to_tensor(picture)


def outcome(decode, data: bytes | Path) -> torch.Tensor | str:
    """The pixels, or what the user is told."""
    try:
        return pixels_of(decode(data, "it"))
    except UserError as error:
        return str(error)


def same(one: torch.Tensor | str, other: torch.Tensor | str) -> bool:
    return one == other if isinstance(one, str) or isinstance(other, str) else torch.equal(one, other)


PLAIN = {
    "baseline": {},
    "progressive": {"progressive": True},
    "colour in full": {"subsampling": 0},
    "colour in half": {"subsampling": 1},
    "components are RGB": {"keep_rgb": True},
    "restarts": {"restart_marker_rows": 1},
    "profile": {"icc_profile": b"x" * 70000},
    "comment": {"comment": b"so it is"},
    "coarse": {"quality": 3},
    "upright": {"exif": turned(1)},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("size", [(97, 64), (16, 16), (1, 1), (3, 250)])
def test_a_plain_jpeg_has_pillows_pixels(size, options):
    data = encoded(photograph(size), **options)
    found = decode_for_model(data, "it")
    assert isinstance(found, torch.Tensor) and (found.dtype, found.shape[0]) == (torch.uint8, 3)
    assert torch.equal(found, pixels_of(decode_image(data, "it")))


def test_a_grey_jpeg_becomes_rgb():
    data = encoded(photograph().convert("L"))
    assert torch.equal(decode_for_model(data, "it"), pixels_of(decode_image(data, "it")))


OTHERS = {
    "CMYK": encoded(photograph().convert("CMYK")),
    "PNG": encoded(photograph(), "PNG"),
    "GIF": encoded(photograph(), "GIF"),
    "WebP": encoded(photograph(), "WEBP"),
    "transparent": encoded(photograph().convert("RGBA"), "PNG"),
    "16 bits": encoded(Pillow.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16)), "PNG"),
    "XMP": encoded(photograph(), xmp=XMP),
    **{f"orientation {number}": encoded(photograph(), exif=turned(number)) for number in range(2, 9)},
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_what_is_no_plain_jpeg_is_pillows(data):
    found = decode_for_model(data, "it")
    assert isinstance(found, Pillow.Image)
    assert np.array_equal(np.asarray(found), np.asarray(decode_image(data, "it")))


def test_files_and_bytes_are_read_alike(tmp_path):
    for name, data in {"a.jpg": encoded(photograph()), "b.png": OTHERS["PNG"], "c.jpg": b"\xff\xd8none"}.items():
        (tmp_path / name).write_bytes(data)
        assert same(outcome(decode_for_model, tmp_path / name), outcome(decode_image, tmp_path / name))
    for place in (tmp_path / "gone.jpg", tmp_path):
        assert outcome(decode_for_model, place) == outcome(decode_image, place)
        assert isinstance(outcome(decode_for_model, place), str)


def declared(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header says another size."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def test_a_bomb_is_not_decoded():
    bomb = declared(encoded(photograph()), 60000, 60000)
    assert not is_plain_jpeg(bomb)
    with pytest.raises(UserError, match="it: the image is too large to decode safely"):
        decode_for_model(bomb, "it")


def test_the_limit_is_pillows(monkeypatch):
    data = encoded(photograph((40, 30)))
    for limit, plain in ((1200, True), (1199, False), (None, True)):
        monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", limit)
        assert is_plain_jpeg(data) is plain


def test_a_header_that_can_be_read_in_two_ways_is_left_to_pillow():
    data = encoded(photograph())
    first, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    frame = data[first : first + 19]
    bare = b"\xff\xd0"
    for changed in (
        data[:scan] + frame + data[scan:],  # two sizes
        data[:scan] + bare + data[scan:],  # a marker without a length
        data[:scan] + b"\xff" + data[scan:],  # a filling byte
        data[:scan] + b"\x00" + data[scan:],  # rubbish
        data[:first] + data[first + 19 :],  # no size
        data.replace(b"\xff\xc0", b"\xff\xc3", 1),  # without loss
        data[:scan],
        declared(data, 0, 97),
        data[:2],
        b"",
    ):
        assert not is_plain_jpeg(changed)
        assert same(outcome(decode_for_model, changed), outcome(decode_image, changed))
    assert is_plain_jpeg(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_reported_as_pillow_reports_it(progressive):
    data, rng = encoded(photograph(), progressive=progressive), random.Random(0)
    cases = [data[:length] for length in range(0, len(data), 23)]
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 3, 10])):
            changed[rng.randrange(2, len(data))] = rng.randrange(256)
        cases.append(bytes(changed))
    outcomes = [(outcome(decode_for_model, case), outcome(decode_image, case)) for case in cases]
    assert all(same(*pair) for pair in outcomes)
    # both kinds of end were met behind a header that is in order
    ends = {type(found) for case, (found, _) in zip(cases, outcomes, strict=True) if is_plain_jpeg(case)}
    assert ends == {str, torch.Tensor}


def test_a_damaged_jpeg_that_pillow_is_told_to_read_is_read(monkeypatch):
    data = encoded(photograph())
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    found = decode_for_model(data[: len(data) // 2], "it")
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, pixels_of(decode_image(data[: len(data) // 2], "it")))


def test_without_torchvisions_decoder_the_pixels_are_the_same(monkeypatch):
    data = encoded(photograph())
    wanted = decode_for_model(data, "it")
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert torch.equal(decode_for_model(data, "it"), wanted)


def test_rubbish_among_the_tags_is_no_error():
    data, rng = encoded(photograph(), exif=turned(1)), random.Random(1)
    start, stop = data.index(b"Exif"), data.index(b"\xff\xdb")
    for _ in range(200):
        changed = bytearray(data)
        changed[rng.randrange(start, stop)] = rng.randrange(256)
        assert same(outcome(decode_for_model, bytes(changed)), outcome(decode_image, bytes(changed)))


def levels(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Differences of normalised pixels in steps of a byte."""
    return ((one - other).abs() * torch.tensor(STD)[:, None, None] * 255).round()


@pytest.mark.parametrize("quality", [75, 92])
@pytest.mark.parametrize("size", [(640, 427), (500, 375), (251, 333), (200, 150), (1024, 768)])
@pytest.mark.parametrize("number", [0, 1])
def test_both_ways_of_resizing_differ_by_rounding(number, size, quality):
    data = encoded(photograph(size, number), quality=quality)
    for crop_pct in (0.875, 1, None):
        fast, slow = (build_eval_transform(224, MEAN, STD, crop_pct, decoder=kind) for kind in ("auto", "pillow"))
        apart = levels(fast(decode_for_model(data, "it")), slow(decode_image(data, "it")))
        assert apart.max() <= 2
        assert (apart > 0).float().mean() < 0.01


@pytest.mark.parametrize("augment", ["none", "light"])
def test_augmentations_cut_pixels_as_pictures(augment):
    data = encoded(photograph((500, 375)), quality=92)
    transform = build_train_transform(96, MEAN, STD, augment)
    for seed in range(20):
        views = []
        for picture in (decode_for_model(data, "it"), decode_image(data, "it")):
            with torch_seeded(0, 0, seed, "augment"):
                views.append(transform(picture))
        assert levels(*views).max() <= 2
        assert levels(*views).mean() < 0.02


def test_strong_augmentation_draws_the_same_for_pixels_and_pictures():
    data = encoded(photograph((300, 200)), quality=92)
    transform = build_train_transform(96, MEAN, STD, "strong")
    for seed in range(30):
        views = []
        for picture in (decode_for_model(data, "it"), decode_image(data, "it")):
            with torch_seeded(0, 0, seed, "augment"):
                views.append(transform(picture))
        # contrast and colour round otherwise, a rotation may take another neighbour along an edge
        assert levels(*views).mean() < 1


def test_a_picture_is_scaled_as_torchvision_scales_it():
    every = torch.arange(256, dtype=torch.uint8).expand(3, 4, 256).contiguous()
    reference = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    for shape in (every, torch.stack([every, every.flip(2)]).contiguous(memory_format=torch.channels_last)):
        kept = shape.clone()
        found = Scaling(MEAN, STD)(shape)
        assert torch.equal(found, reference(shape))
        assert torch.equal(shape, kept)
        assert found.stride() == shape.stride()


def test_pictures_of_pillow_keep_the_pixels_that_they_had():
    picture = photograph((90, 70))
    kinds = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    rest = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    evaluation = v2.Compose([v2.Resize(36, **kinds), v2.CenterCrop(32), *rest])
    assert torch.equal(build_eval_transform(32, MEAN, STD, 32 / 36)(picture), evaluation(picture))
    training = v2.Compose([v2.RandomResizedCrop(32, scale=(0.3, 1.0), **kinds), v2.RandomHorizontalFlip(), *rest])
    for seed in range(5):
        views = []
        for transform in (build_train_transform(32, MEAN, STD, min_scale=0.3), training):
            with torch_seeded(0, 0, seed, "augment"):
                views.append(transform(picture))
        assert torch.equal(*views)


def test_bytes_lie_channel_by_channel():
    pixels = decode_for_model(encoded(photograph()), "it")
    assert not pixels.is_contiguous()
    assert ToBytes()(pixels).is_contiguous()
    assert torch.equal(ToBytes()(pixels), pixels)


def test_only_transforms_of_tensors_take_pixels():
    assert takes_pixels(build_eval_transform(32, MEAN, STD))
    assert takes_pixels(build_train_transform(32, MEAN, STD, "strong"))
    assert not takes_pixels(build_eval_transform(32, MEAN, STD, decoder="pillow"))
    assert not takes_pixels(build_train_transform(32, MEAN, STD, "none", decoder="pillow"))
    assert not takes_pixels(lambda picture: picture)
    for build in (build_eval_transform, build_train_transform):
        with pytest.raises(UserError, match="decoder='opencv' is unknown; there are: auto, pillow"):
            build(32, MEAN, STD, decoder="opencv")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes with a JPEG and a PNG each."""
    for number, name in enumerate(("china", "flower")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        photograph((50, 40), number).save(folder / "0.jpg", quality=95)
        photograph((44, 40), number).save(folder / "1.png")
    return tmp_path / "photos"


def parquet(photos: Path, folder: Path) -> Path:
    folder.mkdir()
    files = sorted(path for path in photos.rglob("*.*"))
    rows = {"image": [{"bytes": path.read_bytes(), "path": path.name} for path in files], "label": [0, 0, 1, 1]}
    features = Features({"image": Image(), "label": ClassLabel(names=["china", "flower"])})
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("spec", ["imagefolder:{photos}", "{parquet}", "stream:{parquet}"])
def test_every_source_gives_its_jpegs_as_pixels(spec, photos, tmp_path):
    spec = spec.format(photos=photos, parquet=parquet(photos, tmp_path / "parquet"))
    source = load_source(spec, "train", validation_fraction=0)
    kinds = [torch.Tensor, Pillow.Image] * 2
    for images, rows in (
        (source.images, [0, 1, 2, 3]),
        (SelectedImages(SelectedImages(source.images, np.array([3, 2, 0])), np.array([2, 0])), [0, 3]),
        (JoinedImages([source.images, source.images]), [0, 1, 2, 3, 0, 1]),
    ):
        for index, row in enumerate(rows):
            found = picture_for_model(images, index)
            assert isinstance(found, kinds[row])
            assert isinstance(images[index], Pillow.Image)
            assert torch.equal(pixels_of(found), pixels_of(images[index]))
    generated = load_source("shapes-lt", "validation", options={"classes": 4, "unseen": 0})
    assert isinstance(picture_for_model(generated.images, 0), Pillow.Image)


class Seen(nn.Module):
    """A step that notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[type] = []

    def forward(self, picture):
        self.kinds.append(torch.Tensor if isinstance(picture, torch.Tensor) else Pillow.Image)
        return picture


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_training_views_and_calibration_read_as_the_transform_asks(decoder, photos):
    source = load_source(f"imagefolder:{photos}", "train", validation_fraction=0)
    seen = Seen()
    steps = build_eval_transform(16, MEAN, STD, decoder=decoder).transforms
    transform = v2.Compose([*steps[:-4], seen, *steps[-4:]])
    wanted = [torch.Tensor if decoder == "auto" else Pillow.Image, Pillow.Image] * 2
    data, view = TrainingSet(source, None, transform, 0), View(source.images, transform, transform, 1)
    for index in range(4):
        data[Key(0, index, index)], view[index]
    assert seen.kinds == [kind for kind in wanted for _ in range(2)]
    list(calibration_batches(source, transform, 4))
    assert sorted(map(str, seen.kinds[8:])) == sorted(map(str, wanted))


def a_tower() -> Tower:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Conv2d(3, 4, 16)
    return Tower(module, lambda pixels: module(pixels).flatten(1), "a convolution")


def test_states_are_those_of_the_transforms_pixels(photos):
    source = load_source(f"imagefolder:{photos}", "train", validation_fraction=0)
    evaluation, training = build_eval_transform(16, MEAN, STD), build_train_transform(16, MEAN, STD, "strong")
    tower = a_tower()
    states = image_states(tower, source.images, evaluation, training, views=2, batch_size=4)
    for number in range(2):
        view = View(source.images, evaluation, training, number)
        pixels = torch.stack([view[index] for index in range(4)]).to(memory_format=torch.channels_last)
        with torch.no_grad():
            assert torch.equal(states[number], tower.encode(pixels))


def test_states_of_one_decoder_are_not_those_of_the_other(photos):
    images = load_source(f"imagefolder:{photos}", "train", validation_fraction=0).images
    named = {
        View(images, build_eval_transform(16, MEAN, STD, decoder=kind), None, 0).identity()
        for kind in ("auto", "pillow")
    }
    assert len(named) == 2
    # the same steps with pictures of Pillow are told apart from those with pixels
    assert "as pixels" in View(images, build_eval_transform(16, MEAN, STD), None, 0).identity()
    generated = load_source("shapes-lt", "validation", options={"classes": 4, "unseen": 0}).images
    assert "as pixels" not in View(generated, build_eval_transform(16, MEAN, STD), None, 0).identity()
