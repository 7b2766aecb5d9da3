"""`hf-vlr demo`."""

import errno
from pathlib import Path

import click

from hf_vlr.cli.output import say, say_table
from hf_vlr.errors import UserError

QUICKSTART = Path("runs/quickstart/stage2")


@click.command()
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all of them.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--examples", metavar="DIR", help="Pictures to choose from; by default those beside the model.")
@click.option("--share", is_flag=True, help="Also a public address, through gradio's servers.")
@click.option("--benchmark", is_flag=True, help="Print what one picture costs here instead of showing the page.")
def command(model: str | None, host: str, port: int, examples: str | None, share: bool, benchmark: bool) -> None:
    """Show what MODEL sees, in a browser: classes, both branches, sentences, and classes taught by a description.

    MODEL is a folder that hf-vlr train wrote, or a Hub id: a recogniser, or a dual encoder of stage 1, which answers
    free questions only. Without MODEL it is the one that hf-vlr quickstart made. Only this machine can open the page
    unless --host or --share say otherwise, and the page asks no other machine for anything.

    \b
    hf-vlr demo
    hf-vlr demo runs/RECIPE --port 8000
    hf-vlr demo ORG/NAME --examples photos
    hf-vlr demo --benchmark
    """
    if model is None:
        if not (QUICKSTART / "config.json").is_file():
            raise UserError(f"name a MODEL, or run hf-vlr quickstart first, which makes {QUICKSTART}")
        model = str(QUICKSTART)
    if benchmark:
        _benchmark(model)
    else:
        _show(model, examples, host, port, share)


def _benchmark(model: str) -> None:
    from hf_vlr.export import measure

    latency = measure(model)
    say_table(latency.rows())
    say(latency.conditions())


def _show(model: str, examples: str | None, host: str, port: int, share: bool) -> None:
    from hf_vlr.demo.app import build, launch_options

    port = free_port(host, port)
    say(f"loading {model}")
    page = build(model, examples)
    address = {"server_name": host, "server_port": port, "share": share}
    try:
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **address, **launch_options())
    except OSError as error:
        # another program took it while the model was read
        raise UserError(_in_use(host, port)) from error
    say(f"open {page.share_url or url} (Ctrl+C stops it)")
    page.block_thread()


def free_port(host: str, port: int) -> int:
    """The port, for 0 any that is free; `UserError` where this machine cannot listen, before a model is read."""
    import socket

    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such address; give one of this machine, such as 127.0.0.1") from error
    with socket.socket(family) as probe:
        # a port that was left a moment ago is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UserError(f"--host {host}: not an address of this machine, such as 127.0.0.1") from error
            if error.errno == errno.EACCES:
                raise UserError(f"port {port} on {host}: not allowed; choose one above 1023 with --port") from error
            raise UserError(_in_use(host, port)) from error
        return probe.getsockname()[1]


def _in_use(host: str, port: int) -> str:
    return f"port {port} on {host} is in use; choose another with --port, 0 for any"
