"""How a model was trained, on what, and for how long, in Markdown."""

from collections.abc import Iterator
from typing import Any

from hf_vlr.hub.markdown import blocks, cell, code, plural, table
from hf_vlr.hub.plots import CURVE, WORDS
from hf_vlr.hub.run_facts import RECIPE_FILE, RunFacts
from hf_vlr.training.keys import leaves
from hf_vlr.training.options import Recipe

# shown whether or not they are at their defaults
ALWAYS = (
    "optim.lr", "optim.weight_decay", "train.batch_size", "train.steps", "train.epochs", "train.mixed_precision",
    "data.sampler", "data.augment", "seed",
)  # fmt: skip
# they change nothing that is computed, or stand elsewhere on the card
LEFT_OUT = (
    "output", "task", "data.workers", "data.cache_dir", "train.log_every", "train.save_every", "train.keep",
    "train.validate_every", "train.trackers", "train.push_to_hub", "train.hub_private",
)  # fmt: skip


def training(facts: RunFacts, repo_id: str, files: list[str]) -> str:
    """The command, what the recipe changes, hardware and time, the loss."""
    if facts.recipe is None:
        return "No recipe lies with the weights: how they were trained is not recorded here."
    picture = f"![{WORDS[CURVE]}]({CURVE})" if CURVE in files else ""
    return blocks(_command(facts, repo_id), _settings(facts), _cost(facts), picture)


def _command(facts: RunFacts, repo_id: str) -> str:
    lines = [f"hf download {repo_id} {RECIPE_FILE} --local-dir .", f"hf-vlr train {RECIPE_FILE} --out runs/again"]
    shown = "\n".join(["```bash", *lines, "```"])
    notes = []
    if facts.setting("model.init"):
        notes.append(
            f"It begins from {code(facts.setting('model.init'))}: give that folder or Hub id as `model.init=`; it is "
            "not part of this repository."
        )
    if facts.dataset_id is None and facts.data_name != "shapes-lt":
        notes.append(f"Its data, {code(facts.data_name)}, are not part of it either: say where they are with `--data`.")
    return blocks(shown, " ".join(["Folders in the recipe are cut to their names.", *notes]) if notes else "")


def _settings(facts: RunFacts) -> str:
    rows = [(code(key), code(spelt(value))) for key, value in changed(facts)]
    if facts.setting("train.steps"):
        rows = [row for row in rows if row[0] != "`train.epochs`"]
    note = f"What differs from the defaults, and the usual settings; all are in [{RECIPE_FILE}]({RECIPE_FILE})."
    return blocks(note, table(["setting", "value"], rows))


def changed(facts: RunFacts) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what a recipe changes, and of `ALWAYS`."""
    defaults = Recipe(task="")
    for key, _ in leaves(Recipe):
        default: Any = defaults
        for name in key.split("."):
            default = getattr(default, name)
        value = facts.setting(key)
        shown = value != default and not key.startswith("eval.") and key not in LEFT_OUT
        if shown or (key in ALWAYS and value is not None):
            yield key, value


def spelt(value: Any) -> str:
    """A value as a recipe has it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return ", ".join(f"{key}={spelt(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(spelt, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cost(facts: RunFacts) -> str:
    training, device = facts.training, facts.protocol.get("device")
    steps, seconds = training.get("steps"), training.get("seconds")
    found = [plural(steps, "step")] if steps else []
    found += [f"{'in ' if steps else ''}{duration(seconds)}"] if seconds else []
    found += [f"on {cell(device)}"] if device else []
    memory, loss = facts.last_line.get("peak_memory_mib"), training.get("loss", facts.last_line.get("loss"))
    more = [f"at most {memory:,} MiB of memory"] if memory else []
    more += [f"last loss {loss:.3f}"] if loss is not None else []
    said = ", ".join([" ".join(found), *more] if found else more)
    if not said:
        return "Hardware and time: not recorded."
    return f"Hardware and time: {said}. Encoding, choosing and measuring come on top."


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
