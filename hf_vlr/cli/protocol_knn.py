"""`hf-vlr protocol knn`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "knn",
    """Classify images by the training images nearest to them, by cosine.

    Votes weigh exp(cos/T), and one each (among equals the class of the nearest). Of several k the best on validation
    images is reported; with one k nothing is chosen.

    \b
    hf-vlr protocol knn runs/stage1 --data imagefolder:photos
    hf-vlr protocol knn runs/stage1 --data imagefolder:photos k=20 temperature=0.1
    """,
)
