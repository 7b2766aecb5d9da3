"""`hf-vlr protocol zero-shot`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "zero-shot",
    """Classify images by the texts of their classes, without training on them.

    A class is the mean of its sentences. One row for each kind of text, by shot groups: 1, 7 and 80 of CLIP's
    templates around the class name, and the class texts (data.texts, else those beside the model, else the data's).

    \b
    hf-vlr protocol zero-shot runs/stage1 --data imagefolder:photos
    hf-vlr protocol zero-shot CLIP_FOLDER --data data/imagenet-lt rows=clip-templates:80,own,clip-templates:80+own
    hf-vlr protocol zero-shot runs/stage1 --data shapes-lt rows=corpus eval.splits=unseen
    """,
)
