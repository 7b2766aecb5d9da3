"""The linear text encoder: a text is the mean of its tokens' rows, and it is a tower like any other."""

import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel

from hf_vlr import UniCLModel, VLLTRForImageClassification
from hf_vlr.errors import UserError
from hf_vlr.modeling.configuration_embedding import TextEmbeddingConfig
from hf_vlr.modeling.configuration_unicl import tower_config
from hf_vlr.modeling.modeling_embedding import TextEmbeddingModel
from hf_vlr.modeling.towers import build_tower, encode_text, text_length, text_width
from hf_vlr.training.model_builder import build_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.tower_specs import resolve_text

SENTENCES = ["a red square", "a dotted star on a blue field"]


def tower(**settings) -> TextEmbeddingModel:
    torch.manual_seed(0)
    return TextEmbeddingModel(TextEmbeddingConfig(vocab_size=20, hidden_size=4, **settings)).eval()


def mean_of_rows_reference(table, input_ids, attention_mask):
    """The mean of the attended rows, text by text."""
    return torch.stack(
        [
            torch.stack([table[token] for token, kept in zip(ids, mask) if kept]).mean(0)
            for ids, mask in zip(input_ids, attention_mask)
        ]
    )


def test_a_text_is_the_mean_of_the_rows_of_its_tokens():
    model = tower()
    ids = torch.tensor([[1, 5, 7, 2], [1, 9, 2, 0], [1, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    found = encode_text(model, ids, mask, None, "mean")
    torch.testing.assert_close(found, mean_of_rows_reference(model.token_embedding.weight, ids, mask))
    assert encode_text(model, ids[:, [0, 2, 1, 3]], mask[:, [0, 2, 1, 3]], None, "mean")[0].allclose(found[0])
    assert encode_text(model, ids[:1], None, None, "mean").allclose(found[:1])


def test_only_the_rows_of_attended_tokens_have_a_gradient():
    model = tower()
    ids, mask = torch.tensor([[1, 5, 2, 0], [1, 5, 9, 2]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    encode_text(model, ids, mask, None, "mean").sum().backward()
    expected = torch.zeros(20)
    expected[[1, 5]] = 1 / 3 + 1 / 4
    expected[2], expected[9] = 1 / 3 + 1 / 4, 1 / 4
    torch.testing.assert_close(model.token_embedding.weight.grad, expected[:, None].expand(20, 4))


def test_it_is_built_and_measured_as_other_towers_are():
    config = tower_config({"model_type": "text_embedding", "vocab_size": 30, "hidden_size": 6}, "clip_text_model")
    assert isinstance(config, TextEmbeddingConfig)
    model = build_tower(config)
    assert isinstance(model, TextEmbeddingModel)
    assert (text_width(model, "mean"), text_length(config)) == (6, 77)
    assert [name for name, _ in model.named_parameters()] == ["token_embedding.weight"]
    assert model.get_input_embeddings() is model.token_embedding
    with pytest.raises(ValueError, match="'text_embedding' text tower has no pooler; use text_pooling cls or mean"):
        encode_text(model, torch.ones(1, 3, dtype=torch.int64), None, None, "pooler")
    with pytest.raises(StrictDataclassClassValidationError, match="hidden_size must be positive"):
        TextEmbeddingConfig(hidden_size=0)


def test_fresh_rows_have_the_configured_spread():
    torch.manual_seed(0)
    table = TextEmbeddingModel(TextEmbeddingConfig(vocab_size=500, hidden_size=16)).token_embedding.weight
    assert table.std().item() == pytest.approx(0.02, rel=0.03)


def test_over_long_texts_are_cut_to_the_configured_length():
    model = tower(max_position_embeddings=5, eos_token_id=2)
    ids = torch.tensor([[1, *range(5, 12), 2]])
    short = torch.tensor([[1, 5, 6, 7, 2]])
    found = encode_text(model, ids, torch.ones_like(ids), None, "mean")
    assert found.equal(encode_text(model, short, torch.ones_like(short), None, "mean"))


def test_the_specification_learns_its_tokens_from_the_texts():
    found = resolve_text("scratch:embedding", SENTENCES, 16)
    assert (found.pooling, found.weights, found.config.model_type) == ("mean", None, "text_embedding")
    assert found.config.vocab_size == len(found.tokenizer)
    assert (found.config.max_position_embeddings, found.tokenizer.model_max_length) == (16, 16)
    assert (found.config.eos_token_id, found.config.pad_token_id) == (
        found.tokenizer.eos_token_id,
        found.tokenizer.pad_token_id,
    )
    assert found.tokenizer.tokenize("dotted star") == ["Ġdotted", "Ġstar"]


def composed(*words: str):
    words = ("model.projection_dim=8", "data.image_size=32", "text=scratch:embedding", "vision=scratch:resnet", *words)
    return build_dual_encoder(override_recipe(Recipe(task="unicl"), list(words)), "unicl", SENTENCES)


def test_a_dual_encoder_is_composed_with_it():
    encoder = composed()
    assert encoder.model.config.text_pooling == "mean"
    tokens = encoder.processor.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    features = encoder.model.get_text_features(**tokens)
    assert features.shape == (2, 8)
    table = encoder.model.text_model.token_embedding.weight
    expected = mean_of_rows_reference(table, tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(features, expected @ encoder.model.text_projection.weight.t())
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing: neither tower"):
        composed("model.gradient_checkpointing=true")


@pytest.mark.parametrize("kind", [UniCLModel, VLLTRForImageClassification])
def test_it_is_saved_and_loaded_in_a_model(tiny, tmp_path, kind):
    settings = {"model_type": "text_embedding", "vocab_size": 514, "hidden_size": 24}
    model = tiny.model(kind, text_config=settings, text_pooling="mean")
    model.save_pretrained(tmp_path)
    again, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    encoder, loaded = (getattr(one, "vlltr", one) for one in (model, again))
    assert isinstance(loaded.text_model, TextEmbeddingModel)
    assert loaded.get_text_features(**tiny.texts()).equal(encoder.get_text_features(**tiny.texts()))


@pytest.mark.slow
def test_a_process_without_the_package_loads_it(tiny, tmp_path):
    """Its code travels with the checkpoint: the folder alone is enough."""
    settings = {"model_type": "text_embedding", "vocab_size": 514, "hidden_size": 24}
    model = tiny.model(UniCLModel, text_config=settings, text_pooling="mean")
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path).text_model) is TextEmbeddingModel
    script = f"""
import sys
sys.modules["hf_vlr"] = None
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(type(model.text_model).__name__, *model.text_model(torch.tensor([[3, 4]])).last_hidden_state.flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    name, *numbers = done.stdout.split()
    assert name == "TextEmbeddingModel"
    assert [float(one) for one in numbers] == model.text_model.token_embedding.weight[3:5].flatten().tolist()
