"""VL-LTR's checkpoints: stage 1 (CVLP) and stage 2 (LGR), over a ViT or CLIP's modified ResNet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_vlr.convert.archive import read_archive
from hf_vlr.convert.class_files import read_counts, read_labels
from hf_vlr.convert.clip_keys import projection_rules, resnet_rules, text_rules, vit_rules
from hf_vlr.convert.keymap import KeyMap, Rule, move, prefixed
from hf_vlr.convert.openai_clip import (
    projection_dim,
    text_settings,
    vision_settings,
    with_scalar_temperature,
    without_parallel,
)
from hf_vlr.convert.plan import RECOGNISER_OPTIONS, ImagePreset, Options, Plan, as_flag
from hf_vlr.data.corpus import ClassTextCorpus
from hf_vlr.errors import UserError
from hf_vlr.modeling import VLLTRConfig, VLLTRForImageClassification, VLLTRModel

# four digits, as its transforms have them
MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
# α of its published results: 0.7 on iNaturalist 2018, 0.2 on ImageNet-LT and Places-LT
FUSION_WEIGHT, FUSION_WEIGHT_INATURALIST = 0.2, 0.7
INATURALIST_CLASSES = 8142
ANCHORS = "text_embeddings"
# what the recogniser keeps and the checkpoint does not
MADE = ("head.anchor_mask", "head.class_counts", "head.sentence_bytes", "head.sentence_offsets")


def plan_vl_ltr(state: Mapping[str, Tensor], arguments: Mapping[str, Any], options: Options) -> Plan:
    """What becomes of a stage-1 or stage-2 state dict.

    `arguments` are what the checkpoint says about its training (`model`, `data_set`); they may be empty. Raises
    `UserError` for a state dict that is neither stage.
    """
    state = plain_names(state)
    if ANCHORS in state:
        return plan_recogniser(state, arguments, options)
    if "token_embedding.weight" not in state or "visual.conv1.weight" not in state:
        raise UserError("this is no VL-LTR checkpoint: it has neither text_embeddings nor both towers of CLIP")
    useless = [as_flag(option) for option in RECOGNISER_OPTIONS if getattr(options, option) is not None]
    if useless:
        raise UserError(f"{useless[0]} is for stage 2, and this checkpoint is of stage 1; leave it out")
    vision = vision_settings(state, options)
    config = VLLTRConfig(
        vision_config=vision,
        text_config=text_settings(state, options),
        projection_dim=projection_dim(state),
        visual_projection_bias=vision["model_type"] == "clip_resnet",
    )
    return Plan(VLLTRModel, config, state, dual_encoder_keys(config), image_preset(config))


def plan_recogniser(state: Mapping[str, Tensor], arguments: Mapping[str, Any], options: Options) -> Plan:
    """What becomes of a stage-2 state dict, which has no mask and no sentences, and its text tower in stage 1."""
    if state[ANCHORS].ndim != 3 or "text_block.visual_fc.2.weight" not in state:
        raise UserError(f"this is no VL-LTR stage 2: {ANCHORS} must be [C, M, D] beside text_block.visual_fc")
    classes, anchors, width = state[ANCHORS].shape
    if classes < 2 or not anchors:
        raise UserError(f"{ANCHORS} has the shape {tuple(state[ANCHORS].shape)}: a recogniser has two classes or more")
    names, named = [f"class {i}" for i in range(classes)], "class names unknown: class 0, … (--labels FILE names them)"
    if options.labels:
        names, named = read_labels(options.labels, classes)
    weight, reason = fusion_weight(arguments, classes, options)
    detached = options.detach_norm
    if detached is None:
        detached = "v_detach" in str(arguments.get("model", ""))
    mask, origin = anchor_mask(state[ANCHORS], names, options)
    vision = vision_settings(state, options)
    text = read_text_tower(options.stage1, state) if options.stage1 else {}
    config = VLLTRConfig(
        vision_config=vision,
        text_config=text_settings(text, options) if text else None,
        has_text_model=bool(text),
        projection_dim=width,
        visual_projection_bias=vision["model_type"] == "clip_resnet",
        num_anchors=anchors,
        fusion_weight=weight,
        detach_norm=detached,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        anchor_selection={"source": "a VL-LTR checkpoint, which does not keep the sentences", "mask": origin},
    )
    counts = read_counts(options.class_counts, classes, "images per class") if options.class_counts else [0] * classes
    buffers = (
        mask,
        torch.tensor(counts, dtype=torch.int64),
        torch.zeros(0, dtype=torch.uint8),
        torch.zeros(classes * anchors + 1, dtype=torch.int64),
    )
    if not bool(mask.any()):
        origin += "; CHECK THIS: a recogniser without a single anchor knows no language"
    notes = [
        named,
        f"fusion weight {weight:g} of the visual branch ({reason})",
        f"norm gradient {'detached' if detached else 'kept'}",
        f"{int(mask.sum())} of {mask.numel()} anchors are real ({origin}); their sentences are not in the checkpoint",
    ]
    if not text:
        notes.append("no text tower in the checkpoint: free text cannot be read (--stage1 FILE brings one)")
    else:
        notes.append(f"the text tower is that of {Path(options.stage1).name}")
    return Plan(
        VLLTRForImageClassification,
        config,
        {**state, **text},
        recogniser_keys(config),
        image_preset(config),
        dict(zip(MADE, buffers)),
        notes=notes,
    )


def read_text_tower(path: str, stage2: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower of the stage 1 that a stage 2 was trained from.

    Raises `UserError` where there is none, or where its vision tower has other tensors than that of stage 2.
    """
    state = plain_names(read_archive(path).weights())
    tower = {name: tensor for name, tensor in state.items() if not name.startswith("visual.") and name != "logit_scale"}
    seen, wanted = (
        {name: tensor.shape for name, tensor in one.items() if name.startswith("visual.")} for one in (state, stage2)
    )
    if "text_projection" not in tower or seen != wanted:
        raise UserError(f"--stage1 {path} is not the stage 1 of this model: its vision tower is another")
    return tower


def plain_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict without the prefix of data parallelism, and with a temperature that is one number."""
    return with_scalar_temperature(without_parallel(state)[0])


def dual_encoder_keys(config: VLLTRConfig) -> KeyMap:
    """Names of stage 1, beside ours."""
    return KeyMap([*projection_rules(), *text_rules(), *vision_rules(config)])


def recogniser_keys(config: VLLTRConfig) -> KeyMap:
    """Names of stage 2, beside ours."""
    head = [
        move(ANCHORS, "head.anchors"),
        move("text_block.attn.wq.weight", "head.query.weight"),
        move("text_block.attn.wk.weight", "head.key.weight"),
        move("text_block.attn.norm1q.*", "head.norm_query.*"),
        move("text_block.attn.norm1k.*", "head.norm_key.*"),
        move("text_block.visual_fc.*.*", "head.visual.*.*"),
    ]
    encoder = [*projection_rules(), *text_rules(), *vision_rules(config)]
    return KeyMap([*head, *prefixed(encoder, target="vlltr.")])


def vision_rules(config: VLLTRConfig) -> list[Rule]:
    """Rules of the vision tower that a configuration names."""
    return resnet_rules() if config.vision_config.model_type == "clip_resnet" else vit_rules()


def image_preset(config: VLLTRConfig) -> ImagePreset:
    """Its evaluation transform: the shorter side to 256/224 of the crop, bicubic, CLIP's statistics."""
    size = config.vision_config.image_size
    return ImagePreset(size, MEAN, STD, resize=round(size * 256 / 224))


def fusion_weight(arguments: Mapping[str, Any], classes: int, options: Options) -> tuple[float, str]:
    """α and where it is from: the user, or what was published for the dataset that the checkpoint is of."""
    if options.fusion_weight is not None:
        if not 0 <= options.fusion_weight <= 1:
            raise UserError(f"--fusion-weight must lie in [0, 1], not {options.fusion_weight}")
        return options.fusion_weight, "as given"
    dataset = str(arguments.get("data_set", ""))
    inaturalist = "INAT" in dataset.upper() if dataset else classes == INATURALIST_CLASSES
    reason = f"published for {dataset}" if dataset else f"published for {classes} classes"
    return (FUSION_WEIGHT_INATURALIST if inaturalist else FUSION_WEIGHT), reason


def anchor_mask(anchors: Tensor, names: list[str], options: Options) -> tuple[Tensor, str]:
    """Which anchors [C, M] are real: the first ones up to a class's number of sentences, else those not all zero."""
    if options.sentence_counts or options.texts:
        if options.sentence_counts:
            counts = read_counts(options.sentence_counts, len(names), "sentences per class")
        else:
            counts = ClassTextCorpus.from_file(options.texts, names).coverage().tolist()
        mask = torch.arange(anchors.shape[1]) < torch.tensor(counts)[:, None]
        if bool((anchors != 0).any(-1)[~mask].any()):
            raise UserError("a class has more anchors in the checkpoint than it has sentences; check the texts given")
        return mask, "by sentences per class"
    return (anchors != 0).any(dim=-1), "rows that are not all zero"
