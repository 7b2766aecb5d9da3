"""What the commands of `hf-vlr protocol` have in common: their words, and a help that ends with their keys."""

import click

from hf_vlr.cli.grammar import data_option, overrides, settings
from hf_vlr.cli.output import say


class _WithKeys(click.Command):
    """A command whose help ends with the keys of its protocol."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from hf_vlr.protocols.running import PROTOCOLS
        from hf_vlr.training.keys import describe

        rows = describe(PROTOCOLS[self.name][0])
        with formatter.section("Keys (default)"):
            formatter.write_dl([(key, f"{text} ({default})") for key, _, default, text in rows])


def protocol_command(name: str, text: str, *, needs_data: bool = True) -> click.Command:
    """The command of the protocol `name`, with its help; without `needs_data` it brings its own."""

    @click.command(name, cls=_WithKeys, help=text)
    @click.argument("model", metavar="MODEL")
    @settings
    @data_option(required=needs_data)
    @click.option("--out", metavar="DIR", help=f"Folder for results; MODEL/protocol/{name} by default.")
    def command(model: str, words: tuple[str, ...], data: str | None, out: str | None) -> None:
        from hf_vlr.protocols.running import output_folder, run_protocol

        run_protocol(name, model, overrides(words, data), out)
        folder = output_folder(name, model, out)
        if folder is not None:
            say(f"written to {folder}")

    return command
