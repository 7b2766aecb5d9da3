"""Cutting running text into sentences that a text tower can read."""

import re
from collections.abc import Iterator

# CLIP reads 75 tokens, about 60 English words.
MAX_WORDS = 60
ABBREVIATIONS = frozenset(
    {
        "al", "approx", "c", "ca", "capt", "cf", "col", "dr", "ed", "eds", "fig", "gen", "jr", "lt", "mr", "mrs", "ms",
        "mt", "no", "prof", "rev", "sp", "spp", "sr", "ssp", "st", "subsp", "var", "viz", "vol", "vs",
    }
)  # fmt: skip
# Words that begin a sentence and no name, so that "in the U.S. It is …" is cut and "J. Smith" is not.
STARTERS = frozenset(
    {
        "A", "An", "At", "By", "For", "From", "He", "Her", "His", "However", "In", "It", "Its", "On", "She", "Some",
        "The", "Their", "There", "These", "They", "This",
    }
)  # fmt: skip
_FULL_WIDTH = "。！？"
_BOUNDARY = re.compile(r"""[.!?]["'”’)\]]*\s+|(?<=[a-z]{2})[.!?](?=[A-Z][a-z])|[。！？][”’」』）]*\s*""")
_OPENING = "\"'“‘(["


def sentences_of(text: str, whole_only: bool = False) -> list[str]:
    """The sentences of a text, each on one line.

    A sentence ends at the end of a line, and after `.`, `!` or `?` (also full-width) where the next one begins with a
    capital or a number, but not after an initial or an abbreviation. What is longer than `MAX_WORDS` words is cut at
    the last mark that ends or divides a sentence. Footnote marks and emptied brackets go, and so do scraps of one
    word. `whole_only` drops what does not end with a mark, as headings and entries of lists do.
    """
    found = []
    for line in text.split("\n"):
        for sentence in _split(_tidy(line)):
            whole = sentence.rstrip("\"'”’)]").endswith((".", "!", "?", *_FULL_WIDTH))
            if whole or not whole_only:
                found += [piece for piece in _cut(sentence) if not _is_scrap(piece)]
    return found


def _tidy(line: str) -> str:
    """The line without footnote marks, and without brackets that a page's markup left empty."""
    line = re.sub(r"\[(?:\d+|citation needed)\]", "", line)
    line = re.sub(r"\s*\([\s;,:]*\)", "", line)
    return " ".join(re.sub(r"\(\s*[;,:]\s*", "(", line).split())


def _split(line: str) -> Iterator[str]:
    start = 0
    for match in _BOUNDARY.finditer(line):
        if _ends(line, match):
            yield line[start : match.end()].strip()
            start = match.end()
    if line[start:].strip():
        yield line[start:].strip()


def _ends(line: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends at this mark."""
    if match[0][0] in _FULL_WIDTH:
        return True
    following = line[match.end() :]
    first = following.lstrip(_OPENING)[:1]
    if not (first.isupper() or first.isdigit() or following[:1] in _OPENING):
        return False
    if match[0][0] != ".":
        return True
    word = line[: match.start()].rpartition(" ")[2].lstrip(_OPENING)
    if word.casefold() in ABBREVIATIONS:
        return False
    initials = re.fullmatch(r"(?:\w\.)*\w", word) and not word.isdigit() and (len(word) > 1 or word.isupper())
    return not initials or re.split(r"\W", following, maxsplit=1)[0] in STARTERS


def _cut(sentence: str) -> Iterator[str]:
    words = sentence.split()
    while len(words) > MAX_WORDS:
        at = next(at for marks in (".!?", ";:", ",", "") if (at := _last_mark(words, marks)))
        yield " ".join(words[:at])
        words = words[at:]
    yield " ".join(words)


def _last_mark(words: list[str], marks: str) -> int:
    """How many of the first `MAX_WORDS` words end at the last of `marks`, 0 for too few; all of them for no marks."""
    if not marks:
        return MAX_WORDS
    found = [at for at in range(MAX_WORDS // 3, MAX_WORDS + 1) if words[at - 1].endswith(tuple(marks))]
    return found[-1] if found else 0


def _is_scrap(piece: str) -> bool:
    words = [word for word in piece.split() if any(letter.isalpha() for letter in word)]
    return len(words) < 2 and not piece.endswith(tuple(_FULL_WIDTH))
