"""Line 11: a contrast over N pairs in two passes over pieces (GradCache) beside the whole batch at once."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from hf_vlr.bench.contest import Answers, Contest, Contestant
from hf_vlr.bench.contests.text_step import comparable
from hf_vlr.bench.goals import Goal
from hf_vlr.bench.setting import Setting
from hf_vlr.modeling import UniCLConfig, UniCLModel
from hf_vlr.timing import Turns
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.step import Step, at_once, in_two_passes

OURS, WHOLE = "hf_vlr in two passes", "the whole batch at once"
CLASSES = 1000


def _task(setting: Setting) -> ContrastiveTask:
    vision_layers = {
        "hidden_size": setting["width"],
        "intermediate_size": 4 * setting["width"],
        "num_hidden_layers": setting["layers"],
        "num_attention_heads": setting["width"] // 64 or 1,
    }
    text_layers = vision_layers | {
        "hidden_size": setting["text_width"],
        "intermediate_size": 4 * setting["text_width"],
        "num_attention_heads": setting["text_width"] // 64 or 1,
        "vocab_size": setting["vocabulary"],
        "max_position_embeddings": setting["tokens"],
    }
    special = {"bos_token_id": 0, "eos_token_id": setting["vocabulary"] - 1, "pad_token_id": 1}
    config = UniCLConfig(
        text_config={"model_type": "clip_text_model", **text_layers, **special},
        vision_config={
            "model_type": "clip_vision_model",
            **vision_layers,
            "image_size": setting["pixels"],
            "patch_size": setting["patch"],
        },
        projection_dim=setting["text_width"],
    )
    torch.manual_seed(setting.seed)
    return ContrastiveTask(UniCLModel(config), ModelOptions(), LossOptions()).to(setting.device).train()


def _batch(setting: Setting, pairs: int) -> Batch:
    """Pictures as bytes, labels of some classes, and texts of a few tokens to as many as there are positions."""
    generator, texts = setting.generator(), min(setting["texts"], pairs)
    end, places = setting["vocabulary"] - 1, torch.arange(setting["tokens"])
    lengths = torch.randint(4, setting["tokens"] + 1, (texts, 1), generator=generator)
    ids = torch.randint(1, end, (texts, setting["tokens"]), generator=generator)
    shape = (pairs, 3, setting["pixels"], setting["pixels"])
    batch = {
        "pixel_values": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "labels": torch.arange(pairs) % CLASSES,
        "input_ids": torch.where(places >= lengths - 1, end, ids),
        "attention_mask": (places < lengths).long(),
        "text_index": torch.arange(pairs) % texts,
        "rows": torch.tensor(pairs),
    }
    return {key: value.to(setting.device) for key, value in batch.items()}


def _scaled(batch: Batch) -> Batch:
    if "pixel_values" not in batch:
        return batch
    return batch | {"pixel_values": batch["pixel_values"].float() / 127.5 - 1}


def _call(task: ContrastiveTask, work: Callable[[Step], dict[str, Tensor]], setting: Setting) -> Callable[[], Answers]:
    on_accelerator = partial(torch.autocast, setting.device.type, torch.bfloat16)
    step = Step(_scaled, Tensor.backward, nullcontext if setting.on_cpu else on_accelerator, torch.manual_seed)

    def call() -> Answers:
        task.zero_grad(set_to_none=True)
        loss = work(step)["loss"].detach()
        gradients = {name: one.grad for name, one in task.named_parameters() if one.grad is not None}
        return {"loss": loss, **comparable(gradients)}

    return call


def _enter(setting: Setting) -> Sequence[Contestant]:
    """Where the whole batch does not fit, the peer takes as many pairs as do, and has no answer to compare."""
    pairs, whole = setting["pairs"], setting["whole"]
    ours, peer, batch = _task(setting), _task(setting), _batch(setting, pairs)
    part = batch if whole == pairs else _batch(setting, whole)
    two_passes = _call(ours, lambda step: in_two_passes(step, ours, batch, 1.0, setting["piece"]), setting)
    at_a_time = _call(peer, lambda step: at_once(step, peer, part, 1.0), setting)
    dtype = "float32" if setting.on_cpu else "bfloat16"
    return [
        Contestant(OURS, two_passes, dtype, ours=True, items=pairs, measures_memory=True),
        Contestant(
            WHOLE, at_a_time if whole == pairs else _unanswered(at_a_time), dtype, items=whole, measures_memory=True
        ),
    ]


def _unanswered(call: Callable[[], Answers]) -> Callable[[], Answers]:
    def quiet() -> Answers:
        call()
        return {}

    return quiet


SMALL = {"layers": 2, "width": 64, "text_width": 64, "pixels": 32, "patch": 8, "tokens": 16, "vocabulary": 1000}
VIT_B = {"layers": 12, "width": 768, "text_width": 512, "pixels": 224, "patch": 16, "tokens": 77, "vocabulary": 49408}

TWO_PASSES = Contest(
    name="two-passes",
    row=11,
    title="contrast of N = {pairs} pairs in pieces of {piece}, beside {whole} at once",
    item="pair",
    sizes={
        "full": {"pairs": 2048, "whole": 2048, "piece": 256, "texts": 1000, **SMALL},
        "gpu": {"pairs": 32768, "whole": 1024, "piece": 1024, "texts": 1000, **VIT_B},
        "quick": {"pairs": 256, "whole": 256, "piece": 64, "texts": 64, **SMALL},
    },
    enter=_enter,
    goals={"cpu": (Goal("speed", 0.7, WHOLE),), "cuda": (Goal("speed", 0.7, WHOLE),)},
    floors={WHOLE: 0.4},
    turns=Turns(runs=15),
    note="forward and backward of a training step; with one more forward, 3/4 is the most that can be reached at equal "
    "efficiency; every gradient is compared where the whole batch fits",
)
