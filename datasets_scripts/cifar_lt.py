"""CIFAR-10-LT and CIFAR-100-LT: the subsets that the literature trains on, cut from the original archives."""

from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
from huggingface_hub import DatasetCardData

from hf_vlr.data.cifar_files import read_cifar
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.data.longtail import published_cifar_subset
from hf_vlr.data.manifest import Entry, Manifest

# training images of type exp, as published, by data set and imbalance factor
TOTALS = {
    "cifar10": {10: 20_431, 50: 13_996, 100: 12_406},
    "cifar100": {10: 19_573, 50: 12_608, 100: 10_847, 200: 9_502},
}
TEST_IMAGES = 10_000


def manifest(
    source_dir: str | Path, *, variant: str = "cifar100", imbalance_factor: float = 100, type: str = "exp"
) -> Manifest:
    """CIFAR with a training set of `imbalance_factor`, bit for bit the subset of the LDAM-DRW code; the test set whole.

    source_dir: the original archive (python or binary form), its folder, or a folder that holds either.
    variant: `cifar10` or `cifar100`. type: `exp`, n_i = n_max · factor^(-i/(C-1)), or `step`. There is no published
    validation split. Raises `UserError` for files that are not CIFAR's.
    """
    cifar = read_cifar(source_dir, variant)
    kept = published_cifar_subset(cifar.train_labels, imbalance_factor, type)
    names = [name.replace("_", " ") for name in cifar.class_names]
    splits = {
        "train": entries("train", cifar.train_images, cifar.train_labels, kept),
        "test": entries("test", cifar.test_images, cifar.test_labels, np.arange(len(cifar.test_labels))),
    }
    expected = {"test": TEST_IMAGES}
    if type == "exp" and imbalance_factor in TOTALS[variant]:
        expected["train"] = TOTALS[variant][imbalance_factor]
    title = f"CIFAR-{len(names)}-LT"
    about = Template(files("hf_vlr.datasets_scripts").joinpath("cifar_lt.md").read_text(encoding="utf-8"))
    remarks = "".join(f"\n- {remark}" for remark in cifar.remarks)
    return Manifest(
        name=f"{title} (imbalance factor {imbalance_factor:g}, {type})",
        class_names=names,
        marks=[str(index) for index in range(len(names))],
        splits=splits,
        card=DatasetCardData(
            pretty_name=title,
            language=["en"],
            task_categories=["image-classification", "zero-shot-image-classification"],
            tags=["long-tailed"],
        ),
        about=about.substitute(
            title=title, classes=len(names), factor=f"{imbalance_factor:g}", type=type, origin=cifar.origin + remarks
        ),
        texts=list(ClassTextCorpus.from_templates(names).rows()),
        expected=expected,
    )


def entries(split: str, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> list[Entry]:
    """The rows of one split, each named by its number in the original files."""
    return [Entry(images[row], int(labels[row]), "", f"{split}/{row:05d}.png") for row in rows.tolist()]
