"""From a YAML file and `key=value` words to a checked `Recipe`, and back to YAML."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, asdict, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hf_vlr.errors import UserError
from hf_vlr.training.options import Recipe, leaves, spell_type, split_optional

SHORT_NAMES = {"vision": "model.vision", "text": "model.text", "data": "data.source", "out": "output"}


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe or a YAML file, lay `key=value` words over it, check it.

    `overrides` are words such as `optim.lr=3e-4`, `model.freeze=text_model,logit_scale`,
    `data.options.classes=12` or a short name (`vision=`, `text=`, `data=`, `out=`); later words win. Under a
    dictionary (`data.options`, `optim.lr_scales`) the rest of the key is one name, dots included. `output` is
    `runs/NAME` unless given. Raises `UserError` for an unknown recipe or key, for a value of the wrong type
    and a value that `Recipe.check` refuses.
    """
    name, text = _read(name_or_path)
    values: list[tuple[str, Any]] = [("output", f"runs/{name}")]
    values += _flatten(_parse_yaml(text, f"recipe {name_or_path}"), Recipe, "")
    values += map(_parse_override, overrides)
    if all(key != "task" for key, _ in values):
        raise UserError(f"recipe {name_or_path} has no task; add `task: unicl`, `cvlp` or `recognition`")
    return _build(values)


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A checked copy of `recipe` with `key=value` words laid over it, as in `load_recipe`."""
    return _build([*_flatten(asdict(recipe), Recipe, ""), *map(_parse_override, overrides)])


def recipe_to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML; `load_recipe` on it gives an equal `Recipe`."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)


def packaged_recipes() -> dict[str, str]:
    """Name of each recipe that comes with the package, and the first line of its opening comment."""
    found = {}
    for entry in sorted(files("hf_vlr.recipes").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            first = entry.read_text(encoding="utf-8").partition("\n")[0]
            found[entry.name.removesuffix(".yaml")] = first.lstrip("# ").strip() if first.startswith("#") else ""
    return found


def _read(name_or_path: str | Path) -> tuple[str, str]:
    packaged = packaged_recipes()
    if str(name_or_path) in packaged:
        name = str(name_or_path)
        return name, files("hf_vlr.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name_or_path)
    if path.is_dir():
        raise UserError(f"recipe {path} is a folder; name the .yaml file in it")
    if path.is_file():
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"recipe {path} is not UTF-8 text; a recipe is a YAML file") from None
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        raise UserError(f"recipe file {path} does not exist; `hf-vlr recipes` lists the packaged ones")
    near = difflib.get_close_matches(str(path), packaged, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown recipe {path}; {hint}`hf-vlr recipes` lists the packaged ones")


def _parse_yaml(text: str, where: str) -> Any:
    # OmegaConf's loader, not yaml.safe_load: it reads 1e-3 as a number and refuses a key that stands twice.
    try:
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def parse_value(text: str) -> Any:
    """One YAML value written on the command line; a text that is no YAML stands for itself."""
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        return text


def _flatten(tree: Any, section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        where = prefix.rstrip(".") or "a recipe"
        raise UserError(f"{where} holds keys of its own, not a value; write `{where}:` and indent the keys below it")
    known = {about.name: about for about in fields(section)}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in known:
            raise _unknown_key(key)
        if is_dataclass(known[name].type):
            if value is not None:
                yield from _flatten(value, known[name].type, f"{key}.")
        else:
            yield key, value


def _parse_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word!r} is not key=value; write for example optim.lr=3e-4")
    key = SHORT_NAMES.get(key, key)
    known = dict(leaves(Recipe))
    if key in known:
        return key, _parse_word(text, known[key].type)
    if _dictionary_of(key) is not None:
        return key, parse_value(text)
    raise _unknown_key(key)


def _dictionary_of(key: str) -> str | None:
    """The dictionary field that `key` is an entry of, if any."""
    for name, leaf in leaves(Recipe):
        if get_origin(leaf.type) is dict and key.startswith(f"{name}.") and len(key) > len(name) + 1:
            return name
    return None


def _parse_word(text: str, kind: Any) -> Any:
    optional, kind = split_optional(kind)
    if optional and text.lower() in {"null", "none", "~", ""}:
        return None
    if kind is str:
        return text
    if get_origin(kind) is list and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    return parse_value(text)


def _unknown_key(key: str) -> UserError:
    known = [name for name, _ in leaves(Recipe)]
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return UserError(f"{key} is a section; name one of its keys, such as {inside[0]}")
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, known, n=1)
    if not near:
        by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
        near = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1)]
    hint = f"did you mean {' or '.join(near)}?" if near else "`hf-vlr recipes --keys` lists all keys"
    return UserError(f"unknown key {key}; {hint}")


def _build(values: Sequence[tuple[str, Any]]) -> Recipe:
    config = OmegaConf.structured(Recipe)
    known = dict(leaves(Recipe))
    for key, value in values:
        name = _dictionary_of(key)
        if name is None:
            _assign(config, key, known[key], value)
        else:
            _assign(config, name, known[name], {key.removeprefix(f"{name}."): value}, extend=True)
    try:
        recipe = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"recipe: {str(error).splitlines()[0]}") from None
    recipe.check()
    return recipe


def _assign(config: DictConfig, key: str, leaf: Field, value: Any, extend: bool = False) -> None:
    # YAML 1.1 reads a bare `no` as false, and `no` is what Accelerate calls full precision.
    if value is False and "no" in leaf.metadata["choices"]:
        value = "no"
    try:
        OmegaConf.update(config, key, value, merge=extend)
    except OmegaConfBaseException:
        said = " ".join(f"{key}.{name}={entry}" for name, entry in value.items()) if extend else f"{key}={value}"
        raise UserError(f"{said}: expected {spell_type(leaf.type)}") from None
