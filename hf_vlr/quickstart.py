"""The whole story on generated data: what language adds to a long-tailed recogniser, in minutes on a CPU."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor

from hf_vlr.data.batches import Collator
from hf_vlr.data.corpus import ClassTextCorpus, build_corpus
from hf_vlr.data.source import ImageSource
from hf_vlr.errors import UserError
from hf_vlr.evaluation.metrics import evaluate_predictions, write_text
from hf_vlr.evaluation.predictions import PREDICTIONS_FILE
from hf_vlr.evaluation.predictors import class_vectors, image_vectors, project, zero_shot
from hf_vlr.evaluation.table import markdown_table, render_table
from hf_vlr.features import text_states
from hf_vlr.modeling import UniCLModel
from hf_vlr.training.model_builder import build_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import load_recipe
from hf_vlr.training.run import run
from hf_vlr.training.run_data import load_run_data, load_split, transforms

# what a smoke run shrinks; its numbers mean little
SMOKE = {
    "stage1": ["train.steps=60"],
    "stage2": ["train.steps=30"],
    "baseline": ["train.steps=90"],
    "all": ["data.options.classes=24", "data.options.unseen=6", "data.options.max_count=60", "train.save_every=30"],
}


@dataclass(frozen=True)
class Plan:
    """The three recipes of the story, in the order they are trained."""

    baseline: Recipe
    stage1: Recipe
    stage2: Recipe


def quickstart(out: str = "runs/quickstart", smoke: bool = False) -> dict[str, Any]:
    """Train the baseline and both stages on `shapes-lt`, print what each is worth, recognise unseen classes.

    Writes below `out`: the runs `baseline-linear`, `baseline-mlp`, `stage1`, `stage2`, the pictures `examples/`, and
    `quickstart.md`. Returns the rows of the table. Raises `UserError` if `out` is in use.
    """
    root, started = Path(out), time.perf_counter()
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty; remove it, or choose another folder with --out")
    plan = make_plan(root, smoke)
    print(f"shapes-lt: drawn here, {plan.stage1.data.options['classes']} classes, no network\n")
    rows: dict[str, Any] = {"untrained (chance)": untrained(plan.stage1)}
    for recipe, title in (
        (plan.baseline, "visual only, MLP head"),
        (linear(plan.baseline), "visual only, linear head"),
        (plan.stage1, "stage 1, by its texts"),
        (plan.stage2, "stage 2, language-guided"),
    ):
        print(f"== {title} ({recipe.train.steps} steps)")
        rows[title] = last_metrics(run(recipe))
    unseen = recognise_unseen(plan, root)
    table = render_table(rows)
    print(f"== Top-1 accuracy on the balanced test split, %\n{table}\n{unseen}\n")
    examples = show_examples(root, plan)
    minutes = (time.perf_counter() - started) / 60
    closing = (
        f"done in {minutes:.1f} minutes. The model:\n\n"
        "  import hf_vlr\n"
        "  from transformers import AutoModelForImageClassification\n"
        f'  model = AutoModelForImageClassification.from_pretrained("{root / "stage2"}")\n'
        f'  print(model.predict("{examples[0]}"))\n'
    )
    print(closing)
    write_text(root / "quickstart.md", f"{markdown_table(rows)}\n{unseen}\n")
    return rows


def make_plan(root: Path, smoke: bool) -> Plan:
    """The recipes, each with its folder below `root`."""
    small = SMOKE if smoke else {"stage1": [], "stage2": [], "baseline": [], "all": []}

    def recipe(name: str, *words: str) -> Recipe:
        return load_recipe(f"shapes-{name}", [*small["all"], *small[name], *words])

    return Plan(
        recipe("baseline", f"output={root / 'baseline-mlp'}"),
        recipe("stage1", f"output={root / 'stage1'}"),
        recipe("stage2", f"output={root / 'stage2'}", f"model.init={root / 'stage1'}"),
    )


def linear(baseline: Recipe) -> Recipe:
    """The baseline with a linear head."""
    folder = Path(baseline.output).with_name("baseline-linear")
    words = [f"train.steps={baseline.train.steps}", f"output={folder}", "model.visual_head=linear"]
    words += [f"data.options.{key}={value}" for key, value in baseline.data.options.items()]
    return load_recipe("shapes-baseline", words)


def last_metrics(folder: Path) -> dict[str, Any]:
    """The numbers of a run's main predictor, from its predictions."""
    with np.load(folder / PREDICTIONS_FILE, allow_pickle=False) as stored:
        name = next(key for key in ("fused", "visual", "language") if key in stored)
        return evaluate_predictions(stored[name], stored["labels"], stored["train_counts"])


def untrained(recipe: Recipe) -> dict[str, Any]:
    """The encoder before its first step, by the same texts."""
    data, test = load_run_data(recipe), load_split(recipe, "test")
    encoder = build_dual_encoder(recipe, "vlltr", data.corpus.texts)
    scores = by_texts(recipe, encoder.model.eval(), encoder.processor, data.corpus, test)
    return evaluate_predictions(scores, test.labels, data.train.class_counts())


def by_texts(
    recipe: Recipe, model: UniCLModel, processor: Any, corpus: ClassTextCorpus, source: ImageSource
) -> np.ndarray:
    """Log-probabilities [N, C] of a source against the mean of each class's descriptions."""
    tokenize = Collator(processor.tokenizer, recipe.data.max_text_length).tokenize
    features = project(model.text_projection, text_states(model, corpus.texts, tokenize), model.device)
    vectors = class_vectors(features, corpus.labels, corpus.num_classes)
    evaluation, _ = transforms(recipe.data, processor.image_processor)
    images = image_vectors(model, source, evaluation)
    return zero_shot(images, vectors, model.logit_scale.exp().item())["language"]


def recognise_unseen(plan: Plan, root: Path) -> str:
    """Accuracy on attribute combinations that no training image has, told from their descriptions alone."""
    folder, recipe = root / "stage2", plan.stage1
    # the dual encoder inside the recogniser's checkpoint
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    source = load_split(recipe, "unseen")
    described = build_corpus("shapes", source)
    alone = by_texts(recipe, model, processor, described, source)
    correct = (alone.argmax(axis=1) == source.labels).mean()
    train = load_run_data(recipe)
    seen, new = train.train.num_classes, source.num_classes
    rows = [*train.corpus.rows(), *(row._replace(label=row.label + seen) for row in described.rows())]
    together = by_texts(recipe, model, processor, ClassTextCorpus(rows, seen + new), source)
    among_all = (together.argmax(axis=1) == source.labels + seen).mean()
    return (
        f"{new} combinations never seen in training, from their descriptions alone: {100 * correct:.1f} % "
        f"among themselves (chance {100 / new:.1f} %), {100 * among_all:.1f} % among all {seen + new} classes"
    )


def show_examples(root: Path, plan: Plan, count: int = 3) -> list[Path]:
    """Save `count` test images of rare classes, predict them with the saved model, print what it attended to."""
    model = AutoModelForImageClassification.from_pretrained(root / "stage2")
    test = load_split(plan.stage2, "test")
    rarest = np.argsort(model.head.class_counts.numpy(), kind="stable")
    folder = root / "examples"
    folder.mkdir()
    paths = []
    for label in rarest[:: max(1, len(rarest) // count)][:count]:
        row = int((test.labels == label).nonzero()[0][0])
        name = test.class_names[label]
        path = folder / f"{name.replace(' ', '-')}.png"
        test.images[row].save(path)
        paths.append(path)
        found = model.predict(path, top_k=1, num_sentences=2)[0]
        best = found["classes"][0]
        print(
            f"{path}: {found['label']} (fused {best['score']:.2f}, visual {best['visual_score']:.2f}, "
            f"language {best['language_score']:.2f}; {model.head.class_counts[label]} training images)"
        )
        for sentence in best["sentences"]:
            print(f"    {sentence['weight']:.2f}  {sentence['text']}")
    print()
    return paths
