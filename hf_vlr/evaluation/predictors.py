"""From a model and images to scores: log-probabilities [N, C] of each branch, on the CPU.

Letters: `N` images, `C` classes, `S` sentences, `D` projection width.
"""

from collections.abc import Sequence

import numpy as np
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
    parts: dict[str, list[Tensor]] = {"fused": [], "visual": [], "language": []}
    for part in features.split(chunk):
        output = classifier(image_features=part.to(classifier.device))
        parts["fused"].append(output.logits)
        parts["visual"].append(output.visual_logits)
        if output.language_logits is not None:
            parts["language"].append(output.language_logits)
    classifier.train(training)
    if not parts["language"]:
        # one branch: the fusion is the visual branch itself
        del parts["language"], parts["fused"]
    return {name: torch.cat(logits).float().log_softmax(-1).cpu().numpy() for name, logits in parts.items()}


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
    logits = scale * normalize(features, dim=-1) @ vectors.t()
    return {"language": logits.log_softmax(-1).numpy()}
