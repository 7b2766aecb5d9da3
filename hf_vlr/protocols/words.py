"""`key=value` words of a protocol: its own keys have no dots, the others are a recipe's."""

import difflib
from collections.abc import Sequence
from dataclasses import Field
from typing import Any, TypeVar, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hf_vlr.errors import UserError
from hf_vlr.training.keys import check_value, leaves, spell_type, split_optional
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import SHORT_NAMES, parse_value

Settings = TypeVar("Settings")


def split_words(words: Sequence[str], kind: type[Settings]) -> tuple[Settings, list[str]]:
    """The protocol's checked settings, and the words that are a recipe's, in their order.

    Raises `UserError` for a word that is not `key=value`, an unknown key (naming the nearest), and a value of another
    type or out of its range, as is a list with a member twice, or with none where one is needed.
    """
    known = dict(leaves(kind))
    config, rest = OmegaConf.structured(kind), []
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise UserError(f"{word!r} is not key=value; settings are written like {next(iter(known))}=VALUE")
        if key not in known:
            _require_recipe_key(key, list(known))
            rest.append(word)
            continue
        try:
            OmegaConf.update(config, key, _value(text, known[key]))
        except OmegaConfBaseException:
            raise UserError(f"{word}: expected {_expected(known[key])}") from None
    settings = OmegaConf.to_object(config)
    for key, leaf in known.items():
        value = getattr(settings, key)
        check_value(key, leaf, value)
        if isinstance(value, list):
            _check_list(key, leaf, value)
    return settings, rest


def _value(text: str, leaf: Field) -> Any:
    optional, kind = split_optional(leaf.type)
    if optional and text.lower() in {"null", "none", "~", ""}:
        return None
    if kind is str:
        return text
    if get_origin(kind) is list and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    return parse_value(text)


def _check_list(key: str, leaf: Field, members: list[Any]) -> None:
    """The same draw twice is no second draw; and only a list that is empty by default may be."""
    twice = next((member for place, member in enumerate(members) if member in members[:place]), None)
    if twice is not None:
        raise UserError(f"{key} names {twice} twice; once is enough")
    if not members and leaf.default_factory():
        raise UserError(f"{key}=[] names nothing; {leaf.metadata['help']}")


def _expected(leaf: Field) -> str:
    return "a list of whole numbers" if leaf.type == list[int] else spell_type(leaf.type)


def _require_recipe_key(key: str, own: list[str]) -> None:
    """A key with a dot is left to the recipe's own check, which names the nearest of its keys."""
    plain = [name for name, _ in leaves(Recipe) if "." not in name] + list(SHORT_NAMES)
    if "." in key or key in plain:
        return
    lasts = {name.rpartition(".")[2]: name for name, _ in leaves(Recipe) if name.startswith(("data.", "eval."))}
    near = difflib.get_close_matches(key, own, n=1) or [
        lasts[last] for last in difflib.get_close_matches(key, lasts, n=1)
    ]
    hint = f"did you mean {near[0]}?" if near else f"this protocol has {', '.join(own)}"
    raise UserError(f"unknown key {key}; {hint}")
