"""`hf-vlr data stats`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hf_vlr.cli.grammar import overrides, settings
from hf_vlr.cli.output import say, say_table
from hf_vlr.errors import UserError

if TYPE_CHECKING:
    from hf_vlr.data.source import ImageSource
    from hf_vlr.training.options import Recipe


@click.command()
@click.argument("spec", metavar="SOURCE")
@settings
@click.option("--plot", metavar="FILE.png", help="Draw the training images per class.")
def command(spec: str, words: tuple[str, ...], plot: str | None) -> None:
    """Count the splits, classes, shot groups and class texts of SOURCE, as training would see them.

    \b
    hf-vlr data stats imagefolder:photos data.texts=texts.jsonl
    hf-vlr data stats data/imagenet-lt --plot imagenet-lt.png
    hf-vlr data stats shapes-lt data.options.classes=108
    hf-vlr data stats data/imagenet-lt data.mix=[data/places-lt,pairs:ORG/CAPTIONS]
    """
    from hf_vlr.training.options import Recipe
    from hf_vlr.training.recipe import override_recipe

    recipe = override_recipe(Recipe(task="recognition"), overrides(words, spec))
    from hf_vlr.data.corpus import build_corpus
    from hf_vlr.training.run_data import load_split

    train = load_split(recipe, "train")
    corpus = build_corpus(recipe.data.texts, train)
    bare = (corpus.coverage() == 0).sum()
    texts = f"{len(corpus)} sentences; {bare} classes have none"
    spoken = f"{_words([*corpus.texts, *train.captions])} words"
    say_table([*_count(recipe, train), ("class texts", texts), ("vocabulary", spoken)])
    counts = train.class_counts()
    for label in counts.argsort()[::-1][:3].tolist():
        sentence = (corpus.of(label) or ["no text"])[0]
        say(f"  {train.class_names[label]} ({counts[label]}): {sentence}")
    if recipe.data.mix:
        say()
        say_table(_mixture(recipe, train))
    if plot:
        from hf_vlr.data.frequency_plot import plot_frequencies

        say(f"written to {plot_frequencies(counts, plot, Path(spec).name, recipe.eval.rule)}")


def _count(recipe: "Recipe", train: "ImageSource") -> list[tuple[str, str]]:
    from hf_vlr.data.shots import shot_groups
    from hf_vlr.training.run_data import load_split

    counts = train.class_counts()
    rows = [("split train", f"{len(train)} images, {(train.labels < 0).sum()} of them without a class")]
    for split in ("validation", "test"):
        try:
            rows.append((f"split {split}", f"{len(load_split(recipe, split))} images"))
        except UserError as missing:
            rows.append((f"split {split}", f"none ({missing})"))
    sizes = f" of {counts.max()} … {counts.min()} training images" if len(counts) else ""
    rows.append(("classes", f"{train.num_classes}{sizes}"))
    if len(counts) and counts.min() > 0:
        rows.append(("imbalance factor", f"{counts.max() / counts.min():.4g}"))
    groups = shot_groups(counts, recipe.eval.rule).items()
    rows.append((f"groups ({recipe.eval.rule})", ", ".join(f"{mask.sum()} {name}" for name, mask in groups)))
    return rows


def _mixture(recipe: "Recipe", train: "ImageSource") -> list[tuple[str, ...]]:
    """Each source of a mixture and the whole: images, concepts, words of names and captions, images per concept."""
    from hf_vlr.data.mixture import mix
    from hf_vlr.training.run_data import mixed_sources

    others = mixed_sources(recipe)
    rows = [("source", "images", "pairs", "concepts", "vocabulary", "images per concept")]
    for name, source in zip(("all", recipe.data.source, *recipe.data.mix), (mix(train, others), train, *others)):
        counts = source.class_counts()
        spread = f"{counts.mean():.1f} ({counts.min()} … {counts.max()})" if len(counts) else "-"
        spoken = _words([*source.class_names, *source.captions])
        pairs = (source.labels < 0).sum()
        rows.append((name, f"{len(source):,}", f"{pairs:,}", f"{len(counts):,}", f"{spoken:,}", spread))
    return [rows[0], *rows[2:], rows[1]]


def _words(texts: "list[str | None]") -> int:
    """Different words, whatever their case."""
    return len({word for text in texts if text for word in text.lower().replace("_", " ").split()})
