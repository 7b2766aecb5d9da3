"""`hf-vlr quickstart`."""

import click


@click.command()
@click.option("--smoke", is_flag=True, help="A tiny run that shows whether everything works; its numbers mean little.")
@click.option("--out", default="runs/quickstart", show_default=True, metavar="DIR", help="Output folder.")
def command(smoke: bool, out: str) -> None:
    """Both stages and the visual-only baseline on images drawn at run time: no data, network or GPU needed.

    \b
    hf-vlr quickstart
    hf-vlr quickstart --smoke --out runs/check
    """
    from hf_vlr.quickstart import quickstart

    quickstart(out, smoke)
