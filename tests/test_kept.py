"""Kept results are computed once, and anew where a source or the kept file changed."""

from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from hf_vlr.data.kept import KeptResults


@dataclass(frozen=True)
class Found:
    data: bytes = b""
    text: str = ""
    good: bool = True


def test_results_are_computed_once_and_anew_where_something_changed(tmp_path: Path) -> None:
    seen: list[str] = []

    def compute(name: str) -> Found:
        seen.append(name)
        return Found((tmp_path / name).read_bytes(), f"ä {name}", name != "bad")

    def kept(key: str = "16") -> KeptResults:
        return KeptResults(compute, Found, key, lambda name: [tmp_path / name], attrgetter("good"), tmp_path / "kept")

    for name in ("one", "two", "bad"):
        (tmp_path / name).write_bytes(b"\x00\xff" + name.encode())
    first = [kept()(name) for name in ("one", "two", "bad")]
    assert [kept()(name) for name in ("one", "two", "bad")] == first
    assert seen == ["one", "two", "bad", "bad"], "what failed is tried again"
    (tmp_path / "one").write_bytes(b"another")
    assert kept()("one").data == b"another"
    assert kept("32")("two") == first[1]
    assert seen[4:] == ["one", "two"]
    for path in (tmp_path / "kept").iterdir():
        path.write_text('{"data": 3')
    assert kept()("two") == first[1]
    assert seen[6:] == ["two"]
