"""What all numbers of a large test set cost in time and memory, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_vlr.randomness import numpy_generator

# seconds of the whole document; bytes of the process's peak, the pages of the memory map included, and before it
CHILD = r"""
import json, re, sys, time
import numpy as np
from hf_vlr.evaluation.document import PROTOCOL_FIELDS, metrics_document
from hf_vlr.evaluation.predictions import Predictions

folder, resamples = sys.argv[1], int(sys.argv[2])
stored = np.load(folder + "/known.npz")
scores = np.load(folder + "/scores.npy", mmap_mode="r")
names = tuple(f"class {number}" for number in range(len(stored["train_counts"])))
protocol = dict.fromkeys(PROTOCOL_FIELDS)
predictions = Predictions({"visual": scores}, stored["labels"], stored["train_counts"], names, protocol)

def peak():
    # not getrusage's, which begins with what the process that started this one had
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])

before = peak()
started = time.perf_counter()
entry = metrics_document(predictions, "oltr", resamples)["predictors"]["visual"]
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak": peak(), "before": before, "entry": entry}))
"""
GIB = 2**30


def stored_scores(folder, num_images, num_classes, dtype=np.float32):
    """Random scores that favour the label, and training counts that fall to 2, written a piece at a time."""
    generator = numpy_generator(0, 0, 0, "test scores")
    labels = np.arange(num_images) % num_classes
    counts = np.geomspace(1000, 2, num_classes).astype(np.int64)
    np.savez(folder / "known.npz", labels=labels, train_counts=counts)
    shape = (num_images, num_classes)
    scores = np.lib.format.open_memmap(folder / "scores.npy", mode="w+", dtype=dtype, shape=shape)
    block = generator.standard_normal(size=(512, num_classes), dtype=np.float32)
    for start in range(0, num_images, len(block)):
        rows = np.arange(start, min(start + len(block), num_images))
        scores[rows] = np.roll(block, start, axis=1)[: len(rows)]
        scores[rows, labels[rows]] += 4
    scores.flush()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(
    ("num_images", "num_classes", "seconds"),
    [(50_000, 1000, 10), (24_426, 8142, 20)],
    ids=["50,000 x 1,000", "24,426 x 8,142"],
)
def test_all_numbers_of_a_large_test_set(tmp_path, capsys, num_images, num_classes, seconds):
    stored_scores(tmp_path, num_images, num_classes)
    command = [sys.executable, "-c", CHILD, str(tmp_path), "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "scores.npy").unlink()
    found = json.loads(done.stdout)
    with capsys.disabled():
        peak, grown = found["peak"] / GIB, (found["peak"] - found["before"]) / GIB
        size = f"{num_images:,} x {num_classes:,} float32 ({4 * num_images * num_classes / GIB:.2f} GiB)"
        print(f"\n{size}: {found['seconds']:.2f} s, peak {peak:.2f} GiB, {grown:.2f} GiB of it while measuring")
    entry = found["entry"]
    assert entry["num_images"] == num_images and entry["classes_without_test_images"] == 0
    assert 0.1 < entry["accuracy"] < 0.9 and entry["intervals"]["resamples"] == 2000
    assert found["seconds"] < seconds
    assert found["peak"] < 4 * GIB
    # the pages of the map are the system's to take back; nothing of the scores' size comes on top of them
    assert found["peak"] - found["before"] < 4 * num_images * num_classes + 0.1 * GIB
