"""`hf-vlr protocol retrieval`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "retrieval",
    """Find texts by images and images by texts.

    Where images have captions: recall@1, 5, 10 and the median rank, both ways. Rows of equal `group` are one image with
    several captions, any of which counts; so does any image of a caption that several have. Else images of a class are
    found by its texts: mean average precision by shot groups.

    \b
    hf-vlr protocol retrieval runs/stage1 --data ORG/CAPTIONS
    hf-vlr protocol retrieval runs/stage1 --data imagefolder:photos kind=classes
    """,
)
