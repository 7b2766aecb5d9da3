"""Steps in pieces: the gradient of the whole batch with the activations of a part of it."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision.transforms import v2
from transformers import BertConfig, CLIPTextConfig, CLIPVisionConfig, ResNetConfig

from hf_vlr.modeling import UniCLConfig, UniCLModel, VLLTRConfig, VLLTRForImageClassification
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.pieces import cut, rows_of_batch
from hf_vlr.training.recognition_task import RecognitionTask
from hf_vlr.training.step import Step, at_once, in_pieces, in_two_passes, statistics_kept
from hf_vlr.training.tasks import Task

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = CLIPTextConfig(**SMALL, vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0).to_dict()
VISION = CLIPVisionConfig(**SMALL, image_size=16, patch_size=8).to_dict()
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic").to_dict()
DROPOUT = BertConfig(**SMALL, vocab_size=40, hidden_dropout_prob=0.3, pad_token_id=0).to_dict()
SCALING = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])


def scale(batch: Batch) -> Batch:
    """Pictures from bytes to floats, as the loaders do it."""
    return batch | {key: SCALING(batch[key]) for key in batch if key.endswith("pixel_values")}


def doubles(batch: Batch) -> Batch:
    return {key: value.double() if value.is_floating_point() else value for key, value in scale(batch).items()}


def step(scaling=scale) -> Step:
    return Step(scaling, torch.Tensor.backward, nullcontext, torch.manual_seed)


def assert_same_gradients(one: Task, two: Task) -> None:
    expected, got = gradients(one), gradients(two)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        # the floor: a key's bias has no gradient but rounding errors
        assert (got[name] - gradient).norm() <= 1e-9 * gradient.norm().clamp_min(1e-6), name


def batch(pairs: int, texts: int = 24) -> Batch:
    """Byte pictures with labels, some -1, which speak some of the texts, of 3 to 20 tokens each."""
    generator = torch.Generator().manual_seed(pairs)
    ids = torch.randint(5, 40, (texts, 24), generator=generator)
    lengths = torch.randint(3, 21, (texts,), generator=generator)
    places = torch.arange(24)
    ids[places == lengths[:, None] - 1] = 2
    ids[places >= lengths[:, None]] = 0
    ids[:, 0] = 1
    return {
        "pixel_values": torch.randint(0, 256, (pairs, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(-1, 5, (pairs,), generator=generator),
        "input_ids": ids,
        "attention_mask": (places < lengths[:, None]).long(),
        "text_index": torch.randint(0, texts, (pairs,), generator=generator),
        "rows": torch.tensor(pairs),
    }


def contrast(objective: str = "unicl", beta: float = 0.0, seed: int = 0, **towers) -> ContrastiveTask:
    torch.manual_seed(seed)
    config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16} | towers
    model, teacher = UniCLModel(UniCLConfig(**config)), UniCLModel(UniCLConfig(**config)) if beta else None
    loss = LossOptions(objective=objective, distillation=beta, label_smoothing=0.0 if objective == "siglip" else 0.1)
    task = ContrastiveTask(model, ModelOptions(), loss, teacher, num_classes=5, has_pairs=True)
    return task.train()


def recognition() -> RecognitionTask:
    torch.manual_seed(0)
    config = VLLTRConfig(text_config=TEXT, vision_config=VISION, projection_dim=16, num_labels=5, num_anchors=3)
    model = VLLTRForImageClassification(config)
    model.set_anchors(torch.randn(5, 3, 16), torch.ones(5, 3, dtype=torch.bool), [["a", "b", "c"]] * 5)
    return RecognitionTask(model, ModelOptions(), LossOptions(logit_adjustment=1.0), torch.arange(1, 6)).train()


def gradients(task: Task) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", ["unicl", "clip", "siglip", "multi-task", "distillation"])
def test_two_passes_are_the_step_at_once(objective):
    settings = {"objective": "unicl", "beta": 0.5} if objective == "distillation" else {"objective": objective}
    one, two = contrast(**settings).double(), contrast(**settings).double()
    if one._teacher[0] is not None:
        one._teacher[0].double(), two._teacher[0].double()
    parts = at_once(step(doubles), one, batch(30), 0.7)
    found = in_two_passes(step(doubles), two, batch(30), 0.7, 8)
    assert found.keys() == parts.keys()
    for key, value in parts.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)
    assert_same_gradients(one, two)


def test_supcon_of_two_views_in_two_passes():
    pairs = {key: value for key, value in batch(20).items() if key in ("pixel_values", "labels", "rows")}
    pairs["second_pixel_values"] = pairs["pixel_values"].flip(-1)
    one, two = contrast("supcon").double(), contrast("supcon").double()
    parts = at_once(step(doubles), one, pairs, 1.0)
    torch.testing.assert_close(in_two_passes(step(doubles), two, pairs, 1.0, 6)["loss"], parts["loss"])
    assert_same_gradients(one, two)
    assert not any("text" in name for name in gradients(two))


@pytest.mark.parametrize("texts", [TEXT, DROPOUT])
def test_the_second_pass_computes_the_first_to_the_bit(texts, monkeypatch):
    task, passes = contrast(text_config=texts), []
    encode = ContrastiveTask.encode

    def recorded(self, piece):
        features = encode(self, piece)
        passes.append({name: value.detach().clone() for name, value in features.items()})
        return features

    monkeypatch.setattr(ContrastiveTask, "encode", recorded)
    in_two_passes(step(), task, batch(30), 1.0, 8)
    half = len(passes) // 2
    assert half == 4 + 3
    for first, second in zip(passes[:half], passes[half:], strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def saved_bytes(task: Task, run) -> int:
    """The most bytes of distinct tensors that autograd holds at a time, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    held: dict[int, list[int]] = {}
    most = 0

    class Held:
        """A saved tensor; it counts from when it is saved until autograd lets it go."""

        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal most
            self.tensor, self.place = tensor, tensor.untyped_storage().data_ptr()
            if self.place not in own:
                held.setdefault(self.place, [tensor.untyped_storage().nbytes(), 0])[1] += 1
                most = max(most, sum(size for size, _ in held.values()))

        def __del__(self) -> None:
            if self.place in held:
                held[self.place][1] -= 1
                if not held[self.place][1]:
                    del held[self.place]

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda saved: saved.tensor):
        run()
    return most


def test_thousands_of_pairs_take_the_activations_of_a_micro_batch():
    pairs, micro = 4096, 64
    task = contrast(text_config=TEXT)
    whole, small = batch(pairs, 512), batch(micro, 64)
    small["text_index"] = torch.arange(64)
    once = saved_bytes(task, lambda: at_once(step(), task, small, 1.0))
    features = (pairs + 512) * 16 * 4
    two = saved_bytes(task, lambda: in_two_passes(step(), task, whole, 1.0, micro))
    plain = saved_bytes(task, lambda: at_once(step(), task, batch(512, 512), 1.0))
    assert plain > 4 * once, "the measure does not see activations"
    # the loss keeps unit vectors, scaled ones and class sums beside the features themselves
    assert two <= 1.1 * once + 12 * features
    assert whole["pixel_values"].dtype == torch.uint8


def test_pieces_hold_each_row_once_and_texts_are_cut_to_their_longest():
    whole = batch(30)
    pieces = list(cut(whole, 7))
    images = [piece for piece in pieces if "pixel_values" in piece.batch]
    texts = [piece for piece in pieces if "input_ids" in piece.batch]
    assert sorted(torch.cat([p.rows for p in images]).tolist()) == list(range(30))
    assert sorted(torch.cat([p.rows for p in texts]).tolist()) == list(range(24))
    assert all(torch.equal(p.batch["pixel_values"], whole["pixel_values"][p.rows]) for p in images)
    lengths = whole["attention_mask"].sum(1)
    for piece in texts:
        width = piece.batch["input_ids"].shape[1]
        assert width == -(-int(lengths[piece.rows].max()) // 8) * 8
        assert torch.equal(piece.batch["input_ids"], whole["input_ids"][piece.rows][:, :width])
    tokens = sum(piece.batch["input_ids"].numel() for piece in texts)
    assert tokens < 0.8 * whole["input_ids"].numel()
    assert [len(part["labels"]) for part in rows_of_batch(whole, 13)] == [13, 13, 4]


def test_a_sum_over_images_may_come_in_pieces():
    one, two = recognition().double(), recognition().double()
    whole = batch(30)
    whole["labels"] = whole["labels"].clamp_min(0)
    parts, found = at_once(step(doubles), one, whole, 0.5), in_pieces(step(doubles), two, whole, 0.5, 8)
    for key, value in parts.items():
        torch.testing.assert_close(found[key], value.detach())
    assert_same_gradients(one, two)


def test_batch_statistics_are_counted_once():
    task = contrast(vision_config=RESNET)
    norm = next(layer for layer in task.modules() if isinstance(layer, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    with torch.no_grad(), statistics_kept(task):
        task.encode(scale(batch(8)))
    assert torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 0
    in_two_passes(step(), task, batch(8), 1.0, 4)
    assert norm.num_batches_tracked == 2
    assert not torch.equal(norm.running_mean, before)


def test_dropout_is_drawn_anew_for_each_piece():
    task = contrast(text_config=DROPOUT)
    same = batch(8, 8)
    same["input_ids"] = same["input_ids"][:1].repeat(8, 1)
    same["attention_mask"] = same["attention_mask"][:1].repeat(8, 1)
    drawn = []
    for number, piece in enumerate(cut(same, 4)):
        torch.manual_seed(number)
        drawn.append(task.encode(scale(piece.batch)).get("texts"))
    first, second = (features for features in drawn if features is not None)
    assert not torch.equal(first, second)
