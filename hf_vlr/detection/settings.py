"""How long and how fast a detector is fine-tuned, and on what."""

from dataclasses import dataclass

from hf_vlr.training.keys import check_value, leaves, option


@dataclass
class DetectionSettings:
    """Mask R-CNN on generated scenes."""

    steps: int = option(600, "optimiser steps", low=1)
    batch_size: int = option(8, "scenes of a step", low=1)
    scenes: int = option(1000, "different training scenes", low=1)
    test_scenes: int = option(200, "scenes it is measured on, others than those of training", low=1)
    size: int = option(96, "side of a scene in pixels", low=32)
    lr: float = option(
        1e-3, "AdamW's rate of the new layers, warmed up over a tenth of the steps, then down to 0 by a cosine", above=0
    )
    tower_lr: float = option(1e-3, "the vision tower's rate; 0 leaves it as it is", low=0)
    channels: int = option(64, "channels of the pyramid's maps", low=1)
    seed: int = option(0, "seed of weights, scenes and their order", low=0)
    fresh: bool = option(True, "also train the same detector around the same tower with fresh weights")

    def check(self) -> None:
        """Raise `UserError` for a value out of its range."""
        for key, leaf in leaves(DetectionSettings):
            check_value(key, leaf, getattr(self, key))
