"""The forms in which CIFAR-10 and CIFAR-100 are published: file names and check sums."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A published form: its folder and archive, its files, and the md5 sums of those that are known.

    meta: the file of class names, `key` their entry in it (pickles only). label_bytes: bytes before the pixels of a
    record, the last of which is the class (records only).
    """

    folder: str
    archive: str
    archive_md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str = ""
    key: str = ""
    label_bytes: int = 0
    md5: Mapping[str, str] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.meta)


CLASSES = {"cifar10": 10, "cifar100": 100}
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = {
    "cifar10": (
        Layout(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            archive_md5="c58f30108f718f92721af3b95e74349a",
            train=_BATCHES,
            test=("test_batch",),
            meta="batches.meta",
            labels="labels",
            key="label_names",
            md5={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                "test_batch": "40351d587109b95175f43aff81a1287e",
                "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            },
        ),
        Layout(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
            train=tuple(f"{batch}.bin" for batch in _BATCHES),
            test=("test_batch.bin",),
            meta="batches.meta.txt",
            label_bytes=1,
        ),
    ),
    "cifar100": (
        Layout(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
            train=("train",),
            test=("test",),
            meta="meta",
            labels="fine_labels",
            key="fine_label_names",
            md5={
                "train": "16019d7e3df5f24257cddd939b257f8d",
                "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                "meta": "7973b15100ade9c7d40fb424638fde48",
            },
        ),
        Layout(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            archive_md5="03b5dce01913d631647c71ecec9e9cb8",
            train=("train.bin",),
            test=("test.bin",),
            meta="fine_label_names.txt",
            label_bytes=2,
        ),
    ),
}
