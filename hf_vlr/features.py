"""Tower states of frozen towers: computed once, then trained on without the towers.

Letters: `K` views, `N` images, `S` sentences, `W` tower width (before the projection).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_vlr.data.workers import lost_connection, obey_parent_only, worker_errors
from hf_vlr.disk import writing
from hf_vlr.modeling import UniCLModel
from hf_vlr.modeling.towers import encode_image, encode_text
from hf_vlr.views import Transform, View, base_rows

# `data.cache_dir=off`
OFF = "off"


class StateCache:
    """Tensors by content: a file is found again only when weights, pictures and transforms are the same.

    folder: where they lie; None or "off" for nowhere. whole: of images that were chosen from a larger set, keep those
    of the larger set; else of what is asked for alone.
    """

    def __init__(self, folder: str | None, whole: bool = True) -> None:
        self.folder = Path(folder).expanduser() if folder and folder != OFF else None
        self.whole = whole and self.folder is not None

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
        with writing(path, "mend that, or name another data.cache_dir (off: none)"):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                save_file({"states": states.contiguous()}, unfinished)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        return states


class Tower:
    """A frozen map from inputs to vectors [B, W]: what is computed, and what its results are stored under.

    module: whose weights, configuration, mode and device count. encode: the map itself, which may be a part of what
    the module computes. kind: what distinguishes this map from others of the same module.
    """

    def __init__(self, module: nn.Module, encode: Callable[..., Tensor], kind: str) -> None:
        self.module, self.encode, self.kind = module, encode, kind

    @cached_property
    def key(self) -> list[str]:
        """What the results depend on besides the inputs."""
        return [self.kind, settings_of(self.module), digest_of(self.module)]

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode and no gradient, afterwards as before."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(training)


def vision_tower(model: UniCLModel) -> Tower:
    """The vision tower of a dual encoder, pooled as its configuration says."""
    pooling = model.config.vision_pooling
    return Tower(
        model.vision_model, lambda pixels: encode_image(model.vision_model, pixels, pooling), f"vision {pooling}"
    )


def text_tower(model: UniCLModel) -> Tower:
    """The text tower of a dual encoder, pooled as its configuration says."""
    pooling = model.config.text_pooling

    def encode(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return encode_text(model.text_model, input_ids, attention_mask, token_type_ids, pooling)

    return Tower(model.text_model, encode, f"text {pooling}")


def vision_states(
    model: UniCLModel,
    images: Sequence,
    evaluation: Transform,
    augmentation: Transform | None = None,
    **how: Any,
) -> Tensor:
    """Pooled vision-tower states [K, N, W] of a dual encoder, as `image_states` computes them."""
    return image_states(vision_tower(model), images, evaluation, augmentation, **how)


def text_states(
    model: UniCLModel, sentences: Sequence[str], tokenize: Callable[[list[str]], dict[str, Tensor]], **how: Any
) -> Tensor:
    """Pooled text-tower states [S, W] of a dual encoder, as `sentence_states` computes them."""
    return sentence_states(text_tower(model), sentences, tokenize, **how)


def image_states(
    tower: Tower,
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
    """What a tower makes of images, [K, N, W] of K views of N images, float32 on the CPU.

    Where the images are rows chosen from a larger set and the cache keeps whole sets, the larger set is encoded, so
    that folds and splits of one dataset share its states.
    """
    base, rows = base_rows(images) if cache is not None and cache.whole else (images, None)
    states = []
    for number in range(views):
        view = View(base, evaluation, augmentation, number)
        compute = partial(_encode_view, tower, view, batch_size, workers, f"{note}, view {number + 1} of {views}")
        # view by view, so that an evaluation finds the view that training has made
        key = partial(_view_key, tower, view, cache.folder if cache is not None else None)
        states.append(cache.get(key, compute) if cache is not None else compute())
    # one view is not copied: the logits of a large classifier fill a good part of the memory
    stacked = states[0][None] if views == 1 else torch.stack(states)
    return stacked if rows is None else stacked[:, rows]


def _view_key(tower: Tower, view: View, folder: Path | None) -> list[str]:
    return ["images", *tower.key, view.identity(folder)]


def _encode_view(tower: Tower, view: View, batch_size: int, workers: int, note: str) -> Tensor:
    """What a tower makes of one view, [N, W]."""
    in_bytes, scaling = view.in_bytes()
    loader = DataLoader(in_bytes, batch_size, num_workers=workers, worker_init_fn=obey_parent_only)
    bar = tqdm(
        read_batches(loader),
        total=len(loader),
        desc=f"encoding {note}",
        unit="batch",
        leave=False,
        disable=None if len(loader) > 4 else True,
    )
    states, done = torch.empty(0), 0
    with tower.frozen():
        for batch in bar:
            # channels last: convolutions run 1.7 times as fast on a CPU, other towers do not mind
            found = tower.encode(scaling(batch.to(tower.device, memory_format=torch.channels_last)))
            if done == 0:
                # in one piece from the start: joining parts would take twice the memory
                states = torch.empty(len(view), *found.shape[1:])
            states[done : done + len(found)] = found
            done += len(found)
    return states


def sentence_states(
    tower: Tower,
    sentences: Sequence[str],
    tokenize: Callable[[list[str]], dict[str, Tensor]],
    *,
    batch_size: int = 256,
    cache: StateCache | None = None,
) -> Tensor:
    """What a tower makes of sentences, [S, W], float32 on the CPU; each distinct sentence is encoded once.

    The tower computes in the dtype of its weights: for bfloat16, which halves or quarters the time on hardware that has
    it, load the model with `from_pretrained(..., dtype=torch.bfloat16)`.
    """
    unique = list(dict.fromkeys(sentences))

    def compute() -> Tensor:
        # by length, so that towers that read padding do not pad a batch to one long sentence
        order = sorted(range(len(unique)), key=lambda index: len(unique[index]))
        parts = []
        with tower.frozen():
            for chunk in tqdm(list(chunks(order, batch_size)), desc="encoding texts", leave=False, disable=None):
                batch = tokenize([unique[index] for index in chunk])
                parts.append(tower.encode(**{name: values.to(tower.device) for name, values in batch.items()}))
        return torch.cat(parts).float().cpu()[torch.tensor(order).argsort()]

    def key() -> list[str]:
        # the tokens say what tokenizer and which length made them
        tokens = [tokenize(list(part))["input_ids"].tolist() for part in chunks(unique, batch_size)]
        return ["texts", *tower.key, json.dumps(tokens)]

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


def settings_of(module: nn.Module) -> str:
    """A module's configuration as JSON, "" without: equal weights compute other states with another activation."""
    config = getattr(module, "config", None)
    if config is None:
        return ""
    passing = ("_name_or_path", "transformers_version", "dtype", "id2label", "label2id")
    settings = {name: value for name, value in config.to_dict().items() if name not in passing}
    return json.dumps(settings, sort_keys=True, default=str)
