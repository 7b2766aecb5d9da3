"""The task of one stage: its loss is the sum of both stages', and anchors are chosen when they are due."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPVisionConfig, ResNetConfig

from hf_vlr.modeling import VLLTRConfig, VLLTRForImageClassification
from hf_vlr.modeling.contrastive import distillation_loss_reference, image_text_label_loss_reference
from hf_vlr.training.anchor_choice import encoded_by_all, share_of_new
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.joint_task import JointTask
from hf_vlr.training.loaders import Batch
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.recognition_task import RecognitionTask
from hf_vlr.training.step import Step, at_once, in_two_passes

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = CLIPTextConfig(**SMALL, vocab_size=30, bos_token_id=1, eos_token_id=2, pad_token_id=0).to_dict()
VISION = CLIPVisionConfig(**SMALL, image_size=16, patch_size=8).to_dict()
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic").to_dict()
LABELS = torch.tensor([0, 1, 0, 2, 1, 2])


def recogniser(seed: int = 0, **settings) -> VLLTRForImageClassification:
    torch.manual_seed(seed)
    config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8, "num_labels": 3, "num_anchors": 2}
    model = VLLTRForImageClassification(VLLTRConfig(**config | settings))
    model.set_anchors(torch.randn(3, 2, 8), torch.ones(3, 2, dtype=torch.bool), [["a", "b"]] * 3)
    return model


def batch(labels: torch.Tensor = LABELS) -> Batch:
    """Pairs that speak four texts, with a class or (-1) without."""
    torch.manual_seed(1)
    ids = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2], [1, 8, 2, 0], [1, 9, 9, 2]])
    return {
        "pixel_values": torch.randn(len(labels), 3, 16, 16),
        "labels": labels,
        "input_ids": ids,
        "attention_mask": ids.ne(0).long(),
        "text_index": torch.arange(len(labels)) % 4,
        "rows": torch.tensor(len(labels)),
    }


def joint(model: VLLTRForImageClassification, loss: LossOptions | None = None, **settings) -> JointTask:
    options = ModelOptions(freeze=settings.pop("freeze", []))
    choose = settings.pop("choose", lambda epoch, chosen: chosen)
    return JointTask(model, options, loss or LossOptions(), torch.tensor([70, 20, 10]), choose, **settings)


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", ["unicl", "clip"])
def test_the_loss_is_the_sum_of_both_stages(objective):
    loss = LossOptions(objective=objective, contrast_weight=0.3, visual_weight=0.5, language_weight=2.0)
    loss.logit_adjustment, loss.label_smoothing = 1.0, 0.1
    model, teacher = recogniser(), recogniser(1).vlltr
    out = joint(model, loss, teacher=teacher)(batch())
    contrast = ContrastiveTask(model.vlltr, ModelOptions(), loss, teacher)(batch())
    recognition = RecognitionTask(model, ModelOptions(), loss, torch.tensor([70, 20, 10]))(batch())
    torch.testing.assert_close(out["loss"], 0.3 * contrast["loss"] + recognition["loss"])
    for key, value in (contrast | recognition).items():
        if key != "loss":
            torch.testing.assert_close(out[key], value)


def test_distillation_is_weighed_by_beta():
    model, teacher = recogniser(), recogniser(1).vlltr
    out = joint(model, LossOptions(distillation=0.25), teacher=teacher)(batch())
    pairs = batch()
    features = [
        (m.get_image_features(pairs["pixel_values"]), m.get_text_features(pairs["input_ids"]), m.logit_scale.exp())
        for m in (model.vlltr, teacher)
    ]
    index = pairs["text_index"]
    contrast = image_text_label_loss_reference(*features[0][:2], LABELS, features[0][2], text_index=index)
    distilled = distillation_loss_reference(*features[0], *features[1], text_index=index)
    expected = 0.75 * contrast + 0.25 * distilled + out["visual"] + out["language"]
    torch.testing.assert_close(out["loss"], expected)


def test_pairs_without_a_class_take_part_in_the_contrast_alone():
    labels = torch.tensor([0, -1, 2, -1, 1, 0])
    model, known = recogniser(), labels >= 0
    out = joint(model, has_pairs=True)(batch(labels))
    answer = model(pixel_values=batch(labels)["pixel_values"])
    for name, logits in (("visual", answer.visual_logits), ("language", answer.language_logits)):
        torch.testing.assert_close(out[name], cross_entropy(logits[known], labels[known]))
    contrast = ContrastiveTask(model.vlltr, ModelOptions(), LossOptions())(batch(labels))["loss"]
    torch.testing.assert_close(out["loss"], contrast + out["visual"] + out["language"])
    # none at all: the head waits, with a gradient that is zero
    task = joint(recogniser(), has_pairs=True)
    task(batch(torch.full((6,), -1)))["loss"].backward()
    assert not task.model.head.visual[0].weight.grad.any()
    assert task.model.vlltr.text_projection.weight.grad.any()


def test_towers_and_head_learn_and_anchors_are_constants():
    task = joint(recogniser(), LossOptions(contrast_weight=0.5))
    task(batch())["loss"].backward()
    found = gradients(task.model)
    trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained == dict(task.model.named_parameters()).keys()
    found = by_part(found)
    assert all(gradient.any() for gradient in found.values())
    assert not task.model.head.anchors.requires_grad
    # the text tower learns from the contrast alone, the vision tower from both
    model = recogniser()
    (0.5 * ContrastiveTask(model.vlltr, ModelOptions(), LossOptions())(batch())["loss"]).backward()
    alone = by_part(gradients(model))
    close = {part for part, gradient in alone.items() if torch.allclose(gradient, found[part], rtol=1e-4, atol=1e-7)}
    assert close == {"vlltr.text_model", "vlltr.text_projection"}
    assert alone.keys() - close == {"vlltr.vision_model", "vlltr.visual_projection", "vlltr.logit_scale"}


def by_part(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradients of a module of the encoder or the head as one vector."""
    joined: dict[str, list[torch.Tensor]] = {}
    for name, gradient in found.items():
        joined.setdefault(".".join(name.split(".")[:2]), []).append(gradient.flatten())
    return {part: torch.cat(gradients) for part, gradients in joined.items()}


def test_states_of_frozen_towers_stand_for_pictures_and_tokens():
    model = recogniser()
    task, pairs = joint(model, freeze=["vision_model", "text_model"]), batch()
    states = {
        "vision_states": model.vlltr.vision_model(pairs["pixel_values"]).pooler_output,
        "text_states": model.vlltr.text_model(pairs["input_ids"], pairs["attention_mask"]).pooler_output,
    }
    whole = task(pairs)
    short = task(states | {key: pairs[key] for key in ("labels", "text_index", "rows")})
    for key, value in whole.items():
        torch.testing.assert_close(short[key], value)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_two_passes_are_the_step_at_once(beta):
    labels = torch.tensor([0, 1, -1, 2, 1, -1, 0, 2, 2, -1])
    step = Step(
        lambda batch: {key: value.double() if value.is_floating_point() else value for key, value in batch.items()},
        torch.Tensor.backward,
        nullcontext,
        torch.manual_seed,
    )
    tasks, parts = [], []
    for run_step in (at_once, lambda *words: in_two_passes(*words, 3)):
        teacher = recogniser(1).vlltr.double() if beta else None
        task = joint(recogniser(), LossOptions(distillation=beta), teacher=teacher, has_pairs=True).double().train()
        tasks.append(task)
        parts.append(run_step(step, task, step.scale(batch(labels)), 0.7))
    assert parts[0].keys() == parts[1].keys()
    for key, value in parts[0].items():
        torch.testing.assert_close(parts[1][key], value, rtol=1e-10, atol=1e-12)
    expected, found = gradients(tasks[0]), gradients(tasks[1])
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # the floor: a key's bias has no gradient but rounding errors
        assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm().clamp_min(1e-6), name


def test_anchors_are_chosen_at_the_start_of_every_kth_epoch():
    calls = []

    def choose(epoch, chosen):
        calls.append((epoch, chosen.flatten().tolist()))
        task.model.vlltr.train()  # as encoding leaves it
        return torch.full_like(chosen, epoch)

    task = joint(recogniser(vision_config=RESNET), choose=choose, refresh_every=3, freeze=["vision_model"]).train()
    for epoch, first in ((0, 0), (0, 2), (1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (6, 0)):
        task.start_epoch(epoch, first)
        assert task.training and not any(module.training for module in task.model.vlltr.vision_model.modules())
    assert calls == [(0, [-1] * 6), (3, [0] * 6), (6, [3] * 6)]
    assert task.chosen.tolist() == [[6, 6]] * 3
    assert "chosen" in task.state_dict()


def test_the_part_of_the_anchors_that_are_new():
    before = torch.tensor([[4, 2, 1], [7, 8, -1]])
    assert share_of_new(torch.tensor([[1, 2, 4], [8, 7, -1]]), before) == 0
    assert share_of_new(torch.tensor([[1, 3, 4], [8, 9, 6]]), before) == pytest.approx(3 / 6)
    assert share_of_new(torch.tensor([[1, 3, 4], [8, 9, -1]]), before) == pytest.approx(2 / 5)
    # of another class is new
    assert share_of_new(torch.tensor([[7, -1, -1], [7, -1, -1]]), before) == 0.5


def test_one_process_encodes_each_row_once():
    rows = []
    states = encoded_by_all(5, lambda share: rows.extend(share) or torch.tensor(share)[:, None].float())
    assert rows == [0, 1, 2, 3, 4] and states.flatten().tolist() == rows


def test_a_head_takes_anchors_of_other_sentences_from_a_checkpoint():
    source, target = recogniser(), recogniser(1)
    source.set_anchors(
        torch.randn(3, 2, 8), torch.ones(3, 2, dtype=torch.bool), [["eins", "zwei"], ["ß", ""], ["", "a"]]
    )
    stale = target.head.constants()[0]
    target.load_state_dict(source.state_dict())
    assert target.head.sentence(0, 1) == "zwei" and target.head.sentence(1, 0) == "ß"
    assert torch.equal(target.head.anchors, source.head.anchors)
    assert not torch.equal(target.head.constants()[0], stale)
    missing = {key: value for key, value in source.state_dict().items() if key != "head.sentence_bytes"}
    with pytest.raises(RuntimeError, match=r"Missing key.*sentence_bytes"):
        target.load_state_dict(missing)
