"""From a model and images to scores: log-probabilities [N, C] of each branch, on the CPU.

Letters: `N` images, `C` classes, `S` sentences, `D` projection width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.anchors import AnchorSelection
from hf_vlr.data.source import ImageSource
from hf_vlr.features import StateCache, Transform, vision_states
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification

Scores = dict[str, np.ndarray]


@torch.no_grad()
def image_vectors(
    model: UniCLModel,
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int = 256,
    workers: int = 0,
    cache: StateCache | None = None,
) -> Tensor:
    """Projected image features [N, D] of a source, not normalised."""
    states = vision_states(
        model,
        source.images,
        transform,
        batch_size=batch_size,
        workers=workers,
        cache=cache,
        note=source.split,
    )[0]
    return project(model.visual_projection, states, model.device)


@torch.no_grad()
def project(projection: torch.nn.Module, states: Tensor, device: torch.device, chunk: int = 8192) -> Tensor:
    """A projection applied to tower states [N, W] in pieces; the result is on the CPU."""
    return torch.cat([projection(part.to(device)).float().cpu() for part in states.split(chunk)])


@torch.no_grad()
def recognise(classifier: VLLTRForImageClassification, features: Tensor, chunk: int = 512) -> Scores:
    """`fused`, `visual` and (with anchors) `language` log-probabilities of image features [N, D]."""
    training = classifier.training
    classifier.eval()
    # one branch: the fusion is the visual branch itself
    names = ("fused", "visual", "language") if classifier.config.num_anchors else ("visual",)
    scores = {name: np.empty((len(features), classifier.config.num_labels), dtype=np.float32) for name in names}
    for start in range(0, len(features), chunk):
        output = classifier(image_features=features[start : start + chunk].to(classifier.device))
        branches = {"fused": output.logits, "visual": output.visual_logits, "language": output.language_logits}
        for name in names:
            scores[name][start : start + chunk] = branches[name].float().log_softmax(-1).cpu().numpy()
    classifier.train(training)
    return scores


def class_vectors(
    text_features: Tensor,
    text_labels: Sequence[int],
    num_classes: int,
    selection: AnchorSelection | None = None,
) -> Tensor:
    """One unit vector per class [C, D]: the normalised mean of its normalised sentences (CLIP's ensemble).

    `text_features` [S, D]; with a `selection` only the anchors count. A class without sentence gets the zero vector.
    """
    unit = normalize(text_features, dim=-1)
    labels = torch.as_tensor(np.asarray(text_labels))
    if selection is not None:
        chosen = selection.index[selection.mask]
        unit, labels = unit[chosen], labels[chosen]
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, labels, unit)
    return normalize(sums, dim=-1)


def zero_shot(features: Tensor, vectors: Tensor, scale: float) -> Scores:
    """`language` log-probabilities of image features [N, D] against class vectors [C, D], τ = `scale`."""
    return {"language": log_softmax(text_logits(features, vectors, scale))}


def text_logits(
    features: Tensor, vectors: Tensor, scale: float, bias: float = 0.0, chunk: int = 4096
) -> npt.NDArray[np.float32]:
    """τ cos(x, v_c) + b, float32 [N, C], of image features [N, D] and unit class vectors [C, D]; τ = `scale`."""
    logits = np.empty((len(features), len(vectors)), dtype=np.float32)
    for start in range(0, len(features), chunk):
        part = scale * normalize(features[start : start + chunk], dim=-1) @ vectors.t() + bias
        logits[start : start + chunk] = part.numpy()
    return logits


def log_softmax(scores: npt.NDArray[np.floating], chunk: int = 4096) -> npt.NDArray[np.floating]:
    """log softmax of each row [N, C], `chunk` rows at a time; log-probabilities stay what they are."""
    result = np.empty_like(scores, dtype=np.promote_types(scores.dtype, np.float32))
    for start in range(0, len(scores), chunk):
        part = torch.from_numpy(np.array(scores[start : start + chunk], dtype=result.dtype))
        result[start : start + chunk] = part.log_softmax(-1).numpy()
    return result
