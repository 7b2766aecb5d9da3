"""`hf-vlr protocol gallery`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "gallery",
    """Measure stage 1 as VL-LTR does: all sentences of all classes are one gallery.

    An image is the class of its nearest sentence, of the majority of the nearest five, and of the nearest class mean; a
    sentence is the class of its nearest image. By shot groups.

    \b
    hf-vlr protocol gallery runs/stage1 --data imagefolder:photos data.texts=texts.jsonl
    hf-vlr protocol gallery runs/stage1 --data data/imagenet-lt eval.rule=vl-ltr neighbours=5
    """,
)
