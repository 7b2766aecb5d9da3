"""OpenClipart-LT: the drawings of Debian's packages `openclipart-png` and `openclipart-svg`, by subject.

Classes are the first two levels of folders (`animals/birds`); deeper folders are merged into them, and
drawings that lie directly in a first-level folder belong to none. Texts are what the artists wrote into the
SVG files.
"""

import hashlib
import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from string import Template
from typing import Any

from datasets import ClassLabel, Features, Image, Value
from huggingface_hub import DatasetCardData
from PIL import Image as Pillow
from tqdm.auto import tqdm

from hf_vlr.data.corpus import TextRow
from hf_vlr.data.images import DECODING_ERRORS, to_rgb
from hf_vlr.data.kept import KeptResults
from hf_vlr.data.parquet import free_folder, write_dataset
from hf_vlr.data.shots import shot_names
from hf_vlr.errors import UserError

TEXTS_FILE = "texts.jsonl"
SOURCE_DIR = "/usr/share/openclipart"
# The largest drawing has 623 million pixels, which are 2.5 GB when decoded; the next has 169 million.
MAX_PIXELS = 640_000_000
MAX_SVG_BYTES = 2**25
MAX_TEXT = 1000
# Keywords that the package's tools wrote, not the artists.
NO_KEYWORDS = {"", "hash", "unsorted"}


@dataclass
class Report:
    """What happened: rows per class, rows with a text, and what was left out or read in part."""

    counts: Counter[str] = field(default_factory=Counter)
    with_text: int = 0
    broken_svg: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def build(
    source_dir: str | Path = SOURCE_DIR,
    out: str | Path = "openclipart-lt",
    *,
    size: int = 256,
    min_images: int = 8,
    num_proc: int = 2,
    sample: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Path:
    """Make a Parquet dataset of `size`×`size` pictures in `out` and return its path.

    Columns: `image`, `label` (ClassLabel), `class_name`, `shot` (many, medium or few drawings in the class),
    `text` (title, keywords and description, '' if none), `file` (relative path), `group` (equal for copies of
    one drawing). One split, `train`: cut it by `folds=`. The config `texts`, and `texts.jsonl` beside it,
    describe the classes in our own words.

    min_images: classes with fewer drawings are left out. sample: about so many drawings of a few classes, at
    least eight each, for trying things out. max_pixels: larger drawings are left out and listed in the card;
    each process needs four bytes a pixel. A build that was interrupted goes on from the drawings it had read, which
    lie in a hidden folder beside `out` until it is whole. Raises `UserError` if the folder is not there, holds no such
    drawings, or if `out` exists.
    """
    free_folder(out)
    root = Path(source_dir)
    if not (root / "png").is_dir():
        raise UserError(f"{root}: no folder png/ here; install Debian's openclipart-png and openclipart-svg")
    classes = find_classes(root / "png", min_images)
    if sample is not None:
        classes = _sampled(classes, sample)
    if len(classes) < 2:
        raise UserError(f"{root}: fewer than two classes with at least {min_images} drawings; lower min_images")
    names = sorted(classes)
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=names),
            "class_name": Value("string"),
            "shot": Value("string"),
            "text": Value("string"),
            "file": Value("string"),
            "group": Value("int64"),
        }
    )
    report = Report()
    left = Path(out).with_name(f".{Path(out).name}.drawings")
    read = KeptResults(
        partial(read_drawing, root, size=size, max_pixels=max_pixels),
        Drawing,
        json.dumps([str(root.resolve()), size, max_pixels]),
        partial(files_of, root),
        attrgetter("content"),
        left,
    )
    rows = _rows(read, classes, names, num_proc, report)
    card = DatasetCardData(
        pretty_name="OpenClipart-LT",
        license="cc0-1.0",
        language=["en"],
        task_categories=["image-classification", "zero-shot-image-classification"],
        tags=["long-tailed", "clip-art"],
    )
    texts = class_texts(names)
    described = [json.loads(line) for line in texts.splitlines()]
    corpus = [TextRow(names.index(one["class_name"]), one["text"], one["source"], one["license"]) for one in described]
    describe = partial(_card, report, size, min_images)
    written = write_dataset({"train": rows}, features, out, card, describe, corpus)
    (written / TEXTS_FILE).write_text(texts, encoding="utf-8")
    shutil.rmtree(left, ignore_errors=True)
    return written


def files_of(root: Path, file: str) -> list[Path]:
    """The picture and the drawing that `read_drawing` reads."""
    return [root / "png" / file, (root / "svg" / file).with_suffix(".svg")]


def class_texts(names: list[str]) -> str:
    """Our descriptions of these classes, as JSON lines that `data.texts` reads."""
    described = files("hf_vlr.datasets_scripts").joinpath("openclipart_lt_texts.jsonl").read_text(encoding="utf-8")
    return "".join(f"{line}\n" for line in described.splitlines() if json.loads(line)["class_name"] in names)


def find_classes(png: Path, min_images: int) -> dict[str, list[str]]:
    """The drawings of each class, as sorted paths relative to `png`, without classes that are too small."""
    found = defaultdict(list)
    for path in sorted(png.rglob("*.png")):
        parts = path.relative_to(png).parts
        if len(parts) > 2:
            found["/".join(parts[:2])].append("/".join(parts))
    return {name: drawings for name, drawings in found.items() if len(drawings) >= min_images}


def _sampled(classes: dict[str, list[str]], sample: int) -> dict[str, list[str]]:
    """About `sample` drawings: classes evenly spaced by rank, at least eight of each."""
    ranked = sorted(classes, key=lambda name: (-len(classes[name]), name))
    number = max(2, min(len(ranked), sample // 16))
    chosen = [ranked[round(at * (len(ranked) - 1) / (number - 1))] for at in range(min(number, len(ranked)))]
    weight = {name: math.sqrt(len(classes[name])) for name in chosen}
    share = (sample - 8 * len(weight)) / sum(weight.values()) if weight else 0
    taken = {}
    for name in weight:
        drawings = classes[name]
        count = min(len(drawings), 8 + max(0, round(share * weight[name])))
        taken[name] = [drawings[at * len(drawings) // count] for at in range(count)]
    return taken


def _rows(
    read: Callable[[str], "Drawing"],
    classes: dict[str, list[str]],
    names: list[str],
    num_proc: int,
    report: Report,
) -> Iterator[dict[str, Any]]:
    """The dataset's rows, class by class; fills `report` on the way."""
    jobs = [(name, drawing) for name in names for drawing in classes[name]]
    groups: dict[str, int] = {}
    shots = dict(zip(names, shot_names([len(classes[name]) for name in names])))
    pool = ProcessPoolExecutor(num_proc)
    try:
        drawings = pool.map(read, [drawing for _, drawing in jobs], chunksize=4)
        progress = tqdm(zip(jobs, drawings), total=len(jobs), desc="drawings", unit="img")
        for (name, file), drawing in progress:
            if drawing.problem:
                report.skipped.append(f"{file}: {drawing.problem}")
                continue
            report.counts[name] += 1
            report.with_text += bool(drawing.text)
            if drawing.broken_svg:
                report.broken_svg.append(file)
            yield {
                "image": {"bytes": drawing.png, "path": None},
                "label": names.index(name),
                "class_name": name,
                "shot": shots[name],
                "text": drawing.text,
                "file": file,
                "group": groups.setdefault(drawing.content, len(groups)),
            }
    except BrokenProcessPool as error:
        raise UserError("a process ran out of memory; lower num_proc to 1 or max_pixels to 200000000") from error
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Drawing:
    """One drawing as it goes into the dataset, or the `problem` that keeps it out."""

    png: bytes = b""
    text: str = ""
    content: str = ""
    broken_svg: bool = False
    problem: str = ""


def read_drawing(root: Path, file: str, size: int, max_pixels: int = MAX_PIXELS) -> Drawing:
    """Decode, shrink and describe one drawing."""
    source = root / "png" / file
    try:
        encoded = source.read_bytes()
        picture = squared(encoded, size, max_pixels)
    except (*DECODING_ERRORS, MemoryError) as error:
        return Drawing(problem=str(error).splitlines()[0] if str(error) else type(error).__name__)
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    # A blank rendering says nothing about which drawing it is, so equal blanks are no copies of each other.
    blank = all(low == high for low, high in picture.getextrema())
    content = file if blank else hashlib.blake2b(encoded, digest_size=16).hexdigest()
    text, broken = describe_svg((root / "svg" / file).with_suffix(".svg"))
    return Drawing(png=buffer.getvalue(), text=text, content=content, broken_svg=broken)


def squared(encoded: bytes, size: int, max_pixels: int = MAX_PIXELS) -> Pillow.Image:
    """The drawing on white, its longer side `size` (Lanczos), padded square; `ValueError` if too large."""
    limit, Pillow.MAX_IMAGE_PIXELS = Pillow.MAX_IMAGE_PIXELS, None
    try:
        image = Pillow.open(BytesIO(encoded))
    finally:
        Pillow.MAX_IMAGE_PIXELS = limit
    with image:
        if image.width * image.height > max_pixels:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {max_pixels}")
        image.load()
        small = _reduced(image, max(1, max(image.size) // (3 * size)))
    scale = size / max(small.size)
    shape = [max(1, round(side * scale)) for side in small.size]
    square = Pillow.new("RGB", (size, size), "white")
    corner = ((size - shape[0]) // 2, (size - shape[1]) // 2)
    square.paste(small.resize(shape, Pillow.Resampling.LANCZOS), corner)
    return square


def _reduced(image: Pillow.Image, factor: int) -> Pillow.Image:
    """The picture on white, `factor` times smaller, strip by strip: a second full-size copy never exists."""
    if factor == 1:
        return to_rgb(image)
    width, height = (-(-side // factor) for side in image.size)
    small = Pillow.new("RGB", (width, height), "white")
    rows = 64
    for top in range(0, height, rows):
        box = (0, top * factor, image.width, min(image.height, (top + rows) * factor))
        strip = image.crop(box)
        small.paste(to_rgb(strip).reduce(factor), (0, top))
    return small


def describe_svg(path: Path) -> tuple[str, bool]:
    """Title, keywords and description from the drawing's RDF as sentences ('' if none), and whether it was
    broken.

    Keywords stand before the description, which may be long and is what a tokenizer cuts first.
    """
    if not path.is_file():
        return "", False
    if path.stat().st_size > MAX_SVG_BYTES:
        return "", True
    source = path.read_bytes()
    # UTF-16 would hide an entity from the search below
    broken = b"\0" in source
    try:
        # Entities could expand without bound; the few files that declare some are read by pattern instead.
        title, keywords, description = (_by_pattern if broken or b"<!ENTITY" in source else _by_tree)(source)
    except ET.ParseError:
        broken = True
        title, keywords, description = _by_pattern(source)
    words = [word.replace("_", " ").strip() for word in keywords if word.strip().lower() not in NO_KEYWORDS]
    parts = [" ".join(part.split()) for part in (title, ", ".join(dict.fromkeys(words)), description)]
    text = " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts if part)
    return text[:MAX_TEXT], broken


def _by_tree(source: bytes) -> tuple[str, list[str], str]:
    work = next((element for element in ET.fromstring(source).iter() if _local(element) == "Work"), None)
    title, keywords, description = "", [], ""
    for element in () if work is None else work:
        if _local(element) == "title":
            title = title or element.text or ""
        elif _local(element) == "description":
            description = description or element.text or ""
        elif _local(element) == "subject":
            keywords += [item.text or "" for item in element.iter() if _local(item) == "li"]
    return title, keywords, description


def _by_pattern(source: bytes) -> tuple[str, list[str], str]:
    """What can be found without a parser: the first title, keyword bag and description."""
    text = source.decode("utf-8", "replace")

    def first(tag: str) -> str:
        match = re.search(rf"<dc:{tag}[^>]{{0,200}}>([^<]{{0,2000}})</dc:{tag}>", text)
        return match[1] if match else ""

    bag = re.search(r"<dc:subject[^>]{0,200}>(.{0,5000}?)</dc:subject>", text, re.DOTALL)
    keywords = re.findall(r"<rdf:li[^>]{0,200}>([^<]{0,200})</rdf:li>", bag[1]) if bag else []
    return first("title"), keywords, first("description")


def _local(element: ET.Element) -> str:
    return element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""


def _card(report: Report, size: int, min_images: int) -> str:
    text = files("hf_vlr.datasets_scripts").joinpath("openclipart_lt.md").read_text(encoding="utf-8")
    ranked = report.counts.most_common()
    return Template(text).substitute(
        rows=sum(report.counts.values()),
        classes=len(ranked),
        largest=ranked[0][1],
        smallest=ranked[-1][1],
        with_text=report.with_text,
        size=size,
        min_images=min_images,
        broken=len(report.broken_svg),
        skipped="\n".join(f"- `{line}`" for line in report.skipped) or "None.",
        table="\n".join(f"| {name} | {count} |" for name, count in ranked),
    )
