"""Fine-tuning Mask R-CNN on generated scenes: what a trained vision tower is worth as a backbone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN
from tqdm import tqdm

from hf_vlr.detection.detector import build_detector
from hf_vlr.detection.pyramid import PyramidBackbone
from hf_vlr.detection.scenes import CATEGORIES, Scenes
from hf_vlr.detection.settings import DetectionSettings
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator, seed_for

MASK_THRESHOLD = 0.5
GRADIENT_NORM = 1.0


def finetune(
    tower: nn.Module, mean: Sequence[float], std: Sequence[float], settings: DetectionSettings, note: str = "training"
) -> MaskRCNN:
    """A detector of `CATEGORIES` around `tower`, which is trained too; `mean`, `std` of the tower's images.

    With `settings.tower_lr` 0 the tower stays as it is, to the bit: its parameters need no gradient from then on, and
    its batch normalisation uses the statistics that it has and does not follow the batches.
    """
    settings.check()
    torch.manual_seed(seed_for(settings.seed, 0, 0, "detector"))
    backbone = PyramidBackbone(tower, settings.channels, settings.size)
    detector = build_detector(backbone, len(CATEGORIES), settings.size, mean, std)
    optimizer = torch.optim.AdamW(_rates(detector, tower, settings), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(settings.steps))
    scenes = Scenes("train", settings.scenes, settings.size, seed=settings.seed)
    detector.train()
    if settings.tower_lr == 0:
        _freeze(tower)
    for step in tqdm(range(settings.steps), desc=note, unit="step", leave=False, disable=None):
        # a step's scenes and its random choices are a function of (seed, step)
        rows = numpy_generator(settings.seed, 0, step, "detector/rows").integers(len(scenes), size=settings.batch_size)
        images, targets = zip(*(scenes[int(row)] for row in rows))
        torch.manual_seed(seed_for(settings.seed, 0, step, "detector/step"))
        loss = sum(detector(list(images), list(targets)).values())
        if not torch.isfinite(loss):
            raise UserError(f"the detector's loss is {float(loss)} at step {step}; lower lr or tower_lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
    return detector.eval()


def _rates(detector: MaskRCNN, tower: nn.Module, settings: DetectionSettings) -> list[dict[str, Any]]:
    """The new layers and the tower, each with its rate."""
    own = {id(parameter) for parameter in tower.parameters()}
    return [
        {"params": [p for p in detector.parameters() if id(p) not in own], "lr": settings.lr},
        {"params": list(tower.parameters()), "lr": settings.tower_lr},
    ]


def _freeze(tower: nn.Module) -> None:
    """No gradient for the parameters, and no following of the batches for what has running statistics."""
    tower.requires_grad_(False)
    for module in tower.modules():
        if isinstance(module, _NormBase):
            module.eval()


@torch.no_grad()
def average_precision(detector: MaskRCNN, scenes: Scenes, batch_size: int = 16) -> dict[str, float]:
    """COCO's average precision of boxes and masks: `box_ap`, `box_ap50`, `mask_ap`, `mask_ap50`, in [0, 1].

    AP is the mean over the classes and over intersection-over-union thresholds 0.5, 0.55 … 0.95, computed by
    pycocotools through torchmetrics. Raises `UserError` where they are not installed.
    """
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(iou_type=("bbox", "segm"))
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError("average precision needs torchmetrics and pycocotools: pip install 'hf_vlr[eval]'") from error
    for images, targets in DataLoader(scenes, batch_size, collate_fn=_lists):
        found = detector(images)
        metric.update([_with_masks(one) for one in found], [_with_masks(one) for one in targets])
    numbers = metric.compute()
    names = {"box_ap": "bbox_map", "box_ap50": "bbox_map_50", "mask_ap": "segm_map", "mask_ap50": "segm_map_50"}
    return {ours: float(numbers[theirs]) for ours, theirs in names.items()}


def compare_towers(
    towers: dict[str, Callable[[], nn.Module]],
    mean: Sequence[float],
    std: Sequence[float],
    settings: DetectionSettings,
) -> dict[str, Any]:
    """Average precision of the same detector around each tower, with the same scenes, steps and seed."""
    settings.check()
    test = Scenes("test", settings.test_scenes, settings.size, seed=settings.seed)
    rows = {
        name: average_precision(finetune(make(), mean, std, settings, f"detector, {name}"), test)
        for name, make in towers.items()
    }
    return {"settings": asdict(settings), "rows": rows}


def _warm_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)
    return lambda step: min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _lists(scenes: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = zip(*scenes)
    return list(images), list(targets)


def _with_masks(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A detection or a target with masks [B, H, W] of true and false."""
    masks = found["masks"]
    return found | {"masks": masks[:, 0] > MASK_THRESHOLD if masks.ndim == 4 else masks.bool()}
