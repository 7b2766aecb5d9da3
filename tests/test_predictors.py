"""Class vectors, zero-shot scores and the recogniser's branches."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_vlr.anchors import AnchorSelection
from hf_vlr.data.source import ImageSource
from hf_vlr.data.transforms import build_eval_transform
from hf_vlr.evaluation.predictors import (
    class_vectors,
    image_vectors,
    log_softmax,
    project,
    recognise,
    text_logits,
    zero_shot,
)
from hf_vlr.modeling import VLLTRConfig, VLLTRForImageClassification

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


def recogniser(num_anchors: int = 2, **settings) -> VLLTRForImageClassification:
    config = VLLTRConfig(
        text_config=CLIPTextConfig(**SMALL, **WORDS).to_dict(),
        vision_config=CLIPVisionConfig(**SMALL, image_size=16, patch_size=8, attention_dropout=0.5).to_dict(),
        projection_dim=8,
        num_labels=3,
        num_anchors=num_anchors,
        **settings,
    )
    torch.manual_seed(0)
    model = VLLTRForImageClassification(config)
    if num_anchors:
        mask = torch.ones(3, num_anchors, dtype=torch.bool)
        model.set_anchors(torch.randn(3, num_anchors, 8), mask, [["a", "b"]] * 3)
    return model


def test_a_class_vector_is_the_mean_direction_of_its_sentences():
    features, labels = torch.randn(6, 5) * torch.rand(6, 1) * 9, [0, 0, 0, 2, 2, 0]
    vectors = class_vectors(features, labels, 4)
    first = normalize(normalize(features[[0, 1, 2, 5]], dim=-1).mean(0), dim=-1)
    torch.testing.assert_close(vectors[0], first)
    torch.testing.assert_close(vectors[[0, 2]].norm(dim=-1), torch.ones(2))
    assert vectors[[1, 3]].eq(0).all()
    torch.testing.assert_close(class_vectors(features * 7, np.array(labels), 4), vectors)


def test_with_a_selection_the_anchors_alone_count():
    features, labels = torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1])
    selection = AnchorSelection(torch.tensor([[1, -1], [4, 2]]), torch.tensor([[True, False], [True, True]]))
    vectors = class_vectors(features, labels, 2, selection)
    torch.testing.assert_close(vectors, class_vectors(features[[1, 4, 2]], [0, 1, 1], 2))
    assert not torch.allclose(vectors, class_vectors(features, labels, 2))


def test_zero_shot_is_the_softmax_of_scaled_cosines():
    features, vectors = torch.randn(7, 4) * 5, normalize(torch.randn(3, 4), dim=-1)
    found = zero_shot(features, vectors, 10.0)["language"]
    cosine = torch.cosine_similarity(features[:, None], vectors[None], dim=-1)
    np.testing.assert_allclose(found, (10 * cosine).log_softmax(-1), atol=1e-5)
    assert (found.argmax(1) == zero_shot(features, vectors, 0.1)["language"].argmax(1)).all()


def test_text_logits_are_scaled_cosines_and_a_bias_in_any_pieces():
    features, vectors = torch.randn(7, 4) * 5, normalize(torch.randn(3, 4), dim=-1)
    cosine = torch.cosine_similarity(features[:, None], vectors[None], dim=-1)
    found = text_logits(features, vectors, 10.0, -3.0, chunk=2)
    np.testing.assert_allclose(found, 10 * cosine - 3, atol=1e-5)
    np.testing.assert_allclose(found, text_logits(features, vectors, 10.0, -3.0), atol=1e-6)


def test_log_softmax_goes_by_rows_and_leaves_log_probabilities():
    scores = (torch.randn(9, 4) * 30).numpy()
    once = log_softmax(scores, chunk=2)
    np.testing.assert_allclose(once, torch.tensor(scores).log_softmax(-1), atol=1e-5)
    np.testing.assert_allclose(log_softmax(once), once, atol=1e-5)
    assert log_softmax(scores.astype(np.float16)).dtype == np.float32
    assert log_softmax(scores.astype(np.float64)).dtype == np.float64


def test_recognise_gives_each_branch_as_log_probabilities():
    model, features = recogniser(fusion_weight=0.3).train(), torch.randn(5, 8)
    found = recognise(model, features, chunk=2)
    assert model.training
    assert found.keys() == {"fused", "visual", "language"}
    for scores in found.values():
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-5)
    mixture = 0.3 * np.exp(found["visual"]) + 0.7 * np.exp(found["language"])
    np.testing.assert_allclose(np.exp(found["fused"]), mixture, atol=1e-6)
    whole = recognise(model, features)
    np.testing.assert_allclose(whole["fused"], found["fused"], atol=1e-5)


def test_without_anchors_there_is_the_visual_branch_alone():
    assert recognise(recogniser(num_anchors=0), torch.randn(2, 8)).keys() == {"visual"}


def test_projecting_in_pieces_changes_nothing():
    linear, states = torch.nn.Linear(6, 3), torch.randn(10, 6)
    torch.testing.assert_close(project(linear, states, torch.device("cpu"), chunk=3), linear(states).detach())


@pytest.mark.parametrize("batch_size", [2, 64])
def test_image_vectors_are_the_models_own_features(batch_size):
    model = recogniser().train()
    images = [Image.new("RGB", (20, 16), (20 * i, 5, 90)) for i in range(5)]
    labels = np.zeros(5, dtype=np.int64)
    source = ImageSource("mine", "test", images, labels, [None] * 5, ["a"])
    transform = build_eval_transform(16, [0.5] * 3, [0.5] * 3, crop_pct=1)
    found = image_vectors(model.vlltr, source, transform, batch_size=batch_size)
    assert model.vlltr.training  # as it was, though dropout was off
    expected = model.vlltr.eval().get_image_features(torch.stack([transform(image) for image in images]))
    torch.testing.assert_close(found, expected.detach())
