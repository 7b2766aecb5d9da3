"""`hf-vlr recipes`."""

import click

from hf_vlr.cli.output import say, say_table


@click.command()
@click.option("--keys", is_flag=True, help="List the keys of a recipe instead: type, default, meaning.")
@click.argument("only", required=False, metavar="[PART]")
def command(keys: bool, only: str | None) -> None:
    """List the packaged recipes; PART keeps those whose name, or with --keys whose key, contains it.

    \b
    hf-vlr recipes
    hf-vlr recipes --keys optim
    """
    from hf_vlr.training.recipe import packaged_recipes

    rows = key_rows() if keys else list(packaged_recipes().items())
    found = [row for row in rows if only is None or only in row[0]]
    say_table(found)
    if not found:
        say(f"no {'key' if keys else 'recipe'} contains {only}" if only else "no recipes are packaged")


def key_rows() -> list[tuple[str, str, str, str]]:
    """(key, type, default, help) of all recipe keys."""
    from hf_vlr.training.options import describe_keys

    return describe_keys()
