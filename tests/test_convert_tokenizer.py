"""CLIP's tokenizer, built offline, gives the ids of the original; where it does not is known to the string.

The vocabulary comes from an installed open_clip, else from the file that HF_VLR_CLIP_VOCABULARY names.
"""

import gzip
import hashlib
import importlib.util
import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

from hf_vlr.convert import clip_tokenizer as module
from hf_vlr.convert.clip_tokenizer import BEGIN, END, VOCABULARY_FILE, clean_text, clip_tokenizer, vocabulary_path
from hf_vlr.data.templates import TEMPLATES
from hf_vlr.errors import UserError
from hf_vlr.randomness import numpy_generator

FILE = os.environ.get("HF_VLR_CLIP_VOCABULARY")
HAS_OPEN_CLIP = importlib.util.find_spec("open_clip") is not None
needs_vocabulary = pytest.mark.skipif(
    not (HAS_OPEN_CLIP or FILE), reason="neither open_clip nor HF_VLR_CLIP_VOCABULARY, a file"
)
needs_open_clip = pytest.mark.skipif(not HAS_OPEN_CLIP, reason="open_clip is not installed")
GOLDEN = Path(__file__).with_name("golden") / "vlltr_testvectors.json"

# ---- ten thousand strings

SEED = 2022
STRINGS_SHA256 = "e7c3233ba848c2ac1e04f9ff86f6dbffbdd46d90bd5b6b0db3e4cd237ac15b53"


def pool(pieces: str) -> list[str]:
    """The pieces between bars, or between spaces where there is no bar."""
    return pieces.split("|" if "|" in pieces else None)


NAMES = pool("tabby cat|kit fox|Tinca tinca|T-shirt|Granny Smith|St. Bernard|jack-o'-lantern|cock|rock'n'roll|Ära")
WORDS = pool("""The a of in on photo image painting small large Red blue GREEN tench fish freshwater lives eats bird's
don't it's they're we've I'm you'll he'd river; lake, forest. "quoted" (seen) well-known e.g. U.S. 1998 3.5kg 50% A/C
C++ antidisestablishmentarianism supercalifragilistic xylophone qwertz Zyzzyva""")
SHOUTED = pool("DON'T It'S WE'RE I'VE I'M YOU'LL HE'D 'S ''s !'t 'sS o'clock 'ſ D'D'D")
ENTITIES = pool("""&amp; &lt; &gt; &quot; &#39; &#x27; &apos; &nbsp; &eacute; &Uuml; &copy; &#8217; &hellip; &amp;amp;
&amp;lt;b&amp;gt; &amp;#39; &amp &ltfoo &notit; &bogus; &#0; &#128; &#x1F600; AT&T R&B <b> </b> <br/> &ndash; &EACUTE;
&#x301;""")
ACCENTED = pool("café naïve Ångström Łódź señor Straße ÉCOLE Zürich Dvořák Þór ĳssel ﬁsh İstanbul ŉ Ǆ smørrebrød ﬅ")
CURLY = pool("“quoted” it’s don‘t ‚low‘ „Gänsefüßchen“ ’90s IT’S ʼn «guillemets» — … ‹› ″ ′s")
EMOJI = pool("😀 👍🏽 👩‍🔬 👨‍👩‍👧‍👦 🇩🇪 🇺🇳 ❤️ ☺ 1️⃣ 🏳️‍🌈 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🫠 🧑🏿‍🚀 ™ © ♀")
GREEK = pool("ΟΔΥΣΣΕΥΣ Σ ΑΣ. Λόγος ΜΟΥΣΑΣ' ΣΑΣ αΣ K Å ẞ ΤΣ1 ДОМ Ёлка Šuma Α\u0301Σ\u0301")
CONTROL = pool(
    "\x00|\x07|\x08|\x0b|\x0c|\x1b[31m|\x1b[0m|\x1c|\x1f|\x7f|\x80|\x85|\x99|\x9f|\ufeff|\ufffc|\u206a|\r\n|\t"
)
ZERO = pool("\u200b|\u200c|\u200d|\u200e|\u2060|\u00ad|\ufe0f|\u061c|\u180e|\u034f|\u3164")
SPACES = pool("\u00a0|\u2003|\u3000|\u202f|\u1680|\n|\t|  |\u205f|\u2028|\u2029")
MARKS = pool("\u0301|\u0308|\u0327|\u20dd|a\u0308\u0301|\u0345|e\u0323\u0307|\u1161")
SPECIAL = [BEGIN, END, "<|ENDOFTEXT|>", "<start_of_text>", "<end_of_text>", "<END_OF_TEXT>", "<|endoftext", "<|pad|>"]
REPAIRABLE = pool("Café |naïve |“quoted” |it’s |Ångström |… |señor |— |€ 5 |日本 ")
ASCII = [chr(code) for code in range(32, 127)]

Draw = Callable[[np.random.Generator], str]


def some(rng: np.random.Generator, pool: Sequence[str], low: int, high: int) -> list[str]:
    return [pool[index] for index in rng.integers(len(pool), size=rng.integers(low, high + 1))]


def joined(pool: Sequence[str], low: int, high: int, by: str = "") -> Draw:
    return lambda rng: by.join(some(rng, pool, low, high))


def among_words(pieces: Sequence[str], high: int = 6) -> Draw:
    """One to `high` pieces and up to six English words, shuffled, run together or not."""

    def draw(rng: np.random.Generator) -> str:
        parts = some(rng, pieces, 1, high) + some(rng, WORDS, 0, 6)
        return "".join(parts[index] + " " * int(rng.integers(2)) for index in rng.permutation(len(parts)))

    return draw


@cache
def characters(*ranges: str) -> list[str]:
    """The characters of the ranges that Unicode 3.2 knows, whose tables every Python carries unchanged."""
    codes = (code for first, last in ranges for code in range(ord(first), ord(last) + 1))
    return [chr(code) for code in codes if unicodedata.ucd_3_2_0.category(chr(code)) not in {"Cn", "Cs", "Co"}]


def script(*ranges: str) -> Draw:
    words = joined(characters(*ranges), 1, 12)
    return lambda rng: " ".join(words(rng) for _ in range(rng.integers(1, 6)))


def prompt(rng: np.random.Generator) -> str:
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(NAMES[rng.integers(len(NAMES))])


def decomposed(rng: np.random.Generator) -> str:
    return unicodedata.normalize("NFD", among_words(ACCENTED)(rng))


def mojibake(rng: np.random.Generator) -> str:
    encoding = ("cp1252", "latin-1")[rng.integers(2)]
    return joined(REPAIRABLE, 1, 6)(rng).encode().decode(encoding, errors="replace")


# category -> the strings, then how many of them differ: transformers, ours, ours after clean_text
CATEGORIES: dict[str, tuple[int, Draw, tuple[int, int, int]]] = {
    "English sentences": (1500, joined(WORDS, 1, 25, " "), (0, 0, 0)),
    "class prompts": (1500, prompt, (0, 0, 0)),
    "ASCII": (700, joined(ASCII, 1, 30), (1, 1, 0)),
    "digits, punctuation, underscores": (500, joined([c for c in ASCII if not c.isalpha()], 1, 30), (0, 0, 0)),
    "contractions": (400, among_words(SHOUTED), (74, 0, 0)),
    "HTML entities": (500, among_words(ENTITIES), (481, 409, 17)),
    "accents, composed": (400, among_words(ACCENTED), (251, 0, 0)),
    "accents, decomposed": (400, decomposed, (259, 0, 0)),
    "curly quotes": (400, among_words(CURLY), (351, 0, 0)),
    "emoji": (400, among_words(EMOJI), (0, 0, 0)),
    "Greek and Cyrillic capitals": (300, among_words(GREEK), (217, 0, 0)),
    "CJK": (400, script("一龥", "ぁん", "ァヶ", "가힣", "、】"), (0, 0, 0)),
    "Arabic, Hebrew, Thai, Devanagari": (400, script("ء٩", "את", "ก๛", "ँ॰"), (0, 0, 0)),
    "mojibake": (300, mojibake, (300, 300, 0)),
    "control characters": (300, among_words(CONTROL), (285, 0, 0)),
    "zero width": (250, among_words(ZERO), (0, 0, 0)),
    "white space": (250, among_words(SPACES), (0, 0, 0)),
    "full and half width": (250, script("！～", "ｦﾟ", "￠￦"), (250, 0, 0)),
    "lone combining marks": (250, among_words(MARKS), (103, 0, 0)),
    "special tokens in the text": (100, among_words(SPECIAL, 3), (75, 74, 87)),
    "more than 75 tokens": (100, joined([*WORDS, *EMOJI, *ACCENTED, "日本"], 80, 120, " "), (82, 0, 0)),
    "empty": (20, lambda rng: "", (0, 0, 0)),
    "only white space": (80, joined(" \t\n\r\x0b\x0c\u00a0\u2003\u3000", 1, 30), (0, 0, 0)),
    "any of Unicode 3.2": (300, joined(characters("\x00\U0002ffff"), 1, 30), (14, 0, 0)),
}


@cache
def strings() -> dict[str, list[str]]:
    return {
        name: [draw(numpy_generator(SEED, 0, index, name)) for index in range(count)]
        for name, (count, draw, _) in CATEGORIES.items()
    }


# ---- the tokenizers


@cache
def ours(like: str = "open_clip"):
    return clip_tokenizer(None if HAS_OPEN_CLIP else FILE, like=like)


def unpacked() -> bytes:
    """The vocabulary's file, unpacked."""
    data = vocabulary_path(None if HAS_OPEN_CLIP else FILE).read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """A row for each text, up to its end mark, of at most 77."""
    return [tokenizer(text, truncation=True, max_length=77)["input_ids"] for text in texts]


@cache
def original():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def original_ids(texts: list[str]) -> list[list[int]]:
    """The rows of `open_clip.tokenize` up to the last end mark, without the zeros behind it."""
    return [row[: len(row) - row[::-1].index(49407)] for row in original()(texts).tolist()]


def differing(texts: list[str], found: list[list[int]], wanted: list[list[int]]) -> list[str]:
    return [text for text, row, right in zip(texts, found, wanted, strict=True) if row != right]


# ---- golden ids and the original


@needs_vocabulary
@pytest.mark.parametrize("like", ["open_clip", "transformers"])
def test_ids_are_the_golden_ones(like):
    golden = json.loads(GOLDEN.read_text())
    first = golden["tok_class0_sent0"]
    found = ids(ours(like), [golden["text_first3_class0"][0], "fish " * 100, "a photo of a tabby cat."])
    assert found[0] == first[: first.index(49407) + 1] and not any(first[len(found[0]) :])
    assert found[1][-3:] == golden["tok_long_tail"] and len(found[1]) == 77
    assert found[2] == [49406, 320, 1125, 539, 320, 36145, 2368, 269, 49407]


@needs_vocabulary
def test_vocabulary_is_bytes_merges_marks():
    vocabulary = ours().get_vocab()
    by_id = sorted(vocabulary, key=vocabulary.get)
    assert sorted(vocabulary.values()) == list(range(49408))
    assert by_id[0] == "!" and by_id[256] == "!</w>" and by_id[512] == "in" and by_id[49405] == "jekyll</w>"
    assert by_id[-2:] == [BEGIN, END] and vocabulary == ours("transformers").get_vocab()
    assert (ours().bos_token_id, ours().eos_token_id, ours().pad_token_id) == (49406, 49407, 49407)
    assert ours().model_max_length == 77
    if HAS_OPEN_CLIP:
        assert by_id[:-2] == list(original().encoder)[:-2]


def test_the_strings_are_those_that_were_counted():
    everything = [text for texts in strings().values() for text in texts]
    assert len(everything) == 10_000
    assert hashlib.sha256("\x00".join(everything).encode()).hexdigest() == STRINGS_SHA256


@needs_open_clip
def test_differences_from_the_original_are_the_known_ones():
    counts, wanted = {}, {}
    for name, texts in strings().items():
        right = original_ids(texts)
        cleaned = [clean_text(text) for text in texts]
        rows = ids(ours("transformers"), texts), ids(ours(), texts), ids(ours(), cleaned)
        counts[name] = tuple(len(differing(texts, found, right)) for found in rows)
        wanted[name] = CATEGORIES[name][2]
    assert counts == wanted


def test_documented_table_is_the_counted_one():
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", module.__doc__, flags=re.MULTILINE)
    documented = {name: tuple(map(int, counts)) for name, *counts in rows}
    assert documented == {name: (n, *counts) for name, (n, _, counts) in CATEGORIES.items() if any(counts)}


@needs_open_clip
def test_every_single_character_of_the_basic_plane():
    texts = [f"a{character}B" for character in characters("\x00\u2fff", "\u3000\u33ff", "\uf900\uffff")]
    assert len(texts) > 10_000
    assert differing(texts, ids(ours(), texts), original_ids(texts)) == []


@needs_open_clip
def test_special_tokens_differ_only_by_their_names():
    """And by punctuation before them, which the original runs together with their first character."""
    names = {"<start_of_text>": f" {BEGIN} ", "<end_of_text>": f" {END} "}
    texts = [
        text.replace(BEGIN, f" {BEGIN} ").replace(END, f" {END} ") for text in strings()["special tokens in the text"]
    ]
    hub = [re.sub("|".join(names), lambda found: names[found[0].lower()], text, flags=re.IGNORECASE) for text in texts]
    theirs = [text.replace(BEGIN, "<start_of_text>").replace(END, "<end_of_text>") for text in hub]
    assert ids(ours(), hub) == original_ids(theirs)


@needs_open_clip
def test_entities_and_mojibake_are_the_only_reasons_to_clean():
    """Strings without &, repairable bytes or special tokens need no `clean_text`."""
    for name, texts in strings().items():
        if name not in {"mojibake", "special tokens in the text"}:
            plain = [text for text in texts if "&" not in text]
            assert differing(plain, ids(ours(), plain), original_ids(plain)) == []


# ---- saved and loaded


@needs_vocabulary
@pytest.mark.parametrize("like", ["open_clip", "transformers"])
def test_saved_and_loaded_gives_the_same_ids(like, tmp_path):
    tokenizer = clip_tokenizer(None if HAS_OPEN_CLIP else FILE, like=like)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(tmp_path / "processor")
    document = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    assert document["truncation"] is None and document["padding"] is None
    texts = [text for category in strings().values() for text in category[:20]]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    processed = AutoTokenizer.from_pretrained(tmp_path / "processor")
    assert ids(loaded, texts) == ids(processed, texts) == ids(tokenizer, texts)
    assert type(loaded) is type(tokenizer) and type(loaded).__module__.startswith("transformers.")
    assert loaded.model_max_length == 77 and loaded.pad_token_id == 49407
    assert set(loaded("a")) == {"input_ids", "attention_mask"}


@needs_vocabulary
def test_a_new_tokenizer_neither_pads_nor_truncates():
    ours()("a", padding="max_length", truncation=True)
    fresh = clip_tokenizer(None if HAS_OPEN_CLIP else FILE)
    assert [len(row) for row in fresh(["a", "fish " * 100])["input_ids"]] == [3, 102]


@needs_vocabulary
def test_decoding_reads_like_the_plain_tokenizer():
    for text in ("a photo, of DON'T", "", "naïve 😀"):
        row = ours()(text)["input_ids"]
        for skip in (True, False):
            assert ours().decode(row, skip_special_tokens=skip) == ours("transformers").decode(
                row, skip_special_tokens=skip
            )
    assert ours().decode(ours()("A  Tabby cat")["input_ids"], skip_special_tokens=True) == "a tabby cat"


# ---- sources


@needs_vocabulary
def test_every_source_gives_the_same_tokenizer(tmp_path):
    raw = unpacked()
    lines = raw.decode().split("\n")[:48895]
    for folder in ("file", "folder", "merges"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file" / "bpe.txt").write_bytes(raw)
    ours("transformers").save_pretrained(tmp_path / "folder")
    (tmp_path / "merges" / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:], ""]), encoding="utf-8")
    (tmp_path / "merges" / "vocab.json").write_text(json.dumps(ours().get_vocab()))
    document = json.loads((tmp_path / "folder" / "tokenizer.json").read_text())
    document["model"]["merges"] = lines[1:]
    (tmp_path / "file" / "strings.json").write_text(json.dumps(document))
    wanted = ours().backend_tokenizer.to_str()
    for source in ("file/bpe.txt", "file/strings.json", "folder", "folder/tokenizer.json", "merges"):
        found = clip_tokenizer(str(tmp_path / source)).backend_tokenizer
        found.no_truncation()
        assert json.loads(found.to_str())["model"] == json.loads(wanted)["model"], source
    plain = CLIPTokenizer.from_pretrained(tmp_path / "merges")
    assert ids(plain, strings()["emoji"]) == ids(ours("transformers"), strings()["emoji"])


@needs_vocabulary
@pytest.mark.parametrize("damage", ["cut", "bit", "swapped", "headless", "short", "latin"])
def test_a_damaged_file_is_refused_by_name(damage, tmp_path):
    text = unpacked().decode()
    lines = text.split("\n")
    data = gzip.compress(text.encode(), compresslevel=1)
    lines[7], lines[8] = lines[8], lines[7]
    damaged = {
        "cut": data[: len(data) // 2],
        "bit": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "swapped": "\n".join(lines).encode(),
        "headless": text.partition("\n")[2].encode(),
        "short": "\n".join(text.split("\n")[:40_000]).encode(),
        "latin": text.encode("utf-16"),
    }[damage]
    (tmp_path / VOCABULARY_FILE).write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{re.escape(VOCABULARY_FILE)} does not hold CLIP's vocabulary") as caught:
        clip_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}'),
        ("tokenizer.json", '{"model": {"merges": [["a", "b"], 3]}}'),
        ("tokenizer.json", '{"model": []}'),
        ("tokenizer.json", "{"),
        ("merges.txt", "#version: 0.2\ni n\nt h\n"),
        ("merges.txt", ""),
    ],
)
def test_another_vocabulary_is_refused_by_name(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} does not hold CLIP's vocabulary"):
        clip_tokenizer(str(tmp_path))


def test_missing_sources_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds neither tokenizer"):
        clip_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="no file, folder or Hub id"):
        clip_tokenizer(str(tmp_path / "missing.gz"))
    with pytest.raises(UserError, match="no file, folder or Hub id"):
        clip_tokenizer("nobody/nothing")
    with pytest.raises(UserError, match="open_clip and transformers"):
        clip_tokenizer(like="clip")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"hf_vlr\[convert\]"):
        clip_tokenizer()
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match="pip install ftfy"):
        clean_text("a")


@needs_open_clip
def test_the_installed_vocabulary_is_read_without_importing_open_clip(monkeypatch):
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    clip_tokenizer()
    assert "open_clip" not in sys.modules
