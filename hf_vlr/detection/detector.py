"""Mask R-CNN (He et al., ICCV 2017) of torchvision around a pyramid backbone, sized for small images."""

from collections.abc import Sequence

from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from hf_vlr.detection.pyramid import PyramidBackbone, finest_anchor

BOX_POOLING, MASK_POOLING = 7, 14
HEAD_WIDTH = 256


def build_detector(
    backbone: PyramidBackbone, num_classes: int, size: int, mean: Sequence[float], std: Sequence[float]
) -> MaskRCNN:
    """A detector of `num_classes` classes, the background among them, of images in [0, 1] resized to `size` pixels.

    mean, std: what the tower's own images are normalised by. One anchor size per level, from four steps of the finest
    map, doubling; three aspect ratios. The heads are a quarter as wide as torchvision's, whose 14 million parameters
    are for COCO.
    """
    smallest = finest_anchor(backbone.strides)
    anchors = AnchorGenerator(
        tuple((smallest * 2**level,) for level in range(len(backbone.strides))),
        ((0.5, 1.0, 2.0),) * len(backbone.strides),
    )
    width = backbone.out_channels
    return MaskRCNN(
        backbone,
        num_classes=None,
        min_size=size,
        max_size=size,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=anchors,
        box_roi_pool=MultiScaleRoIAlign(backbone.levels, BOX_POOLING, sampling_ratio=2),
        box_head=TwoMLPHead(width * BOX_POOLING**2, HEAD_WIDTH),
        box_predictor=FastRCNNPredictor(HEAD_WIDTH, num_classes),
        mask_roi_pool=MultiScaleRoIAlign(backbone.levels, MASK_POOLING, sampling_ratio=2),
        mask_head=MaskRCNNHeads(width, (width,) * 2, 1),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=64,
        box_detections_per_img=20,
    )
