"""`hf-vlr data texts`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_vlr.cli.grammar import overrides, settings
from hf_vlr.cli.output import is_main_process, say, say_table
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    from hf_vlr.data.corpus import ClassTextCorpus
    from hf_vlr.data.source import ImageSource
    from hf_vlr.data.texts.page import LookUp
    from hf_vlr.data.texts.wikipedia import Collection

API_OPTIONS = ("contact", "api", "language", "interval")


@click.command()
@click.argument("spec", metavar="SOURCE")
@settings
@click.option("--out", metavar="FILE", help="Write the sentences to FILE.jsonl, for data.texts=FILE.jsonl.")
@click.option("--collect", metavar="wikipedia[:DUMP_DIR]", help="Collect them from Wikipedia, or from a dump of it.")
@click.option("--contact", metavar="MAIL", help="Your mail address or page, which the API's operators ask for.")
@click.option("--language", metavar="CODE", help="The Wikipedia to ask; en by default.")
@click.option("--api", metavar="URL", help="Another wiki's api.php.")
@click.option("--interval", type=click.FloatRange(0), metavar="SECONDS", help="Least time between requests; 1.")
@click.option("--labels", metavar="FILE", help="WordNet ids of the classes, whose lemmas are titles too.")
def command(
    spec: str,
    words: tuple[str, ...],
    out: str | None,
    collect: str | None,
    labels: str | None,
    **api: str | float | None,
) -> None:
    """Show which sentences data.texts gives each class of SOURCE, and how well they cover its tail.

    data.texts joins parts by +: a JSONL, CSV or folder of .txt, captions, templates, clip-templates (CLIP's 80),
    wiki:DIR (VL-LTR's wiki/desc_0.txt …, cleaned), wiki-original:DIR (as VL-LTR reads them), wordnet:LABELS (lines
    `WNID NAME`), llm:FILE (JSON, by name or class number) and taxonomy:FILE (iNaturalist's categories.json).

    \b
    hf-vlr data texts imagefolder:photos data.texts=wordnet:labels.txt+clip-templates --out texts.jsonl
    hf-vlr data texts imagefolder:photos --collect wikipedia:dump/20231101.en --out wiki.jsonl
    hf-vlr data texts imagefolder:photos --collect wikipedia --contact me@example.org --out wiki.jsonl

    --collect looks a page up for each class. From the API that takes a second a class; answers are kept in FILE.cache,
    so that the same command goes on where it was stopped. The API part has been tested against a local server only,
    never against Wikipedia: check its first pages.
    """
    from hf_vlr.data.corpus import ClassTextCorpus, build_corpus
    from hf_vlr.data.shots import shot_groups
    from hf_vlr.training.options import Recipe
    from hf_vlr.training.recipe import override_recipe
    from hf_vlr.training.run_data import load_split

    _check_options(out, collect, labels, api)
    recipe = override_recipe(Recipe(task="recognition"), overrides(words, spec))
    train = load_split(recipe, "train")
    if collect:
        collection = _collected(train.class_names, collect, labels, f"{out}.cache", api)
        _say_collection(collection, train.class_names)
        corpus = ClassTextCorpus(collection.rows, train.num_classes)
    else:
        corpus = build_corpus(recipe.data.texts, train)
    counts = train.class_counts()
    groups = {f"{name} ({recipe.eval.rule})": mask for name, mask in shot_groups(counts, recipe.eval.rule).items()}
    _say_coverage(corpus, train, groups)
    if out and is_main_process():
        Path(out).expanduser().parent.mkdir(parents=True, exist_ok=True)
        corpus.save(Path(out).expanduser())
        say()
        say(f"written to {out}; train on it with data.texts={out}")


def _check_options(
    out: str | None, collect: str | None, labels: str | None, api: dict[str, str | float | None]
) -> None:
    kind, colon, place = (collect or "").partition(":")
    online = bool(collect) and not colon
    if collect is not None and (kind != "wikipedia" or (colon and not place)):
        raise UserError(f"--collect {collect} is unknown; it takes wikipedia or wikipedia:DUMP_DIR")
    if collect and not out:
        raise UserError("--collect needs --out FILE.jsonl, where the sentences go")
    if labels and not collect:
        raise UserError("--labels goes with --collect; for glosses write data.texts=wordnet:FILE")
    if online and not api["contact"]:
        raise UserError("--collect wikipedia needs --contact MAIL: Wikipedia's operators ask who is calling")
    if api["language"] and api["api"]:
        raise UserError("--language and --api exclude each other; the wiki of --api has its own language")
    unused = [name for name in API_OPTIONS if api[name] is not None and not online]
    if unused:
        raise UserError(f"--{unused[0]} goes with --collect wikipedia only")
    if out and Path(out).suffix.lower() != ".jsonl":
        raise UserError(f"--out {out} must end in .jsonl, or data.texts could not read it")
    if out and Path(out).expanduser().exists():
        raise UserError(f"{out}: exists already; remove it or choose another --out")


def _collected(
    class_names: list[str], collect: str, labels: str | None, cache: str, api: dict[str, str | float | None]
) -> "Collection":
    from tqdm import tqdm

    from hf_vlr.data.texts.wikipedia import candidate_titles
    from hf_vlr.data.texts.wikipedia import collect as collect_pages

    titles = candidate_titles(class_names, labels)
    look_up = _look_up(titles, collect.partition(":")[2], cache, api)
    return collect_pages(tqdm(titles, desc="pages", unit="class", disable=None), look_up)


def _look_up(titles: list[list[str]], dump: str, cache: str, api: dict[str, str | float | None]) -> "LookUp":
    if dump:
        from hf_vlr.data.texts.wikipedia_dump import WikipediaDump

        return WikipediaDump(dump, (title for own in titles for title in own)).page
    from hf_vlr.data.texts.mediawiki import MediaWiki
    from hf_vlr.data.texts.wikipedia import wikipedia_endpoint

    endpoint = api["api"] or wikipedia_endpoint(api["language"] or "en")
    interval = 1.0 if api["interval"] is None else api["interval"]
    return MediaWiki(endpoint, api["contact"], Path(cache).expanduser(), interval=interval).page


def _say_collection(collection: "Collection", class_names: Sequence[str]) -> None:
    from hf_vlr.data.texts.names import shown

    reasons = {
        "no title of its own": collection.unnamed,
        "no page": collection.missing,
        "disambiguation page only": collection.disambiguation,
        "page shared by classes": collection.shared,
        "page without sentences": collection.empty,
    }
    rows = [("classes with a page", str(len(collection.pages)), "")]
    rows += [(why, str(len(at)), shown([class_names[i] for i in at])) for why, at in reasons.items() if at]
    say_table(rows)
    say()


def _say_coverage(corpus: "ClassTextCorpus", train: "ImageSource", groups: dict) -> None:
    from hf_vlr.data.texts.coverage import by_group, by_source, least_covered

    sources = by_source(corpus)
    rows = [(source or "not stated", str(times), license or "not stated") for source, license, times in sources[:20]]
    say_table([("source", "sentences", "license"), *rows])
    if len(sources) > 20:
        say(f"and {len(sources) - 20} more sources")
    say()
    groups_table = [
        (row.group, str(row.classes), str(row.without_text), f"{row.mean_sentences:.1f}")
        for row in by_group(corpus, groups)
    ]
    say_table([("classes", "number", "without text", "mean sentences"), *groups_table])
    say()
    counts, coverage = train.class_counts(), corpus.coverage()
    least = [
        (str(label), str(coverage[label]), str(counts[label]), train.class_names[label])
        for label in least_covered(corpus)
    ]
    say_table([("least covered", "sentences", "images", "name"), *least])
