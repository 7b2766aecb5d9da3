"""CLIP's tokenizer without a network, with the token ids of the original.

The vocabulary (Radford et al., 2021, section 2.4; bytes as in GPT-2, Radford et al., 2019, section 2.2) follows from
48,894 merges: a symbol for each of the 256 bytes, the same at the end of a word, the merges in order, two marks.

OpenAI's tokenizer cleans a text before it splits it: ftfy's repairs, HTML entities, white space, lower case.
transformers' does NFC and the last two. `clip_tokenizer` also does what looks at single characters or at the commonest
entities, within its tokenizer.json; `clean_text` does everything. Strings whose ids (77 at most) differ from those of
open_clip 3.3 with ftfy 6.3, of 10,000 seeded ones in 24 categories; the other 10 categories have none in any column,
English and class prompts (3,000 strings), emoji and CJK among them:

| category | strings | transformers | clip_tokenizer | the same after clean_text |
|---|---|---|---|---|
| ASCII | 700 | 1 | 1 | 0 |
| contractions | 400 | 74 | 0 | 0 |
| HTML entities | 500 | 481 | 409 | 17 |
| accents, composed | 400 | 251 | 0 | 0 |
| accents, decomposed | 400 | 259 | 0 | 0 |
| curly quotes | 400 | 351 | 0 | 0 |
| Greek and Cyrillic capitals | 300 | 217 | 0 | 0 |
| mojibake | 300 | 300 | 300 | 0 |
| control characters | 300 | 285 | 0 | 0 |
| full and half width | 250 | 250 | 0 | 0 |
| lone combining marks | 250 | 103 | 0 | 0 |
| special tokens in the text | 100 | 75 | 74 | 87 |
| more than 75 tokens | 100 | 82 | 0 | 0 |
| any of Unicode 3.2 | 300 | 14 | 0 | 0 |

What remains, and why:

- HTML entities and mojibake need a table of names and a guess at encodings, which no tokenizer.json holds. ("&#2" among
  random ASCII is an entity, too.) After `clean_text` a curly quote that stood as an entity beside a "<" is still made
  straight, and an accent that stood as an entity joins its letter: the original unescapes those after its repairs.
- Special tokens: `<|startoftext|>` and `<|endoftext|>` in a text become the marks, as in OpenAI's and the Hub's
  tokenizers, in capitals only after `clean_text`; open_clip calls them `<start_of_text>` and `<end_of_text>`. The
  original does not see one that follows punctuation directly.
- Letters newer than Unicode 16 depend on the versions of the tokenizers library, of Python and of its regex package.
"""

import gzip
import hashlib
import html
import importlib.util
import json
import unicodedata
import zlib
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from hf_vlr.errors import UserError

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
NUM_MERGES = 49_152 - 256 - 2
MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
KINDS = ("open_clip", "transformers")
MAX_BYTES = 1 << 24  # five times the largest of the files; a compressed one may not grow beyond

LIGATURES = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
WIDE_AND_NARROW = (0x3000, *range(0xFF01, 0xFFF0))
ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&#39;": "'", "&#x27;": "'", "&nbsp;": " "}
TERMINAL_ESCAPE = r"\x1b\[[0-9;]*[a-zA-Z]"
CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"
# Unicode's condition Final_Sigma, which Python's `lower` heeds and the tokenizers library's does not
FINAL_SIGMA = r"(?<=\p{Cased}\p{Case_Ignorable}*)Σ(?!\p{Case_Ignorable}*\p{Cased})"
# The original's pattern ignores case over all of Unicode: ſ is an s, and U+0345, the mark whose capital is the letter
# iota, is neither a letter nor anything else, so that it falls out.
WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+"


def clip_tokenizer(source: str | None = None, *, like: str = "open_clip") -> PreTrainedTokenizerFast:
    """CLIP's tokenizer: `<|startoftext|>` 49406, at most 75 ids below it, `<|endoftext|>` 49407, which also pads.

    source: OpenAI's `bpe_simple_vocab_16e6.txt`, packed or not; a `merges.txt` or `tokenizer.json`, or a folder
    with one of them; a Hub id with a tokenizer.json; None: the file of an installed open_clip, which is not imported.
    like: whose ids. "open_clip" cleans a text as OpenAI's and open_clip's tokenizers do, as far as the module's table
    says, and is a `PreTrainedTokenizerFast`, since only such a class keeps its own cleaning when it is loaded.
    "transformers" is the plain `CLIPTokenizer`, which UniCL's code uses.

    Neither truncation nor padding is set. Raises `UserError` if the source is missing, damaged or another vocabulary.
    """
    if like not in KINDS:
        raise UserError(f"like={like!r}: the kinds of CLIP tokenizer are {' and '.join(KINDS)}")
    merges = read_merges(vocabulary_path(source))
    vocabulary = vocabulary_of(merges)
    if like == "transformers":
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
    model = BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = cleaning()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace("</w>", " "), decoders.Replace(Regex(" $"), "")]
    )
    end, begin = ((mark, vocabulary[mark]) for mark in (END, BEGIN))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def clean_text(text: str) -> str:
    """`text` as OpenAI's and open_clip's tokenizers clean it before they split it; needs ftfy, else `UserError`.

    ftfy's repairs, HTML entities twice, single spaces, lower case. For texts that may hold mojibake or HTML; any other
    text gets the same ids from `clip_tokenizer` without it.
    """
    try:
        import ftfy
    except ImportError as error:
        raise UserError('clean_text needs ftfy: pip install ftfy, or pip install "hf_vlr[convert]"') from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def cleaning() -> normalizers.Normalizer:
    """The part of the original's cleaning that needs no more context than a regular expression sees.

    In ftfy's order: entities (escaped at most twice), C1 controls read as Windows-1252, ligatures, widths, straight
    quotes, no terminal escapes, no control characters, NFC; then single spaces and lower case.
    """
    rules = [("&amp;", "&"), ("&amp;", "&"), *ENTITIES.items(), *plain_characters().items()]
    return normalizers.Sequence(
        [
            *(normalizers.Replace(found, put) for found, put in rules),
            normalizers.Replace(Regex(TERMINAL_ESCAPE), ""),
            normalizers.Replace(Regex(CONTROL), ""),
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(FINAL_SIGMA), "ς"),
            normalizers.Lowercase(),
        ]
    )


def plain_characters() -> dict[str, str]:
    """Characters and the plainer ones that ftfy writes for them, in the order in which they apply."""
    controls = {chr(code): bytes([code]).decode("cp1252", errors="ignore") for code in range(0x80, 0xA0)}
    ligatures = {
        chr(code): "".join(chr(int(part, 16)) for part in unicodedata.decomposition(chr(code)).split()[1:])
        for code in LIGATURES
    }
    widths = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in WIDE_AND_NARROW}
    quotes = dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
    table = controls | ligatures | widths | quotes
    return {character: plain for character, plain in table.items() if plain not in ("", character)}


def vocabulary_of(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token -> id: a symbol for each byte, the same at the end of a word, the merges, begin and end of text."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(byte) for byte in printable] + [chr(256 + rest) for rest in range(256 - len(printable))]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), BEGIN, END]
    return {token: index for index, token in enumerate(tokens)}


def vocabulary_path(source: str | None) -> Path:
    """The one file that holds the merges; raises `UserError` if there is none."""
    if source is None:
        spec = importlib.util.find_spec("open_clip")
        for folder in (spec and spec.submodule_search_locations) or ():
            if (Path(folder) / VOCABULARY_FILE).is_file():
                return Path(folder) / VOCABULARY_FILE
        raise UserError(f'CLIP\'s vocabulary is not here: pip install "hf_vlr[convert]", or give {VOCABULARY_FILE}')
    path = Path(source).expanduser()
    if path.is_dir():
        for name in ("tokenizer.json", "merges.txt", VOCABULARY_FILE, VOCABULARY_FILE.removesuffix(".gz")):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{source} holds neither tokenizer.json nor merges.txt nor {VOCABULARY_FILE}")
    if path.is_file():
        return path
    try:
        return Path(hf_hub_download(source, "tokenizer.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"no CLIP vocabulary at {source!r}, which is no file, folder or Hub id within reach") from error


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of OpenAI's file (a header, then one a line), of a merges.txt (the same) or of a tokenizer.json."""
    wrong = f"{path} does not hold CLIP's vocabulary (a header and {NUM_MERGES} merges): give {VOCABULARY_FILE}"
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            text = file.read(MAX_BYTES).decode("utf-8")
        lines = json_merges(json.loads(text)) if text.startswith("{") else text.split("\n")[1 : NUM_MERGES + 1]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{wrong} ({error})") from error
    merges = [tuple(line.split()) for line in lines]
    if hashlib.sha256("\n".join(map(" ".join, merges)).encode()).hexdigest() != MERGES_SHA256:
        raise UserError(wrong)
    return merges


def json_merges(document: dict[str, Any]) -> list[str]:
    """The merges of a tokenizer.json, which writes each as a string or as a pair."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
