"""`hf-vlr convert`."""

from typing import Any

import click

from hf_vlr.cli.output import say
from hf_vlr.convert import FORMATS


@click.command()
@click.option("--from", "format", required=True, type=click.Choice(FORMATS), help="What SRC is.")
@click.argument("source", metavar="SRC")
@click.argument("out", metavar="OUT")
@click.option(
    "--tokenizer", metavar="WHERE", help="Hub id, folder, vocabulary file, or none. Default: SRC's or CLIP's."
)
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float16", "bfloat16"]))
@click.option("--image-size", type=click.IntRange(min=8), help="Pixels; learned positions are interpolated to it.")
@click.option(
    "--text-heads", type=click.IntRange(min=1), help="Attention heads of the text tower. Default: width / 64."
)
@click.option("--vision-heads", type=click.IntRange(min=1), help="The same of the vision tower.")
@click.option("--model-type", type=click.Choice(["unicl", "vlltr"]), help="What a CLIP becomes. Default: unicl.")
@click.option("--architecture", metavar="NAME", help="open_clip's name of the architecture, for a bare file.")
@click.option("--stage1", metavar="FILE", help="VL-LTR's stage 1, whose text tower a stage 2 gets: it has none.")
@click.option("--labels", metavar="FILE", help="Class names: a name a line, labels.txt or categories.json.")
@click.option("--texts", metavar="PATH", help="Class texts; their number per class says which anchors are real.")
@click.option("--sentence-counts", metavar="FILE", help="The same numbers, one a line or as JSON.")
@click.option("--class-counts", metavar="FILE", help="Training images per class, one a line or as JSON.")
@click.option("--fusion-weight", type=float, help="α, of the visual branch. Default: 0.2; 0.7 for iNaturalist.")
@click.option("--detach-norm/--keep-norm", default=None, help="Norm gradient. Default: as the checkpoint says.")
def command(format: str, source: str, out: str, **options: Any) -> None:
    """Turn the checkpoint SRC of another project into OUT, a folder that AutoModel.from_pretrained reads.

    SRC is a file; for hf-clip and open-clip also a folder or a Hub id. Nothing in a file is executed, every
    tensor is accounted for, and what does not fit is named.

    \b
    hf-vlr convert --from vl-ltr checkpoint.pth models/vlltr --labels labels.txt
    hf-vlr convert --from unicl yfcc14m.pth models/unicl
    hf-vlr convert --from openai-clip ViT-B-16.pt models/clip --image-size 384
    hf-vlr convert --from hf-clip google/siglip-base-patch16-224 models/siglip
    hf-vlr convert --from open-clip hf-hub:ORG/NAME models/open_clip
    """
    from rich.console import Console

    from hf_vlr.convert.conversion import convert
    from hf_vlr.convert.report import render

    conversion = convert(format, source, out, progress=lambda step: click.echo(f"{step} …", err=True), **options)
    Console(soft_wrap=False).print(render(conversion))
    say(f"written to {conversion.folder}")
