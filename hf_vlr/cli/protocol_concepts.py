"""`hf-vlr protocol concepts`."""

from hf_vlr.cli.protocol_command import protocol_command

command = protocol_command(
    "concepts",
    """Find the nearest other concepts of each trained class, as in UniCL's Fig. 4.

    Others are unseen classes, the other classes, or the names in a file. Where attributes are known (shapes-lt; a JSON
    file of attributes or hypernyms) it is also counted how many of them the nearest share, and any would by chance.

    \b
    hf-vlr protocol concepts runs/stage1 --data shapes-lt
    hf-vlr protocol concepts runs/stage1 --data imagefolder:photos query=images
    hf-vlr protocol concepts runs/stage1 --data imagefolder:photos candidates=names.txt attributes=hypernyms.json
    """,
)
