"""The words that all commands share: `key=value`, `--data`, `--out`."""

from collections.abc import Callable
from typing import Any

import click

from hf_vlr.errors import UserError


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its `key=value …` words as the argument `words`."""
    return click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")(command)


def data_option(required: bool = False) -> Callable[..., Any]:
    """`--data X`, short for `data.source=X`."""
    return click.option("--data", required=required, metavar="SOURCE", help="Short for data.source=SOURCE.")


def overrides(words: tuple[str, ...], data: str | None = None) -> list[str]:
    """The words as recipe overrides; a `data.source=` among them wins over `--data`.

    Raises `UserError` for a word that is not `key=value`.
    """
    for word in words:
        key, equals, _ = word.partition("=")
        if not (key and equals):
            raise UserError(f"{word!r} is not key=value; settings are written like optim.lr=3e-4")
    return ([] if data is None else [f"data.source={data}"]) + list(words)


def as_options(words: tuple[str, ...]) -> dict[str, Any]:
    """The words as a dictionary of numbers, texts or lists, for commands whose keys are not a recipe's."""
    from hf_vlr.training.recipe import parse_value

    pairs = (word.split("=", 1) for word in overrides(words))
    return {key: parse_value(text) for key, text in pairs}
