"""What can be measured on a dataset: a model that names what images show, whichever kind it is of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.data.source import ImageSource
from hf_vlr.evaluation.predictors import Scores
from hf_vlr.features import Transform

# a training split is opened where it is needed
Train = Callable[[], ImageSource | None]
Sentences = tuple[tuple[float, str], ...]


class Subject(ABC):
    """A model and the dataset's classes it is asked for.

    location: folder or Hub id. task: what it does, in words. transform: a picture to the model's pixels, of
    `image_size` a side. texts: where its class texts come from, None without.
    """

    location: str
    task: str
    transform: Transform
    image_size: int
    num_params: int
    texts: str | None = None
    # the model knows further classes, which are left out of account
    note: str | None = None

    @abstractmethod
    def prepare(self, source: ImageSource, train: Train) -> None:
        """Find the dataset's classes in the model; `train()` is the training split, None for classes without one.

        Raises `UserError` for classes that the model does not know.
        """

    @abstractmethod
    def scores(self, source: ImageSource, transform: Transform) -> Scores:
        """Logits or log-probabilities [N, C] of each predictor, of images as `transform` shows them."""

    def train_counts(self) -> npt.NDArray[np.int64] | None:
        """Training images of each class [C], where the model itself knows them."""
        return None

    def sentences(self, source: ImageSource, classes: Sequence[int], count: int = 3) -> list[Sentences]:
        """(weight, sentence) of what speaks most for class `classes[i]` on image i, heaviest first; () without."""
        return [()] * len(source)

    def protocol(self) -> dict[str, Any]:
        """What a reader must know of the model."""
        stated = {"model": self.location, "parameters": self.num_params, "task": self.task, "texts": self.texts}
        return stated | ({} if self.note is None else {"classes": self.note})
