"""Timing in turns."""

import time

import numpy as np
import pytest
import torch

from hf_vlr.errors import UserError
from hf_vlr.export.latency import TIMED, UNTIMED, Engine, Latency, Timing, measure, measure_engines


def engine(calls, name, seconds):
    def forward(pixels):
        calls.append(name)
        assert pixels.shape == (1, 3, 8, 8)
        time.sleep(seconds)

    return Engine(forward, lambda picture: np.asarray(picture.resize((8, 8)), np.float32).transpose(2, 0, 1))


def test_engines_take_turns_and_each_begins_once():
    calls: list[str] = []
    names = ("a", "b", "c")
    found = measure_engines({name: engine(calls, name, 0.0) for name in names}, 8, runs=3 * TIMED, warmup=2)
    turn = UNTIMED + TIMED
    round_of = {first: first * turn for first in names}
    order = "aabbcc" + "".join(round_of[name] for name in "abc" + "bca" + "cab")
    assert "".join(calls) == order * 2
    assert (found.runs, found.warmup, found.threads, found.image_size) == (3 * TIMED, 2, 1, 8)


def test_times_and_ratios():
    calls: list[str] = []
    before = torch.get_num_threads()
    found = measure_engines({"slow": engine(calls, "slow", 0.02), "quick": engine(calls, "quick", 0.002)}, 8, runs=5)
    assert torch.get_num_threads() == before
    assert 20 <= found.forward["slow"].best <= found.forward["slow"].median <= found.forward["slow"].p95
    assert 2 <= found.forward["quick"].best < 20
    assert found.whole["slow"].median >= 20
    assert found.ratio("slow") == 1.0
    assert found.ratio("quick") == found.forward["slow"].median / found.forward["quick"].median


def test_the_table_says_how_it_was_measured():
    timings = {"torch": Timing(9.0, 10.0, 12.0), "other": Timing(3.0, 4.0, 5.0)}
    found = Latency(timings, timings, 50, 5, 2, 224, "Some CPU", 2, 0.1, {"torch": "2"})
    rows = found.rows()
    assert [row[0] for row in rows[1:]] == ["from pixels", "  torch", "  other", "from a picture", "  torch", "  other"]
    assert rows[3] == ("  other", "4.00", "5.00", "3.00", "2.50 times as fast")
    for stated in ("50 timed after 5", "2 threads on 2 cores", "Some CPU", "224 x 224", "640 x 480"):
        assert stated in found.conditions()


def test_no_runs_are_refused():
    with pytest.raises(UserError, match="at least one run"):
        measure_engines({}, 8, runs=0)


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["resnet", "clip"])
def test_a_model_is_measured_where_it_lies(tiny, tmp_path, vision):
    tiny.recogniser(vision=vision).save_pretrained(tmp_path / "model")
    tiny.processor().save_pretrained(tmp_path / "model")
    found = measure(str(tmp_path / "model"), runs=2, warmup=1, threads=1)
    assert (
        list(found.forward)
        == list(found.whole)
        == [
            "torch float32, eager",
            "onnxruntime float32",
            "onnxruntime int8",
        ]
    )
    assert all(timing.median > 0 for timing in found.forward.values())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
