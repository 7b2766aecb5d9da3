"""`hf-vlr protocol projection`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "projection",
    """Draw image features, and the class texts among them, in the plane.

    projection.png, and the coordinates in projection.csv. Silhouette and 10-NN accuracy (leave-one-out) say how far
    classes lie apart, in the plane and in the features themselves.

    \b
    hf-vlr protocol projection runs/stage1 --data imagefolder:photos --out plane
    hf-vlr protocol projection runs/stage1 --data imagefolder:photos classes=beagle,pug,husky method=umap
    hf-vlr protocol projection runs/stage1 --data imagefolder:photos most=0 colour=shot
    """,
)
