"""Paths of this machine, which are nobody else's business: what is published has the last name of each instead."""

import html
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

# "imagefolder:", "stream:" and their like; one letter is a drive, and "://" an address
_KIND = re.compile(r"^[a-z][a-z0-9-]+:(?!//)")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
# a path of two or more parts within a sentence; the last name is its only group
_EMBEDDED = re.compile(
    r"""(?<![^\s=:,;("'\[+])(?:~|[A-Za-z]:)?[/\\](?![/\\])(?:[^\s,;"'()<>\[\]+/\\]+[/\\]+)+([^\s,;"'()<>\[\]+/\\]*)"""
)
_REST = r"""(?:[/\\]+([^\s,;"'()<>\[\]&/\\]*))*"""


class LocalPaths:
    """What to write in place of paths of this machine.

    folder: of the run. documents: what JSON and YAML files hold; each path in a string of them is learned. A path is
    what is absolute, begins with `~` or a dot, or has a separator and exists here; `org/name` is none unless it does.
    """

    def __init__(self, folder: Path, documents: Iterable[Any]) -> None:
        known = {str(folder.absolute()): folder.absolute().name, str(folder.resolve()): folder.resolve().name}
        for text in _strings(list(documents)):
            known |= {path: last_name(path) for path in paths_in(text)}
        # the longest first: it may begin with another one
        self._known = dict(sorted(known.items(), key=lambda pair: -len(pair[0])))
        here = {str(Path.home()), os.getcwd(), tempfile.gettempdir(), str(folder.absolute()), str(folder.resolve())}
        here |= {str(Path(path).parent) for path in known if Path(path).is_absolute()}
        roots = sorted((root for root in here if len(Path(root).parts) > 1), key=len, reverse=True)
        # within a word it is a letter's worth of a picture, not a path
        self._roots = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, roots)) + r")(?![\w.-])" + _REST)

    def clean(self, value: Any) -> Any:
        """A JSON or YAML value whose strings hold no path of this machine; keys stay as they are."""
        if isinstance(value, dict):
            return {key: self.clean(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.clean(one) for one in value]
        if not isinstance(value, str):
            return value
        return _EMBEDDED.sub(lambda found: found[1] or last_name(found[0]), self.clean_text(value))

    def clean_text(self, text: str) -> str:
        """A text of any kind without the paths that are known, and without any below the folders of this machine."""
        for path, name in self._known.items():
            for written in dict.fromkeys((path, html.escape(path), json.dumps(path)[1:-1])):
                text = text.replace(written, name)
        return self._roots.sub(lambda found: found[1] or last_name(found[0]), text)


def paths_in(text: str) -> Iterator[str]:
    """The paths of this machine in a recipe's value: all of it, or its parts that `+` joins, without their kind."""
    whole = without_kind(text)
    parts = [whole] if os.path.exists(whole) else [without_kind(part.strip()) for part in text.split("+")]
    yield from filter(is_local, parts)


def is_local(text: str) -> bool:
    """Whether a value names a file or a folder of this machine."""
    if len(text) < 3 or "\n" in text or "://" in text:
        return False
    if text.startswith(("/", "~/", "./", "../")) or _DRIVE.match(text):
        return True
    return os.sep in text and os.path.exists(text)


def last_name(path: str) -> str:
    """The last part of a path of any system."""
    kind = PureWindowsPath if _DRIVE.match(path) or "\\" in path else PurePosixPath
    return kind(path).name or path.strip("/\\~.")


def without_kind(text: str) -> str:
    """A recipe's value without the words before its path or name: `imagefolder:`, `stream:` and their like."""
    while found := _KIND.match(text):
        text = text[found.end() :]
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
