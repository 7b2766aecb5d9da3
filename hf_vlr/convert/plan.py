"""What a converter decides before anything is built: the model, the names, the images it was made for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hf_vlr.convert.keymap import KeyMap
from hf_vlr.modeling import UniCLConfig
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILINEAR, BICUBIC = 2, 3  # PIL's numbers, which a processor's file keeps


@dataclass(frozen=True)
class Options:
    """What the user may say about a checkpoint that its tensors do not.

    image_size: pixels; learned positions are interpolated to it. text_heads, vision_heads: default to width / 64.
    model_type: `unicl` or `vlltr`, where the source fits both. architecture: an open_clip name, for a bare file.
    stage1: the stage-1 checkpoint whose text tower a recogniser gets.
    labels, texts, sentence_counts, class_counts: files about the classes of a recogniser. fusion_weight: α, of the
    visual branch. detach_norm: the norm-gradient variant of a recogniser; None: as the checkpoint's arguments say.
    """

    image_size: int | None = None
    text_heads: int | None = None
    vision_heads: int | None = None
    model_type: str | None = None
    architecture: str | None = None
    stage1: str | None = None
    labels: str | None = None
    texts: str | None = None
    sentence_counts: str | None = None
    class_counts: str | None = None
    fusion_weight: float | None = None
    detach_norm: bool | None = None


# those of VL-LTR's stage 2
RECOGNISER_OPTIONS = ("stage1", "labels", "texts", "sentence_counts", "class_counts", "fusion_weight", "detach_norm")


def as_flag(option: str) -> str:
    """An option as the command line spells it."""
    return f"--{option.replace('_', '-')}"


@dataclass(frozen=True)
class ImagePreset:
    """How images become `pixel_values`: resize (the shorter side, or both where `squash`), crop, normalise."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: int | None = None  # None: to `size`
    squash: bool = False
    resample: int = BICUBIC


@dataclass(frozen=True)
class Plan:
    """A conversion, decided.

    state: the foreign tensors that are to be moved. keys: where they go. made: tensors of ours that the checkpoint has
    no counterpart of, by name. dropped: foreign names that are left out, with the reason. tokenizer: where the
    tokenizer comes from unless the user says otherwise: a Hub id, a folder, or None (CLIP's own, cleaning its texts
    like `cleaning`: `open_clip` or `transformers`).
    """

    model_class: type[UniCLPreTrainedModel]
    config: UniCLConfig
    state: Mapping[str, Tensor]
    keys: KeyMap
    image: ImagePreset
    made: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    notes: Sequence[str] = ()
    cleaning: str = "open_clip"
