"""From features to the plane, and what is left of the classes there.

Letters: `P` points, `D` width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vlr.errors import UserError
from hf_vlr.protocols.neighbours import majority_vote
from hf_vlr.randomness import seed_for

NEIGHBOURS = 10


def centred(features: Tensor, centre: bool) -> Tensor:
    """Unit vectors `[P, D]`; with `centre` their mean is subtracted and they are brought to norm 1 again."""
    unit = normalize(features.float(), dim=-1)
    return normalize(unit - unit.mean(dim=0), dim=-1) if centre else unit


def to_plane(points: np.ndarray, method: str, perplexity: float, seed: int) -> np.ndarray:
    """Coordinates float32 `[P, 2]` of points `[P, D]` by "tsne" (scikit-learn) or "umap" (umap-learn).

    The same for the same points, settings, versions and machine. t-SNE starts from principal components, with a
    perplexity of at most (P - 1)/3; UMAP takes `perplexity` as its number of neighbours. Raises `UserError` for fewer
    than four points, and where umap-learn is asked for and not installed.
    """
    if len(points) < 4:
        raise UserError(f"{len(points)} points are too few to draw; take more classes or images")
    state = seed_for(seed, 0, 0, f"projection/{method}") % 2**32
    if method == "umap":
        return _umap(points, min(round(perplexity), len(points) - 1), state)
    from sklearn.manifold import TSNE

    fitting = TSNE(init="pca", perplexity=min(perplexity, (len(points) - 1) / 3), random_state=state)
    return fitting.fit_transform(points).astype(np.float32)


def _umap(points: np.ndarray, neighbours: int, state: int) -> np.ndarray:
    try:
        import umap
    except ImportError as error:
        raise UserError("UMAP needs the package umap-learn: pip install umap-learn; or use method=tsne") from error
    fitting = umap.UMAP(n_neighbors=max(2, neighbours), random_state=state, n_jobs=1)
    return np.asarray(fitting.fit_transform(points), dtype=np.float32)


def separation(points: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """How far classes lie apart, by Euclidean distance, over points `[P, D]` with labels `[P]`.

    `silhouette`: mean of (b - a)/max(a, b), a the mean distance to the own class, b to the nearest other (Rousseeuw,
    1987), in [-1, 1]; None unless there are 2 … P - 1 classes. `knn_accuracy`: share of points whose 10 nearest
    other points (fewer where there are not so many) have their class as the majority, the nearest of equals.
    """
    from sklearn.metrics import silhouette_score

    classes = len(np.unique(labels))
    silhouette = float(silhouette_score(points, labels)) if 2 <= classes < len(labels) else None
    right = (leave_one_out(points, labels, NEIGHBOURS) == labels).mean()
    return {"silhouette": silhouette, "knn_accuracy": float(right)}


def leave_one_out(points: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """The majority of each point's k nearest others, int64 `[P]`."""
    places = torch.as_tensor(points, dtype=torch.float32)
    distances = torch.cdist(places, places).fill_diagonal_(torch.inf)
    near = distances.sort(dim=1, stable=True).indices[:, : min(k, len(points) - 1)]
    _, index = np.unique(labels, return_inverse=True)
    return np.unique(labels)[majority_vote(torch.as_tensor(index)[near], int(index.max()) + 1).numpy()]
