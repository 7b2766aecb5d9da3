"""Tower states of frozen towers: computed once, then trained on without the towers.

Letters: `K` views, `N` images, `S` sentences, `W` tower width (before the projection).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hf_vlr.data.images import SelectedImages, identity_of
from hf_vlr.data.workers import lost_connection, obey_parent_only, worker_errors
from hf_vlr.disk import writing
from hf_vlr.modeling import UniCLModel
from hf_vlr.modeling.towers import encode_image, encode_text
from hf_vlr.randomness import torch_seeded

Transform = Callable[[Image.Image], Tensor]


class StateCache:
    """Tensors by content: a file is found again only when weights, pictures and transforms are the same."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None

    def get(self, key: Callable[[], Sequence[str]], compute: Callable[[], Tensor]) -> Tensor:
        """The tensor stored under `key()`, else `compute()`, which is then stored; a damaged file is replaced.

        Raises `UserError` where the disk is full.
        """
        if self.folder is None:
            return compute()
        digest = hashlib.blake2b(json.dumps(list(key())).encode(), digest_size=16).hexdigest()
        path = self.folder / f"{digest}.safetensors"
        if path.is_file():
            with suppress(SafetensorError, KeyError):
                return load_file(path)["states"]
        states = compute()
        unfinished = path.with_suffix(f".{os.getpid()}.partial")
        with writing(path, "mend that, or name another data.cache_dir"):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                save_file({"states": states.contiguous()}, unfinished)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        return states


class View(Dataset):
    """One view of every image: number 0 is the evaluation's, the others are augmented."""

    def __init__(self, images: Sequence, evaluation: Transform, augmentation: Transform | None, number: int) -> None:
        self.images, self.evaluation, self.augmentation, self.number = images, evaluation, augmentation, number

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if self.number == 0:
            return self.evaluation(self.images[index])
        # not the run's seed: views are part of the data, and shared by all runs on it
        with torch_seeded(0, self.number, index, "view"):
            return self.augmentation(self.images[index])

    def identity(self) -> str:
        """What the view's pixels depend on."""
        transform = self.augmentation if self.number else self.evaluation
        return f"{identity_of(self.images)} view {self.number} {transform!r}"


@torch.no_grad()
def vision_states(
    model: UniCLModel,
    images: Sequence,
    evaluation: Transform,
    augmentation: Transform | None = None,
    *,
    views: int = 1,
    batch_size: int = 64,
    workers: int = 0,
    cache: StateCache | None = None,
    note: str = "images",
) -> Tensor:
    """Pooled vision-tower states [K, N, W], float32 on the CPU, of K views of N images.

    Where the images are rows chosen from a larger set and there is a cache, the larger set is encoded, so that folds
    and splits of one dataset share its states.
    """
    base, rows = base_rows(images) if cache is not None and cache.folder else (images, None)
    states = []
    for number in range(views):
        view = View(base, evaluation, augmentation, number)
        compute = partial(_encode_view, model, view, batch_size, workers, f"{note}, view {number + 1} of {views}")
        # view by view, so that an evaluation finds the view that training has made
        key = partial(_view_key, model, view)
        states.append(cache.get(key, compute) if cache is not None else compute())
    stacked = torch.stack(states)
    return stacked if rows is None else stacked[:, rows]


def _view_key(model: UniCLModel, view: View) -> list[str]:
    return ["vision", model.config.vision_pooling, digest_of(model.vision_model), view.identity()]


def _encode_view(model: UniCLModel, view: View, batch_size: int, workers: int, note: str) -> Tensor:
    """Pooled states [N, W] of one view."""
    training = model.training
    model.eval()
    loader = DataLoader(view, batch_size, num_workers=workers, worker_init_fn=obey_parent_only)
    bar = tqdm(
        read_batches(loader),
        total=len(loader),
        desc=f"encoding {note}",
        unit="batch",
        leave=False,
        disable=None if len(loader) > 4 else True,
    )
    pooling = model.config.vision_pooling
    states = [
        # channels last: convolutions run 1.7 times as fast on a CPU, other towers do not mind
        encode_image(model.vision_model, batch.to(model.device, memory_format=torch.channels_last), pooling)
        .float()
        .cpu()
        for batch in bar
    ]
    model.train(training)
    return torch.cat(states)


@torch.no_grad()
def text_states(
    model: UniCLModel,
    sentences: Sequence[str],
    tokenize: Callable[[list[str]], dict[str, Tensor]],
    *,
    batch_size: int = 256,
    cache: StateCache | None = None,
) -> Tensor:
    """Pooled text-tower states [S, W], float32 on the CPU; each distinct sentence is encoded once."""
    unique = list(dict.fromkeys(sentences))

    def compute() -> Tensor:
        training = model.training
        model.eval()
        # by length, so that a batch is not padded to one long sentence
        order = sorted(range(len(unique)), key=lambda index: len(unique[index]))
        parts = []
        for chunk in tqdm(list(chunks(order, batch_size)), desc="encoding texts", leave=False, disable=None):
            batch = {k: v.to(model.device) for k, v in tokenize([unique[i] for i in chunk]).items()}
            parts.append(
                encode_text(
                    model.text_model,
                    batch["input_ids"],
                    batch["attention_mask"],
                    batch.get("token_type_ids"),
                    model.config.text_pooling,
                )
            )
        model.train(training)
        states = torch.cat(parts).float().cpu()
        return states[torch.tensor(order).argsort()]

    def key() -> list[str]:
        # the tokens say what tokenizer and which length made them
        tokens = [tokenize(list(part))["input_ids"].tolist() for part in chunks(unique, batch_size)]
        return ["text", digest_of(model.text_model), model.config.text_pooling, json.dumps(tokens)]

    states = cache.get(key, compute) if cache is not None else compute()
    position = {text: index for index, text in enumerate(unique)}
    return states[torch.tensor([position[text] for text in sentences])]


def read_batches(loader: DataLoader) -> Iterator:
    """A loader's batches; an error in a worker process is one line that says its cause."""
    with worker_errors():
        try:
            yield from loader
        except (ConnectionError, EOFError) as error:
            if not loader.num_workers:
                raise
            raise lost_connection(error) from error


def base_rows(images: Sequence) -> tuple[Sequence, Tensor]:
    """The set that `images` were chosen from, and which of its rows they are."""
    rows = torch.arange(len(images))
    while isinstance(images, SelectedImages):
        rows = torch.as_tensor(images.indices)[rows]
        images = images.images
    return images, rows


def digest_of(module: nn.Module) -> str:
    """A digest of a module's weights and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive pieces of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
