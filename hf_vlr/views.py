"""Views of a set of images: what a tower sees of each, by the evaluation's transform or by an augmentation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from hf_vlr.contents import content_of
from hf_vlr.data.images import Picture, SelectedImages
from hf_vlr.data.transforms import read_for, split_scaling, takes_pixels
from hf_vlr.randomness import torch_seeded

Transform = Callable[[Picture], Tensor]


class View(Dataset):
    """One view of every image: number 0 is the evaluation's, the others are augmented."""

    def __init__(self, images: Sequence, evaluation: Transform, augmentation: Transform | None, number: int) -> None:
        self.images, self.evaluation, self.augmentation, self.number = images, evaluation, augmentation, number

    def __len__(self) -> int:
        return len(self.images)

    @property
    def transform(self) -> Transform:
        return self.augmentation if self.number else self.evaluation

    def __getitem__(self, index: int) -> Tensor:
        picture = read_for(self.transform, self.images, index)
        if self.number == 0:
            return self.transform(picture)
        # not the run's seed: views are part of the data, and shared by all runs on it
        with torch_seeded(0, self.number, index, "view"):
            return self.transform(picture)

    def in_bytes(self) -> tuple["View", Transform]:
        """The same view up to bytes, and what makes a batch of them the view's pixels, on any device."""
        if not isinstance(self.transform, v2.Compose):
            return self, lambda pixels: pixels
        to_bytes, scaling = split_scaling(self.transform)
        return View(self.images, to_bytes, to_bytes, self.number), scaling

    def identity(self, folder: Path | None = None) -> str:
        """What the view's pixels depend on; `folder` remembers digests of the images."""
        # a JPEG resized in another form is another picture, by some levels of a few values
        form = " as pixels" if takes_pixels(self.transform) and hasattr(base_rows(self.images)[0], "for_model") else ""
        return f"{content_of(self.images, folder)}{form} view {self.number} {self.transform!r}"


def base_rows(images: Sequence) -> tuple[Sequence, Tensor]:
    """The set that `images` were chosen from, and which of its rows they are."""
    rows = torch.arange(len(images))
    while isinstance(images, SelectedImages):
        rows = torch.as_tensor(images.indices)[rows]
        images = images.images
    return images, rows
