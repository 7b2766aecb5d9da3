"""Several sources as one training set in the image-text-label space (UniCL, §3)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from hf_vlr.data.images import Picture, identity_of, picture_for_model
from hf_vlr.data.source import ImageSource
from hf_vlr.data.templates import spoken_name
from hf_vlr.errors import UserError

PAIRS = "pairs:"


class JoinedImages(Sequence):
    """The pictures of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Image.Image:
        part, row = self._place(index)
        return part[row]

    def for_model(self, index: int) -> Picture:
        """The picture as its own sequence gives it to a model."""
        return picture_for_model(*self._place(index))

    def _place(self, index: int) -> tuple[Sequence, int]:
        """The sequence that picture `index` is of, and its row there."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - int(self.starts[part])

    def identity(self) -> str:
        return "+".join(identity_of(part) for part in self.parts)


def as_pairs(source: ImageSource) -> ImageSource:
    """The rows that have a caption as image-text pairs: label -1, no classes. `UserError` where no row has one."""
    rows = np.array([row for row, caption in enumerate(source.captions) if caption], dtype=np.int64)
    if not len(rows):
        raise UserError(f"{PAIRS}{source.name}: no row has a text; name the column with data.options.text=COLUMN")
    kept = source.subset(rows)
    return ImageSource(
        name=kept.name,
        split=kept.split,
        images=kept.images,
        labels=np.full(len(rows), -1, dtype=np.int64),
        captions=kept.captions,
        class_names=[],
        groups=kept.groups,
        blocks=kept.blocks,
    )


def mix(first: ImageSource, others: Sequence[ImageSource]) -> ImageSource:
    """All rows of all sources; `parts` [N] says which source a row is of.

    The classes of `first` keep their indices. A class of another source is the same concept where it is called the
    same (as words, whatever the case) as exactly one class so far; else it is a new one. Pairs stay pairs.
    """
    names = list(first.class_names)
    labels = [first.labels]
    for source in others:
        known = concepts(names)
        index = [known.get(called(name)) for name in source.class_names]
        for at, name in enumerate(source.class_names):
            if index[at] is None:
                index[at] = len(names)
                names.append(name)
        # the last entry answers for label -1
        labels.append(np.array([*index, -1], dtype=np.int64)[source.labels])
    sources = [first, *others]
    return ImageSource(
        name=first.name,
        split=first.split,
        images=JoinedImages([source.images for source in sources]),
        labels=np.concatenate(labels),
        captions=[caption for source in sources for caption in source.captions],
        class_names=names,
        parts=np.repeat(np.arange(len(sources)), [len(source) for source in sources]),
        blocks=joined_blocks(sources),
    )


def joined_blocks(sources: Sequence[ImageSource]) -> np.ndarray | None:
    """Blocks [N] of all sources, one's after the other's; -1 for rows of a source without. None where none has any."""
    if all(source.blocks is None for source in sources):
        return None
    joined, first = [], 0
    for source in sources:
        if source.blocks is None:
            joined.append(np.full(len(source), -1, dtype=np.int64))
            continue
        joined.append(source.blocks + first)
        first += int(source.blocks.max(initial=-1)) + 1
    return np.concatenate(joined)


def concepts(names: Sequence[str]) -> dict[str, int]:
    """The index of each name that exactly one class has, by the words that it is called."""
    times = Counter(map(called, names))
    return {called(name): at for at, name in enumerate(names) if times[called(name)] == 1}


def called(name: str) -> str:
    """A class name as words, whatever the case."""
    return spoken_name(name).lower()
