"""What the fast way of reading JPEG files does to accuracy: `pytest -s -m slow tests/test_decoding_accuracy.py`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vlr.data.shapes_lt import DrawnImages, ShapesOptions, shapes_classes
from hf_vlr.evaluate import evaluate_checkpoint
from hf_vlr.evaluation.predictions import read_predictions
from hf_vlr.training.run import train_recipe

CLASSES, PER_CLASS, SIDE = 24, 40, 150


def written(folder: Path) -> Path:
    """The training and test pictures as JPEG files, larger than the model wants them."""
    options = ShapesOptions.from_mapping({"classes": CLASSES, "unseen": 0})
    names, _ = shapes_classes(options)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    for split in ("train", "test"):
        for index, picture in enumerate(DrawnImages(names, labels, split, 0, SIDE, options.noise)):
            place = folder / split / names[labels[index]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(picture)).save(place / f"{index}.jpg", quality=90)
    return folder


@pytest.mark.slow
def test_accuracy_is_the_same_by_either_decoder(tmp_path):
    pictures = written(tmp_path / "pictures")
    changes = [f"data.source=imagefolder:{pictures}", "data.options={}", "train.steps=300", "train.save_every=300"]
    run = train_recipe("shapes-baseline", changes, str(tmp_path / "run"))
    scores = {}
    for decoder in ("auto", "pillow"):
        changed = [f"data.decoder={decoder}", "eval.report=false", "data.cache_dir=off"]
        (document,) = evaluate_checkpoint(str(run), changed, str(tmp_path / decoder))
        found = read_predictions(tmp_path / decoder / "eval" / "test")
        scores[decoder] = found.scores["visual"]
        print(f"{decoder}: {100 * document['predictors']['visual']['accuracy']:.2f} % of {len(found.rows)} pictures")
    assert not np.array_equal(scores["auto"], scores["pillow"])
    changed = int((scores["auto"].argmax(1) != scores["pillow"].argmax(1)).sum())
    print(f"another first class: {changed}")
    assert changed <= 0.01 * CLASSES * PER_CLASS
