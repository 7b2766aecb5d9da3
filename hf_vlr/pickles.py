"""Reads a pickle as plain data: nothing that it names is imported, nothing that it calls is run.

A pickle is a program for a stack machine. This is such a machine without any power to act: a class or function of the
file becomes a `Placeholder`, a call becomes a `Placeholder` that holds the arguments. The few calls that make tensors
are handed to functions of ours. Every instruction costs constant time and memory beyond the bytes it carries.
"""

import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_INSTRUCTIONS = 1_000_000
"""A checkpoint of a thousand tensors with both Adam moments has about a hundred thousand."""
MAX_NAME = 1000
"""Characters of a dotted name; joined names must not grow beyond what the file itself holds."""

DAMAGED = "is damaged or cut short (copy or download the file again)"

Calls = Mapping[str, Callable[[tuple], Any]]

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
# LONG4 (integers above 255 bytes) is missing on purpose, and so is all that only protocols 0 and 1 write
_VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)


class BadPickle(ValueError):
    """The pickle is damaged, too long, or does what no checkpoint does; the message completes `its pickle …`."""


class Placeholder:
    """Inert stand-in for a foreign class or function (`arguments` is None), or for what a call of it would have made.

    `name` is the dotted global, `arguments` the positional arguments of the call, `items` what was appended to it.
    Compares and hashes by identity.
    """

    __slots__ = ("_built", "_entries", "arguments", "items", "name")

    def __init__(self, name: str, arguments: tuple | None = None) -> None:
        self.name = name
        self.arguments = arguments
        self.items: list[Any] = []
        self._entries: dict[Any, Any] = {}
        self._built: Any = None

    @property
    def state(self) -> dict[Any, Any]:
        """Attributes and entries by name: what the object's state held, and, for a kind of dict, its items.

        An item hides an attribute of the same name. A state that is no dict lies under `__setstate__`.
        """
        parts = self._built if isinstance(self._built, tuple) and len(self._built) == 2 else (self._built,)
        if all(part is None or isinstance(part, dict) for part in parts):
            return {key: value for part in (*parts, self._entries) if part for key, value in part.items()}
        return {"__setstate__": self._built, **self._entries}

    def __repr__(self) -> str:
        return f"<placeholder of {shown(self.name)}>"


def shown(name: object) -> str:
    """A name of the file for a message: one printable line of at most 80 characters."""
    plain = isinstance(name, str | float | None) or (isinstance(name, int) and name.bit_length() <= 64)
    text = str(name) if plain else type(name).__name__
    return (text if text.isprintable() else ascii(text))[:80]


def unpickle(stream: BinaryIO, calls: Calls, persistent: Callable[[Any], Any]) -> Any:
    """The data of the pickle that begins at the stream's position; afterwards the stream stands behind it.

    `calls` maps dotted globals to functions of the argument tuple, `persistent` turns a persistent id into a value.
    `collections.OrderedDict` becomes a dict, a set a list, and a dict key that is neither text, bytes, number, None
    nor placeholder becomes a placeholder that holds it. The stream must be in memory (`io.BytesIO`): lengths declared
    in the pickle are then bounded by what is there. Raises `BadPickle`.
    """
    machine = _Machine(calls, persistent)
    try:
        with warnings.catch_warnings():
            # odd backslashes in the name of a global
            warnings.simplefilter("ignore", DeprecationWarning)
            for instruction, argument, _ in pickletools.genops(stream):
                machine.step(instruction.name, argument)
        return machine.stack.pop()
    except BadPickle:
        raise
    except (ValueError, IndexError, KeyError):
        raise BadPickle(DAMAGED) from None


def _key(key: Any) -> Any:
    # hashing a nested tuple recurses in C, and huge integers can be chosen to collide: neither may be a key here
    small = key is None or isinstance(key, str | bytes | float | Placeholder)
    return key if small or (isinstance(key, int) and key.bit_length() <= 64) else Placeholder("key", (key,))


class _Machine:
    """Stack, marks and memo; `steps` maps the name of an instruction to what it does with its argument."""

    def __init__(self, calls: Calls, persistent: Callable[[Any], Any]) -> None:
        self.calls: Calls = {**calls, "collections.OrderedDict": self.ordered}
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = MAX_INSTRUCTIONS
        push = self.stack.append
        self.steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(_VALUES, push),
            **{name: lambda _, value=value: push(value) for name, value in _CONSTANTS.items()},
            **{name: lambda _, kind=kind: push(kind()) for name, kind in _EMPTY.items()},
            **{f"TUPLE{size}": lambda _, size=size: self.pack(size) for size in (1, 2, 3)},
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self.put),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda index: push(self.memo[index])),
            "MEMOIZE": lambda _: self.put(len(self.memo)),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "POP": self.pop,
            "POP_MARK": lambda _: self.pop_mark() and None,
            "TUPLE": lambda _: push(tuple(self.pop_mark())),
            "FROZENSET": lambda _: push(self.pop_mark()),
            "APPEND": lambda _: self.append([self.stack.pop()]),
            "APPENDS": lambda _: self.append(self.pop_mark()),
            "ADDITEMS": lambda _: self.append(self.pop_mark()),
            "SETITEM": lambda _: self.set_items([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self.set_items(self.pop_mark()),
            "GLOBAL": lambda name: self.named(*name.split(" ", 1)),
            "STACK_GLOBAL": lambda _: self.named(self.stack.pop(-2), self.stack.pop()),
            "REDUCE": lambda _: self.call(self.stack.pop(-2), self.stack.pop()),
            "NEWOBJ": lambda _: self.call(self.stack.pop(-2), self.stack.pop()),
            "NEWOBJ_EX": lambda _: self.call(self.stack.pop(-3), (self.stack.pop(-2), self.stack.pop())),
            "BUILD": lambda _: self.build(self.stack.pop()),
            "BINPERSID": lambda _: push(self.persistent(self.stack.pop())),
        }

    def step(self, name: str, argument: Any) -> None:
        self.spend(1)
        if name not in self.steps:
            raise BadPickle(f"uses the instruction {name}, which neither torch nor numpy writes")
        self.steps[name](argument)

    def spend(self, instructions: int) -> None:
        self.left -= instructions
        if self.left < 0:
            raise BadPickle(f"is too long (above {MAX_INSTRUCTIONS} instructions)")

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def pop(self, _: None) -> None:
        # of a mark that nothing follows, the mark itself
        (self.marks if self.marks and self.marks[-1] == len(self.stack) else self.stack).pop()

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def pack(self, size: int) -> None:
        if len(self.stack) < size:
            raise BadPickle(DAMAGED)
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Placeholder):
            raise BadPickle(f"appends to a {type(target).__name__}")
        (target.items if isinstance(target, Placeholder) else target).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if len(values) % 2 or not isinstance(target, dict | Placeholder):
            raise BadPickle(f"sets items of a {type(target).__name__}")
        entries = target._entries if isinstance(target, Placeholder) else target
        for key, value in zip(values[::2], values[1::2], strict=True):
            entries[_key(key)] = value

    def named(self, module: Any, name: Any = None) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < MAX_NAME):
            raise BadPickle("names something that is no class or function")
        self.stack.append(Placeholder(f"{module}.{name}"))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Placeholder) or not isinstance(arguments, tuple):
            raise BadPickle("calls something that is no class or function")
        known = self.calls.get(function.name) if function.arguments is None else None
        self.stack.append(known(arguments) if known else Placeholder(function.name, arguments))

    def ordered(self, arguments: tuple) -> Any:
        """An `OrderedDict`: empty before its items (Python 3) or from a list of pairs (Python 2)."""
        pairs = arguments[0] if arguments else []
        if not isinstance(pairs, list) or len(arguments) > 1:
            return Placeholder("collections.OrderedDict", arguments)
        self.spend(len(pairs))
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise BadPickle("makes a dict of what are no pairs")
        return {_key(key): value for key, value in pairs}

    def build(self, state: Any) -> None:
        """Keep the state of a placeholder. The attributes of a dict (`_metadata`) or a tensor are of no use here."""
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            if target._built is not None:
                raise BadPickle("gives an object its state twice")
            target._built = state
