"""Results of a long build that an interrupted one leaves behind, so that the next goes on from them."""

import base64
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class KeptResults:
    """A function of a file's name whose results, dataclasses of bytes, texts and truths, are kept in `folder`.

    key: what else the results depend on. sources: the files that a name stands for; a change of size or time of one
    makes the result anew, and so does a damaged file in the folder. worth: whether a result is kept; one that failed
    for want of memory may come off better next time.
    """

    compute: Callable[[str], Any]
    kind: type
    key: str
    sources: Callable[[str], list[Path]]
    worth: Callable[[Any], Any]
    folder: Path

    def __call__(self, name: str) -> Any:
        path = self.folder / f"{self._digest(name)}.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return self.kind(**{field: _decoded(value) for field, value in stored.items()})
        except (OSError, ValueError, TypeError):
            result = self.compute(name)
        if not self.worth(result):
            return result
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps({field: _encoded(value) for field, value in asdict(result).items()}))
        os.replace(partial, path)
        return result

    def _digest(self, name: str) -> str:
        stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in self.sources(name) if path.is_file()]
        return hashlib.blake2b(json.dumps([name, self.key, stats]).encode(), digest_size=16).hexdigest()


def _encoded(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _decoded(value: Any) -> Any:
    return base64.b64decode(value["base64"], validate=True) if isinstance(value, dict) else value
