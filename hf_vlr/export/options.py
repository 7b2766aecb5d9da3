"""What can be chosen about an export."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_vlr.errors import UserError

INT8_KINDS = ("auto", "static", "dynamic")


@dataclass(frozen=True)
class ExportOptions:
    """Settings of `hf_vlr.export.export_model`.

    int8: also write an int8 model. kind: how it is made, see `hf_vlr.export.int8`. images: training images that a
    static one is calibrated on. margin: the fall of accuracy or balanced accuracy (a fraction) beyond which a warning
    says so. reduce_range: weights in 7 bits, for x86 processors without VNNI, whose sums of products would overflow.
    benchmark: time both in full. runs: timed images of each engine. threads: of each engine; None: torch's own number.
    """

    int8: bool = False
    kind: str = "auto"
    images: int = 256
    margin: float = 0.01
    reduce_range: bool = False
    benchmark: bool = False
    runs: int = 50
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in INT8_KINDS:
            raise UserError(f"int8.kind={self.kind} is unknown; there are: {', '.join(INT8_KINDS)}")
        threads = 1 if self.threads is None else self.threads
        for key, value in (("int8.images", self.images), ("latency.runs", self.runs), ("latency.threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{key}={value}: give a whole number from 1")
        if isinstance(self.margin, bool) or not isinstance(self.margin, int | float) or not 0 <= self.margin <= 1:
            raise UserError(f"int8.margin={self.margin}: give a fraction from 0 to 1, as in 0.01 for one point")
        if not isinstance(self.reduce_range, bool):
            raise UserError(f"int8.reduce_range={self.reduce_range}: give true or false")


# as they are written on the command line
KEYS = {
    "int8.kind": "kind",
    "int8.images": "images",
    "int8.margin": "margin",
    "int8.reduce_range": "reduce_range",
    "latency.runs": "runs",
    "latency.threads": "threads",
}


def export_options(words: Mapping[str, Any], **flags: bool) -> ExportOptions:
    """Options from `int8.…=` and `latency.…=` words and the flags `int8` and `benchmark`.

    Raises `UserError` for a key there is not and for a value out of range.
    """
    for key in words:
        if key not in KEYS:
            raise UserError(f"there is no setting {key}; there are: {', '.join(KEYS)}")
    return ExportOptions(**{KEYS[key]: value for key, value in words.items()}, **flags)
