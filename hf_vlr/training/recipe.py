"""From YAML files and `key=value` words to a checked `Recipe`, and back to YAML.

A file may name another one as its `base`, whose values lie under its own.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hf_vlr.errors import UserError
from hf_vlr.training.keys import leaves, spell_type, split_optional, value_at
from hf_vlr.training.options import Recipe

SHORT_NAMES = {"vision": "model.vision", "text": "model.text", "data": "data.source", "out": "output"}


BASE = "base"


@dataclass(frozen=True)
class RecipeFile:
    """One file of a recipe: where it lies (None: in the package), its opening comment, its own values by section."""

    name: str
    path: Path | None
    comment: str
    values: Mapping[str, Any]


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe or a YAML file, lay `key=value` words over it, check it.

    What the file names as its `base` (a packaged recipe, or a path relative to the file) is read first and lies under
    it; a list or a dictionary is replaced as a whole, and `output` is not inherited. `overrides` are words such as
    `optim.lr=3e-4`, `model.freeze=text_model,logit_scale`, `data.options.classes=12` or a short name (`vision=`,
    `text=`, `data=`, `out=`); later words win. Under a dictionary (`data.options`, `optim.lr_scales`) the rest of the
    key is one name, dots included. `output` is `runs/NAME` unless given. Raises `UserError` for an unknown recipe or
    key, bases that go in a circle, a value of the wrong type and a value that `Recipe.check` refuses.
    """
    chain = recipe_files(name_or_path)
    values: list[tuple[str, Any]] = []
    for file in reversed(chain):
        values = [(key, value) for key, value in values if key != "output"]
        values += _flatten({name: value for name, value in file.values.items() if name != BASE}, Recipe, "")
    values.insert(0, ("output", f"runs/{chain[0].name}"))
    values += map(_parse_override, overrides)
    if all(key != "task" for key, _ in values):
        raise UserError(f"recipe {name_or_path} has no task; add `task: unicl`, `cvlp` or `recognition`")
    return _build(values)


def recipe_files(name_or_path: str | Path) -> list[RecipeFile]:
    """A recipe's own file, then its base, then that one's base, and so on; `UserError` for a circle."""
    chain = [_read(name_or_path)]
    while chain[-1].values.get(BASE) is not None:
        file, base = chain[-1], chain[-1].values[BASE]
        if not isinstance(base, str):
            raise UserError(f"recipe {file.name}: base={base} must be the name of one recipe, or the path of its file")
        chain.append(_read(base, file.path.parent if file.path else None))
        known = [(before.name, before.path) for before in chain[:-1]]
        if (chain[-1].name, chain[-1].path) in known:
            circle = " → ".join(one.name for one in chain)
            raise UserError(f"recipe {chain[0].name}: its bases go in a circle ({circle}); remove one `base:`")
    return chain


def changed_values(recipe: Recipe) -> list[tuple[str, Any]]:
    """(dotted key, value) of every key that is not at its default, in the order of the keys; `task` is one."""
    changed = []
    for key, leaf in leaves(Recipe):
        default = leaf.default if leaf.default_factory is MISSING else leaf.default_factory()
        if value_at(recipe, key) != default:
            changed.append((key, value_at(recipe, key)))
    return changed


def spell_value(value: Any) -> str:
    """A value as it may be written after `key=` on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(map(spell_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {spell_value(entry)}" for name, entry in value.items()) + "}"
    return str(value)


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
            name, comment = entry.name.removesuffix(".yaml"), _comment(entry.read_text(encoding="utf-8"))
            found[name] = comment.partition("\n")[0].strip()
    return found


def _read(name_or_path: str | Path, folder: Path | None = None) -> RecipeFile:
    """The file that a name or a path means; `folder` is where a relative path begins."""
    packaged = files("hf_vlr.recipes").joinpath(f"{name_or_path}.yaml")
    if Path(name_or_path).name == str(name_or_path) and packaged.is_file():
        return _parsed(str(name_or_path), None, packaged.read_text(encoding="utf-8"))
    path = (folder or Path()) / name_or_path
    if path.is_dir():
        raise UserError(f"recipe {path} is a folder; name the .yaml file in it")
    if path.is_file():
        try:
            return _parsed(path.stem, path.resolve(), path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"recipe {path} is not UTF-8 text; a recipe is a YAML file") from None
    if path.suffix in {".yaml", ".yml"} or len(Path(name_or_path).parts) > 1:
        raise UserError(f"recipe file {path} does not exist; `hf-vlr recipes` lists the packaged ones")
    near = difflib.get_close_matches(str(name_or_path), packaged_recipes(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown recipe {name_or_path}; {hint}`hf-vlr recipes` lists the packaged ones")


def _parsed(name: str, path: Path | None, text: str) -> RecipeFile:
    values = _parse_yaml(text, f"recipe {path or name}")
    if not isinstance(values, Mapping):
        raise UserError(f"recipe {path or name}: a recipe holds keys of its own, such as `task: cvlp`, not a list")
    return RecipeFile(name, path, _comment(text), values)


def _comment(text: str) -> str:
    """The comment that a file begins with, without its `#`."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines).strip("\n")


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
