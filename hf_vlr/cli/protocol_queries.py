"""`hf-vlr protocol queries`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "queries",
    """Find the images that match each class's texts best, and show those of rare classes.

    Precision@k and average precision by shot groups, and a contact sheet (queries.png, queries.html) of the best images
    of each few-shot class, the rarest first.

    \b
    hf-vlr protocol queries runs/stage1 --data imagefolder:photos --out rare
    hf-vlr protocol queries runs/stage1 --data imagefolder:photos --out many group=many top=20 show=50
    """,
)
