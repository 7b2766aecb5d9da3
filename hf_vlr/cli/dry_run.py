"""What `hf-vlr train RECIPE --dry-run` prints."""

from collections.abc import Iterable

from hf_vlr.cli.sheet import Sheet
from hf_vlr.training.dry_run import DryRun, Group
from hf_vlr.training.keys import value_at
from hf_vlr.training.options import Recipe, describe_keys
from hf_vlr.training.recipe import changed_values, spell_value

KIB = 1024


def report(run: DryRun, name: str, full: bool = False) -> Sheet:
    """All that a dry run found out; `full`: every key of the recipe, not only those that differ from the defaults."""
    sheet = Sheet()
    sheet.heading(f"{name}: a dry run, nothing is trained or written")
    values = all_values(run.recipe) if full else changed_values(run.recipe)
    sheet.heading("recipe" if full else "recipe, where it differs from the defaults (--full: every key)")
    sheet.rows([(key, spell_value(value)) for key, value in values])
    sheet.heading("data")
    sheet.rows(data_rows(run))
    sheet.heading("steps")
    sheet.rows(step_rows(run))
    if run.groups:
        sheet.heading("parameters")
        rows = [group_row(group) for group in run.groups]
        sheet.rows(rows, numbers=(1, 2, 3, 4), header=("part", "tensors", "number", "rate", "decay"))
        sheet.text(totals(run.groups), indent=2)
    if run.flops is not None:
        sheet.heading("operations (matrix products, convolutions and attention; a multiply-add is two)")
        sheet.rows(flops_rows(run))
        sheet.heading("memory of a process on its device, an estimate")
        sheet.rows(memory_rows(run), numbers=(1,))
    if run.trial is not None:
        sheet.heading("time of computing, an estimate")
        sheet.rows(time_rows(run))
    if run.unknown:
        sheet.heading("not known, or assumed")
        sheet.rows([("·", line) for line in run.unknown])
    return sheet


def all_values(recipe: Recipe) -> list[tuple[str, object]]:
    """(key, value) of every key."""
    return [(key, value_at(recipe, key)) for key, *_ in describe_keys()]


def data_rows(run: DryRun) -> list[tuple[str, str]]:
    """What is trained on."""
    recipe, data = run.recipe, run.data
    if data is None:
        return [("source", " + ".join([recipe.data.source, *recipe.data.mix])), ("", "could not be opened; see below")]
    counts, pairs = data.train.class_counts(), int((data.train.labels < 0).sum())
    rows = [("source", f"{' + '.join([data.train.name, *recipe.data.mix])}: {len(data.train):,} training images")]
    if len(counts):
        sizes = f"{counts.max():,} … {counts.min():,} images, median {sorted(counts)[len(counts) // 2]:,}"
        rows.append(("classes", f"{len(counts):,} of {sizes}"))
    if pairs:
        rows.append(("pairs", f"{pairs:,} images with a text of their own and no class"))
    if data.corpus is not None and len(data.corpus):
        rows.append(("texts", f"{len(data.corpus):,} sentences of the classes"))
    held_out = [] if data.validation is None else [("chosen on", f"{len(data.validation):,} validation images")]
    measured = ", ".join(f"{source.split} ({len(source):,} images)" for source in data.measured)
    return [*rows, *held_out, ("measured on", measured or "nothing")]


def step_rows(run: DryRun) -> list[tuple[str, str]]:
    """How many steps there are, and of what size."""
    train, steps = run.recipe.train, run.steps
    if steps.total == 0:
        return [("steps", "none: the classifier is computed, not trained")]
    size = f"{train.batch_size:,} images"
    if run.processes > 1 or train.accumulation > 1:
        size += f", {train.batch_size // (run.processes * train.accumulation):,} at a time on each of {run.processes}"
        size += " processes" if run.processes > 1 else " process"
    if train.micro_batch:
        size += f"; the towers see {train.micro_batch:,} at a time"
    rows = [("a step", size)]
    if steps.per_epoch is not None:
        rows.append(("an epoch", f"{steps.per_epoch:,} steps of {steps.rows:,} draws"))
    if steps.total is None:
        return [*rows, ("in total", f"{train.epochs:,} epochs; the steps of one depend on the data")]
    epochs = "" if steps.per_epoch is None else f", {steps.total / steps.per_epoch:.3g} epochs"
    return [*rows, ("in total", f"{steps.total:,} steps{epochs}"), ("warm-up", f"{steps.warmup:,} steps")]


def group_row(group: Group) -> tuple[str, ...]:
    """One line of the table of parameters."""
    numbers = (group.part, f"{group.tensors:,}", f"{group.parameters:,}")
    return (*numbers, "frozen", "") if group.rate is None else (*numbers, f"{group.rate:g}", f"{group.decay:g}")


def totals(groups: Iterable[Group]) -> str:
    """How many parameters are trained, and how many are there."""
    groups = list(groups)
    trained = sum(group.parameters for group in groups if group.rate is not None)
    return f"{trained:,} of {sum(group.parameters for group in groups):,} are trained"


def flops_rows(run: DryRun) -> list[tuple[str, str]]:
    """Operations of a step and of the run."""
    flops, steps, load = run.flops, run.steps, run.load
    rows = []
    if steps.total != 0:
        parts = ", ".join(f"{name} {scaled(value)}" for name, value in flops.parts.items())
        rows.append(("a step", f"{scaled(flops.total)} ({parts})"))
        if load.texts:
            most = f"at most {load.texts * load.parallel:,} different texts of {run.shape.text_length} tokens"
            rows.append(("", f"with {most}"))
    if flops.once:
        rows.append(("before the first", f"{scaled(flops.once)} for what is encoded once"))
    if steps.total:
        rows.append(("the run", scaled(flops.once + steps.total * flops.total)))
    return rows


def memory_rows(run: DryRun) -> list[tuple[str, str, str]]:
    """Bytes by what they hold."""
    memory, load = run.memory, run.load
    of = f"kept for the backward pass of {load.micro:,} images" + (" and their texts" if load.texts else "")
    rows = [
        ("weights", memory.model.weights, "parameters and buffers"),
        ("teacher", memory.teacher, "the frozen copy that is distilled from"),
        ("gradients", memory.model.gradients, ""),
        ("optimiser", memory.model.optimizer, "AdamW's two averages"),
        ("activations", memory.activations, of),
        ("inputs", memory.inputs, "pictures"),
        ("features", memory.features, "and their gradients"),
        ("together", memory.total, "without what the libraries themselves take"),
    ]
    return [(name, size(value), note) for name, value, note in rows if value]


def time_rows(run: DryRun) -> list[tuple[str, str]]:
    """Seconds, and what they are estimated from."""
    trial, steps = run.trial, run.steps
    step, once = run.step_seconds(), run.once_seconds()
    rows = []
    if steps.total != 0:
        rows.append(("a step", duration(step)))
    if run.flops.once:
        rows.append(("before the first", duration(once)))
    if steps.total:
        rows.append(("the run", duration(once + steps.total * step)))
    tried = f"{trial.images} images" + (f" and {trial.texts} texts" if trial.texts else "")
    basis = f"{tried} took {duration(trial.seconds)} ({scaled(trial.rate)} a second) on {trial.device}"
    if steps.total != 0:
        rows.append(("measured", basis))
    if run.towers is not None:
        rows.append(("", f"encoding alone ran at {scaled(run.towers.rate)} a second"))
    left_out = ["reading and augmenting images", "AdamW", "evaluation"]
    left_out += ["exchange between processes"] if run.processes > 1 else []
    left_out += ["choosing anchors again"] if run.recipe.task == "joint" else []
    return [*rows, ("not in it", ", ".join(left_out))]


def scaled(operations: float) -> str:
    """A number of operations in words."""
    for power, name in ((18, "EFLOP"), (15, "PFLOP"), (12, "TFLOP"), (9, "GFLOP"), (6, "MFLOP")):
        if operations >= 10**power:
            return f"{operations / 10**power:.3g} {name}"
    return f"{operations:.3g} FLOP"


def size(count: int) -> str:
    """A number of bytes in words."""
    for power, name in ((3, "GiB"), (2, "MiB")):
        if count >= KIB**power:
            return f"{count / KIB**power:.1f} {name}"
    return f"{count / KIB:.1f} KiB"


def duration(seconds: float) -> str:
    """A time in words."""
    for length, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.2g} s" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"
