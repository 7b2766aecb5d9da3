"""What a reader should doubt: a run that is not finished, not measured, or not the one that was measured."""

from pathlib import Path

from hf_vlr import __version__
from hf_vlr.hub.measurements import METRICS_FILE
from hf_vlr.hub.model_parts import weight_files
from hf_vlr.hub.run_facts import RunFacts
from hf_vlr.training.checkpoints import CHECKPOINTS, last_checkpoint

# files of one moment are written within this many seconds
MOMENT = 60.0
# and those of one run's end within this many, large weights included
ENDING = 3600.0


def doubts(facts: RunFacts) -> list[str]:
    """One sentence for each thing about a model that its card must not hide; none for a clean, measured run.

    Times are those of the files: a copy that does not keep them hides what was changed later.
    """
    return [*_training(facts), *_weights(facts), *_measurement(facts)]


def _training(facts: RunFacts) -> list[str]:
    """What tells that training did not come to its end, or went on after the model was written."""
    found = []
    planned, last = facts.setting("train.steps"), facts.last_line.get("step")
    if planned and last and last < planned:
        found.append(f"Training is not finished: the log ends at step {last:,} of {planned:,}.")
    checkpoint = last_checkpoint(facts.folder / CHECKPOINTS)
    if checkpoint is not None and _time(checkpoint) > _weights_time(facts) + MOMENT:
        found.append(f"Training went on after this model was written: {checkpoint.name} is newer than the weights.")
    if "loss" in facts.last_line and facts.last_line["loss"] is None:
        found.append("The last loss in the log is not a number.")
    return found


def _weights(facts: RunFacts) -> list[str]:
    if _weights_time(facts) > _time(facts.folder / "config.json") + ENDING:
        return ["The weights are much newer than their configuration: they were changed after the run wrote them."]
    return []


def _measurement(facts: RunFacts) -> list[str]:
    if not facts.measurements:
        return ["Nothing has been measured: the folder holds no metrics.json. Expect nothing of this model yet."]
    found = []
    for measurement in facts.measurements:
        file = measurement.file(METRICS_FILE)
        # a run measures before it writes its model
        late = MOMENT if measurement.place.startswith("eval/") else ENDING
        if _weights_time(facts) > _time(facts.folder / file) + late:
            found.append(f"The weights are newer than `{file}`: those numbers may be of other weights.")
    versions = {measurement.protocol.get("versions", {}).get("hf_vlr") for measurement in facts.measurements}
    others = sorted(version for version in versions - {None, __version__})
    if others:
        found.append(f"Measured with hf_vlr {', '.join(others)}, published with hf_vlr {__version__}.")
    return found


def _weights_time(facts: RunFacts) -> float:
    return max(map(_time, weight_files(facts.folder)))


def _time(path: Path) -> float:
    return path.stat().st_mtime
