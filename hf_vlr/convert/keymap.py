"""Tables of parameter names that are read in both directions: foreign names to ours, and back, bit for bit."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from hf_vlr.errors import UserError

SHOWN_KEYS = 20


class Move(NamedTuple):
    """One foreign tensor and the names of ours that it became.

    how: "", "transposed" or "split in n". dtype, shape: the foreign tensor's, the dtype without `torch.`.
    """

    source: str
    targets: tuple[str, ...]
    how: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A family of foreign names and the names of ours that they become.

    In a template `*` stands for one name without a dot, and `**` for the rest of a name, dots and all; the n-th star
    of a target is the n-th of the source. Several targets: the foreign tensor is cut into equal parts along its first
    axis (the fused query, key and value of an attention). transpose: the foreign matrix is multiplied from the right.
    """

    source: str
    targets: tuple[str, ...]
    transpose: bool = False

    @cached_property
    def source_pattern(self) -> re.Pattern[str]:
        return pattern(self.source)

    @cached_property
    def target_pattern(self) -> re.Pattern[str]:
        return pattern(self.targets[0])

    @property
    def how(self) -> str:
        if self.transpose:
            return "transposed"
        return f"split in {len(self.targets)}" if len(self.targets) > 1 else ""


class KeyMap:
    """An ordered list of rules; the first whose template fits a name holds for it.

    `forward` turns a foreign state dict into ours and `backward` ours into the foreign one. All that happens to values
    is a transposition or a cut, so `backward(forward(state))` is bit-equal, and gradients travel like weights.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)

    def forward(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Move]]:
        """Our tensors by name, and what became of each foreign one.

        Raises `UserError` listing the foreign names that no rule knows, and for two that would become the same.
        """
        ours: dict[str, Tensor] = {}
        moves: list[Move] = []
        unknown = []
        for name, tensor in state.items():
            found = self._find(name)
            if found is None:
                unknown.append(name)
                continue
            rule, stars = found
            targets = tuple(fill(target, stars) for target in rule.targets)
            if any(target in ours for target in targets):
                raise UserError(f"two tensors of the checkpoint would become {targets[0]}; the second is {name}")
            ours.update(zip(targets, cut(name, tensor, rule)))
            moves.append(Move(name, targets, rule.how, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
        if unknown:
            raise UserError(f"{len(unknown)} tensors of the checkpoint have no place in this model: {listed(unknown)}")
        return ours, moves

    def backward(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The foreign state dict (or gradients) of our tensors.

        Raises `UserError` listing names of ours that no rule makes, or a part of a cut tensor that is missing.
        """
        foreign: dict[str, Tensor] = {}
        left = dict(ours)
        for rule in self.rules:
            for name in [name for name in left if rule.target_pattern.fullmatch(name)]:
                stars = rule.target_pattern.fullmatch(name).groups()
                source = fill(rule.source, stars)
                first = self._find(source)
                if first is None or first[0] is not rule:
                    continue
                targets = [fill(target, stars) for target in rule.targets]
                missing = [target for target in targets if target not in left]
                if missing:
                    raise UserError(f"cannot put {source} together again: {listed(missing)} missing")
                parts = [left.pop(target) for target in targets]
                whole = parts[0] if len(parts) == 1 else torch.cat(parts)
                foreign[source] = whole.t().contiguous() if rule.transpose else whole
        if left:
            raise UserError(f"{len(left)} tensors of this model have no name in the other format: {listed(left)}")
        return foreign

    def _find(self, name: str) -> tuple[Rule, tuple[str, ...]] | None:
        for rule in self.rules:
            match = rule.source_pattern.fullmatch(name)
            if match:
                return rule, match.groups()
        return None


def move(source: str, *targets: str, transpose: bool = False) -> Rule:
    """A rule, shortly."""
    return Rule(source, targets, transpose)


def prefixed(rules: Sequence[Rule], source: str = "", target: str = "") -> list[Rule]:
    """The same rules one module deeper, on either side."""
    return [Rule(source + rule.source, tuple(target + one for one in rule.targets), rule.transpose) for rule in rules]


def pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template; a group a star."""
    parts = re.split(r"(\*\*|\*)", template)
    return re.compile("".join({"*": r"([^.]+)", "**": r"(.+)"}.get(part, re.escape(part)) for part in parts))


def fill(template: str, stars: Sequence[str]) -> str:
    """A template with its stars replaced, in order."""
    values = iter(stars)
    return re.sub(r"\*\*|\*", lambda _: next(values), template)


def cut(name: str, tensor: Tensor, rule: Rule) -> list[Tensor]:
    """What a rule makes of a tensor; raises `UserError` where its shape forbids that."""
    if rule.transpose:
        if tensor.ndim != 2:
            raise UserError(f"{name} must be a matrix, its shape is {tuple(tensor.shape)}")
        return [tensor.t().contiguous()]
    parts = len(rule.targets)
    if parts == 1:
        return [tensor]
    if tensor.ndim == 0 or tensor.shape[0] % parts:
        raise UserError(f"{name} of shape {tuple(tensor.shape)} cannot be cut into {parts} equal parts")
    return [part.contiguous() for part in tensor.chunk(parts)]


def listed(names: Iterable[str]) -> str:
    """Names for a message: each of a few; of many every family, with `*` for the numbers of blocks and its count."""
    names = list(names)
    if len(names) <= SHOWN_KEYS:
        return ", ".join(names)
    families = Counter(map(numberless, names))
    return ", ".join(f"{family} ({times})" if times > 1 else family for family, times in families.items())


def numberless(name: str) -> str:
    """A name with `*` for the numbers of blocks."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
