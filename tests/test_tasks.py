"""Tasks: each loss by its formula, frozen parts and the bound of the inverse temperature."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from transformers import BertConfig, CLIPTextConfig, CLIPVisionConfig, ResNetConfig

from hf_vlr.errors import UserError
from hf_vlr.losses.classification import class_weights_reference, classification_loss_reference, ldam_margins_reference
from hf_vlr.losses.sigmoid import unified_sigmoid_loss_reference
from hf_vlr.losses.supervised import supervised_contrastive_loss_reference
from hf_vlr.modeling import UniCLConfig, UniCLModel, VLLTRConfig, VLLTRForImageClassification
from hf_vlr.modeling.contrastive import distillation_loss_reference, image_text_label_loss_reference
from hf_vlr.training.contrastive_task import ContrastiveTask
from hf_vlr.training.options import LossOptions, ModelOptions
from hf_vlr.training.recognition_task import RecognitionTask
from hf_vlr.training.tasks import freeze_parts

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = CLIPTextConfig(**SMALL, vocab_size=30, bos_token_id=1, eos_token_id=2, pad_token_id=0).to_dict()
VISION = CLIPVisionConfig(**SMALL, image_size=16, patch_size=8).to_dict()
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic").to_dict()


def encoder(seed: int = 0, **settings) -> UniCLModel:
    torch.manual_seed(seed)
    return UniCLModel(UniCLConfig(**{"text_config": TEXT, "vision_config": VISION, "projection_dim": 8} | settings))


def recogniser(**settings) -> VLLTRForImageClassification:
    torch.manual_seed(0)
    config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8, "num_labels": 3, "num_anchors": 2}
    model = VLLTRForImageClassification(VLLTRConfig(**config | settings))
    if model.config.num_anchors:
        model.set_anchors(torch.randn(3, 2, 8), torch.ones(3, 2, dtype=torch.bool), [["a", "b"]] * 3)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Six pairs that speak four texts; two of them are image-text pairs without a class."""
    torch.manual_seed(1)
    ids = torch.tensor([[1, 5, 2, 0], [1, 6, 7, 2], [1, 8, 2, 0], [1, 9, 9, 2]])
    return {
        "pixel_values": torch.randn(6, 3, 16, 16),
        "labels": torch.tensor([0, 1, 0, -1, 1, -1]),
        "input_ids": ids,
        "attention_mask": ids.ne(0).long(),
        "text_index": torch.tensor([0, 1, 2, 3, 1, 0]),
    }


def states(model: UniCLModel, pictures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with pooled states in place of pictures and tokens."""
    vision = model.vision_model(pictures["pixel_values"]).pooler_output
    text = model.text_model(pictures["input_ids"], pictures["attention_mask"]).pooler_output
    kept = {key: pictures[key] for key in ("labels", "text_index")}
    return kept | {"vision_states": vision.detach(), "text_states": text.detach()}


@pytest.mark.parametrize("direction", ["both", "image_to_text", "text_to_image"])
def test_the_contrast_is_its_definition(direction):
    model, loss = encoder(), LossOptions(label_smoothing=0.2, direction=direction)
    out = ContrastiveTask(model, ModelOptions(), loss)(batch())
    images = model.get_image_features(batch()["pixel_values"])
    texts = model.get_text_features(batch()["input_ids"], batch()["attention_mask"])
    expected = image_text_label_loss_reference(
        images,
        texts,
        batch()["labels"],
        model.logit_scale.exp(),
        text_index=batch()["text_index"],
        direction=direction,
        label_smoothing=0.2,
    )
    torch.testing.assert_close(out["loss"], expected)
    torch.testing.assert_close(out["contrast"], expected.detach())
    assert "distillation" not in out


def test_distillation_is_weighed_by_beta():
    model, teacher, beta = encoder(0), encoder(1), 0.5
    task = ContrastiveTask(model, ModelOptions(), LossOptions(distillation=beta), teacher)
    out = task(batch())
    index, labels = batch()["text_index"], batch()["labels"]
    features = [
        (m.get_image_features(batch()["pixel_values"]), m.get_text_features(batch()["input_ids"]), m.logit_scale.exp())
        for m in (model, teacher)
    ]
    contrast = image_text_label_loss_reference(*features[0][:2], labels, features[0][2], text_index=index)
    distilled = distillation_loss_reference(*features[0], *features[1], text_index=index)
    torch.testing.assert_close(out["loss"], (1 - beta) * contrast + beta * distilled)
    torch.testing.assert_close(out["distillation"], distilled.detach())
    out["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert {name.partition(".")[0] for name in task.state_dict()} == {"model"}
    assert len(list(task.parameters())) == len(list(model.parameters()))
    assert not task.train()._teacher[0].training


def test_states_of_frozen_towers_stand_for_pictures_and_tokens():
    model = encoder()
    task = ContrastiveTask(model, ModelOptions(freeze=["vision_model", "text_model"]), LossOptions())
    whole, short = task(batch()), task(states(model, batch()))
    torch.testing.assert_close(short["loss"], whole["loss"])
    whole["loss"].backward()
    expected = model.visual_projection.weight.grad.clone()
    model.zero_grad()
    short["loss"].backward()
    torch.testing.assert_close(model.visual_projection.weight.grad, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_recognition_weighs_and_adjusts_both_branches(smoothing):
    model, counts = recogniser(), torch.tensor([70, 20, 10])
    options = LossOptions(visual_weight=0.5, language_weight=2.0, logit_adjustment=1.5, label_smoothing=smoothing)
    labelled = batch() | {"labels": torch.tensor([0, 1, 2, 0, 1, 1])}
    out = RecognitionTask(model, ModelOptions(), options, counts)(labelled)
    answer = model(pixel_values=labelled["pixel_values"])
    shift = 1.5 * torch.tensor([0.7, 0.2, 0.1]).log()
    visual, language = (
        cross_entropy(logits + shift, labelled["labels"], label_smoothing=smoothing)
        for logits in (answer.visual_logits, answer.language_logits)
    )
    torch.testing.assert_close(out["visual"], visual)
    torch.testing.assert_close(out["language"], language)
    torch.testing.assert_close(out["loss"], 0.5 * visual + 2.0 * language)


def test_without_language_there_is_one_branch():
    task = RecognitionTask(recogniser(num_anchors=0), ModelOptions(), LossOptions(), torch.tensor([3, 2, 1]))
    assert task(batch() | {"labels": torch.tensor([0, 1, 2, 0, 1, 1])}).keys() == {"loss", "visual"}


@pytest.mark.parametrize("num_anchors", [0, 2])
def test_every_parameter_that_is_trained_gets_a_gradient(num_anchors):
    """Processes that share a model wait for the gradient of every trained parameter."""
    model = recogniser(num_anchors=num_anchors)
    task = RecognitionTask(model, ModelOptions(), LossOptions(), torch.tensor([3, 2, 1]))
    task(batch() | {"labels": torch.tensor([0, 1, 2, 0, 1, 1])})["loss"].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ("vlltr.logit_scale" in trained) is bool(num_anchors)


def test_a_pooler_that_is_not_read_is_not_trained():
    bert = BertConfig(**SMALL, vocab_size=30).to_dict()
    model = encoder(text_config=bert, text_pooling="mean")
    ContrastiveTask(model, ModelOptions(), LossOptions())(batch())["loss"].backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert missing == []
    freeze_parts(read := encoder(text_config=bert, text_pooling="pooler"), [])
    assert all(parameter.requires_grad for parameter in read.text_model.pooler.parameters())


def test_frozen_towers_keep_their_statistics():
    model = encoder(vision_config=RESNET)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    task = ContrastiveTask(model, ModelOptions(freeze=["vision_model"]), LossOptions()).train()
    assert task.training
    assert model.text_model.training
    assert not any(module.training for module in model.vision_model.modules())
    task(batch())["loss"].backward()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.vision_model.parameters())
    free = ContrastiveTask(encoder(vision_config=RESNET), ModelOptions(), LossOptions()).train()
    free(batch())
    assert not torch.equal(*(m.vision_model.embedder.embedder.normalization.running_mean for m in (model, free.model)))


def test_the_inverse_temperature_stays_within_its_bound():
    for model, task in (
        (first := encoder(), ContrastiveTask(first, ModelOptions(max_logit_scale=20.0), LossOptions())),
        (
            (second := recogniser()).vlltr,
            RecognitionTask(second, ModelOptions(max_logit_scale=20.0), LossOptions(), torch.tensor([3, 2, 1])),
        ),
    ):
        for value, expected in ((9.0, math.log(20.0)), (1.0, 1.0)):
            with torch.no_grad():
                model.logit_scale.fill_(value)
            task.after_step()
            assert model.logit_scale.item() == pytest.approx(expected)


def test_a_frozen_inverse_temperature_is_left_alone():
    model = encoder()
    task = ContrastiveTask(model, ModelOptions(max_logit_scale=2.0, freeze=["logit_scale"]), LossOptions())
    before = model.logit_scale.clone()
    task.after_step()
    assert torch.equal(model.logit_scale, before)


def features(model: UniCLModel) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = batch()
    texts = model.get_text_features(pairs["input_ids"], pairs["attention_mask"])
    return model.get_image_features(pairs["pixel_values"]), texts


def test_clip_knows_no_classes():
    model, index = encoder(), batch()["text_index"]
    out = ContrastiveTask(model, ModelOptions(), LossOptions(objective="clip"))(batch())
    alone = torch.full((6,), -1)
    expected = image_text_label_loss_reference(*features(model), alone, model.logit_scale.exp(), text_index=index)
    torch.testing.assert_close(out["loss"], expected)


def test_the_sigmoid_has_a_trained_bias_that_is_saved(tmp_path):
    model, index = encoder(), batch()["text_index"]
    task = ContrastiveTask(model, ModelOptions(), LossOptions(objective="siglip"))
    out = task(batch())
    scale, bias = model.logit_scale.exp(), torch.tensor(-10.0)
    expected = unified_sigmoid_loss_reference(*features(model), batch()["labels"], scale, bias, text_index=index)
    torch.testing.assert_close(out["loss"], expected)
    out["loss"].backward()
    assert model.logit_bias.grad.abs() > 0
    model.save_pretrained(tmp_path)
    assert UniCLModel.from_pretrained(tmp_path).logit_bias.item() == -10.0


def test_supcon_contrasts_two_views_of_the_images():
    model = encoder()
    task = ContrastiveTask(model, ModelOptions(), LossOptions(objective="supcon"))
    views = {"pixel_values": batch()["pixel_values"], "second_pixel_values": batch()["pixel_values"].flip(-1)}
    out = task(views | {"labels": batch()["labels"]})
    both = torch.cat([model.get_image_features(pictures) for pictures in views.values()])
    image = torch.arange(6).repeat(2)
    expected = supervised_contrastive_loss_reference(
        both, batch()["labels"].repeat(2), model.logit_scale.exp(), views=image
    )
    torch.testing.assert_close(out["loss"], expected)
    out["loss"].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert not any("text" in name for name in trained)


@pytest.mark.parametrize("has_pairs", [True, False])
def test_multi_task_classifies_what_has_a_class_and_contrasts_the_pairs(has_pairs):
    model, index, labels = encoder(), batch()["text_index"], batch()["labels"]
    loss = LossOptions(objective="multi-task", contrast_weight=0.5)
    torch.manual_seed(3)
    task = ContrastiveTask(model, ModelOptions(), loss, num_classes=2, has_pairs=has_pairs)
    out = task(batch())
    images, texts = features(model)
    head = cross_entropy(task.classifier(images[labels >= 0]), labels[labels >= 0])
    chosen = labels < 0 if has_pairs else torch.ones(6, dtype=torch.bool)
    # texts that no chosen pair speaks have no column
    contrast = image_text_label_loss_reference(
        images[chosen],
        texts,
        torch.full((int(chosen.sum()),), -1),
        model.logit_scale.exp(),
        text_index=index[chosen],
    )
    torch.testing.assert_close(out["loss"], head + 0.5 * contrast)
    assert "classifier.weight" in task.state_dict()


def test_multi_task_without_a_pair_in_the_batch_still_reaches_every_parameter():
    model = encoder()
    task = ContrastiveTask(model, ModelOptions(), LossOptions(objective="multi-task"), num_classes=2, has_pairs=True)
    out = task(batch() | {"labels": torch.tensor([0, 1, 0, 0, 1, 1])})
    assert out["contrast"] == 0
    out["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize("kind", ["cross-entropy", "focal", "ldam"])
@pytest.mark.parametrize("reweight", ["none", "inverse", "class-balanced"])
def test_every_classification_loss_in_both_branches(kind, reweight):
    model = recogniser(visual_head="cosine", visual_scale=7.0)
    loss = LossOptions(classification=kind, reweight=reweight, reweight_beta=0.9, focal_gamma=1.5, ldam_margin=0.3)
    counts, labels = torch.tensor([70, 20, 10]), torch.tensor([0, 1, 2, 0, 1, 1])
    out = RecognitionTask(model, ModelOptions(), loss, counts)(batch() | {"labels": labels})
    answer = model(pixel_values=batch()["pixel_values"])
    settings = {
        "kind": kind,
        "focal_gamma": 1.5,
        "class_weights": class_weights_reference(counts, reweight, 0.9).float(),
        "margins": ldam_margins_reference(counts, 0.3).float() if kind == "ldam" else None,
    }
    for name, logits, scale in (
        ("visual", answer.visual_logits, 7.0),
        ("language", answer.language_logits, model.vlltr.logit_scale.exp()),
    ):
        expected = classification_loss_reference(logits, labels, scale=scale, **settings)
        torch.testing.assert_close(out[name], expected.detach())


def test_weights_of_the_classes_come_in_late():
    labelled = batch() | {"labels": torch.tensor([0, 1, 2, 0, 1, 1])}
    plain = RecognitionTask(recogniser(), ModelOptions(), LossOptions(), torch.tensor([70, 20, 10]))
    loss = LossOptions(reweight="inverse", reweight_after=0.5)
    deferred = RecognitionTask(recogniser(), ModelOptions(), loss, torch.tensor([70, 20, 10]))
    deferred.after_step(0.49)
    torch.testing.assert_close(deferred(labelled)["loss"], plain(labelled)["loss"])
    deferred.after_step(0.5)
    assert (deferred(labelled)["loss"] - plain(labelled)["loss"]).abs() > 1e-3


def test_margins_need_cosines():
    with pytest.raises(UserError, match=r"set model\.visual_head=cosine"):
        RecognitionTask(recogniser(), ModelOptions(), LossOptions(classification="ldam"), torch.tensor([7, 2, 1]))


def test_a_cosine_classifier_is_its_definition_and_survives_saving(tmp_path):
    model = recogniser(visual_head="cosine", visual_scale=7.0)
    images = torch.randn(4, 8)
    expected = 7.0 * normalize(images, dim=-1) @ normalize(model.head.visual.weight, dim=-1).T
    torch.testing.assert_close(model(image_features=images).visual_logits, expected)
    model.save_pretrained(tmp_path)
    again = VLLTRForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(image_features=images).visual_logits, expected)


def test_a_mixed_image_has_two_labels():
    model, labels, others = recogniser(), torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([1, 1, 0, 2, 2, 0])
    shares = torch.linspace(0, 1, 6)
    mixed = batch() | {"labels": labels, "other_labels": others, "shares": shares}
    out = RecognitionTask(model, ModelOptions(), LossOptions(), torch.tensor([3, 2, 1]))(mixed)
    logits = model(pixel_values=batch()["pixel_values"]).visual_logits
    first, second = (cross_entropy(logits, label, reduction="none") for label in (labels, others))
    torch.testing.assert_close(out["visual"], (shares * first + (1 - shares) * second).mean())


@pytest.mark.parametrize("objective", ["unicl", "clip", "siglip", "multi-task"])
def test_a_blank_batch_counts_nothing_and_reaches_every_parameter(objective):
    task = ContrastiveTask(encoder(), ModelOptions(), LossOptions(objective=objective), num_classes=2, has_pairs=True)
    one = {key: value[:1] for key, value in batch().items()} | {"blank": torch.tensor(True)}
    found = task.encode(one)
    assert {len(value) for value in found.values()} == {0}
    sum(value.sum() for value in found.values()).backward()
    trained = [p for name, p in task.named_parameters() if "logit" not in name and "classifier" not in name]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)
