"""`hf-vlr protocol detection`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "detection",
    """Fine-tune a small Mask R-CNN around the vision tower on generated scenes, and around the same tower with fresh
    weights.

    Scenes show one to four shapes with boxes and masks; average precision is COCO's. It needs the extra [eval].
    hf_vlr.detection.pyramid.PyramidBackbone is the backbone for a detector of your own.

    \b
    hf-vlr protocol detection runs/stage1 --out detection
    hf-vlr protocol detection openai/clip-vit-base-patch16 steps=300 size=224 --out detection
    """,
    needs_data=False,
)
