"""The recogniser: its two branches, its fusion, its anchors and their sentences, and what `predict` tells."""

import math

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from hf_vlr import VLLTRConfig, VLLTRForImageClassification, VLLTRModel
from hf_vlr.modeling.recognition import language_guided_logits_reference


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def language_by_definition(model, features):
    head = model.head
    return language_guided_logits_reference(
        features,
        head.anchors,
        head.anchor_mask,
        head.query.weight,
        head.key.weight,
        head.norm_query.weight,
        head.norm_query.bias,
        head.norm_key.weight,
        head.norm_key.bias,
        model.vlltr.logit_scale.exp(),
        detach_norm=model.config.detach_norm,
        return_attention=True,
    )


@pytest.mark.parametrize("classes", [1, 0])
def test_a_recogniser_needs_two_classes(tiny, classes):
    with pytest.raises(ValueError, match=f"at least 2 classes, not {classes}"):
        VLLTRForImageClassification(tiny.config(VLLTRConfig, num_labels=classes))


def test_tensors_are_those_of_the_anatomy(tiny):
    model = tiny.recogniser()
    names = set(model.state_dict())
    for prefix in ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale"):
        assert any(name.startswith(f"vlltr.{prefix}") for name in names), prefix
    assert {name for name in names if not name.startswith("vlltr.")} == {
        "head.query.weight",
        "head.key.weight",
        *(f"head.norm_{side}.{part}" for side in ("query", "key") for part in ("weight", "bias")),
        *(f"head.visual.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")),
        *(f"head.{name}" for name in
          ("anchors", "anchor_mask", "class_counts", "sentence_bytes", "sentence_offsets")),
    }  # fmt: skip
    head = model.head
    assert head.anchors.shape == (5, 3, 16)
    assert (head.anchor_mask.shape, head.anchor_mask.dtype) == ((5, 3), torch.bool)
    assert (head.class_counts.shape, head.class_counts.dtype) == ((5,), torch.int64)
    assert (head.sentence_bytes.dtype, head.sentence_offsets.dtype) == (torch.uint8, torch.int64)
    assert head.sentence_offsets.shape == (16,)


def test_a_fresh_head_starts_as_the_identity_and_empty(tiny):
    head = VLLTRForImageClassification(tiny.config(VLLTRConfig, num_labels=5, num_anchors=3)).head
    assert head.query.weight.equal(torch.eye(16))
    assert head.key.weight.equal(torch.eye(16))
    for name in ("anchors", "anchor_mask", "class_counts", "sentence_offsets"):
        assert not getattr(head, name).any()


@pytest.mark.parametrize("vision", ["clip", "resnet", "timm_resnet18"])
@pytest.mark.parametrize("detach_norm", [False, True])
def test_branches_and_fusion_by_their_definition(tiny, vision, detach_norm):
    model, pixel_values = tiny.recogniser(vision=vision, detach_norm=detach_norm), tiny.pixel_values()
    with torch.no_grad():
        output = model(pixel_values, output_anchor_attention=True)
        features = model.vlltr.get_image_features(pixel_values)
        language, attention = language_by_definition(model, features)
    assert output.loss is None
    assert output.visual_logits.equal(model.head.visual(features))
    assert relative(output.language_logits, language) <= 1e-5
    assert output.anchor_attention.shape == (3, 5, 3)
    assert relative(output.anchor_attention, attention) <= 1e-5
    mixture = 0.2 * output.visual_logits.softmax(-1) + 0.8 * output.language_logits.softmax(-1)
    assert relative(output.logits.softmax(-1), mixture) <= 1e-5
    assert model(image_features=features).logits.equal(output.logits)
    assert model(pixel_values).anchor_attention is None


@pytest.mark.parametrize("detach_norm", [False, True])
def test_the_loss_and_its_gradients_are_the_references(tiny, detach_norm):
    model, pixel_values = tiny.recogniser(detach_norm=detach_norm), tiny.pixel_values()
    labels = torch.tensor([0, 3, 4])
    names, parameters = zip(*[(name, p) for name, p in model.named_parameters() if ".text" not in name])
    output = model(pixel_values, labels=labels)
    gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
    features = model.vlltr.get_image_features(pixel_values)
    expected = cross_entropy(model.head.visual(features), labels)
    expected = expected + cross_entropy(language_by_definition(model, features)[0], labels)
    compared = torch.autograd.grad(expected, parameters, allow_unused=True)
    assert relative(output.loss, expected) <= 1e-5
    for name, gradient, reference in zip(names, gradients, compared):
        if reference is None:
            assert gradient is None, name
        elif not name.endswith(("k_proj.bias", "norm_key.bias")):  # mathematically zero in both
            assert relative(gradient, reference) <= 1e-5, name


@pytest.mark.parametrize(("weight", "branch"), [(1, "visual_logits"), (1.0, "visual_logits"), (0.0, "language_logits")])
def test_a_fusion_weight_at_its_end_is_one_branch(tiny, weight, branch):
    output = tiny.recogniser(fusion_weight=weight)(tiny.pixel_values())
    assert output.logits.isfinite().all()
    assert relative(output.logits, output[branch].log_softmax(-1)) <= 1e-6


@pytest.mark.parametrize("visual_head", ["mlp", "linear"])
def test_without_anchors_it_is_a_visual_classifier(tiny, tmp_path, visual_head):
    model = tiny.recogniser(num_anchors=0, text=None, visual_head=visual_head)
    output = model(tiny.pixel_values(), labels=torch.tensor([0, 1, 2]), output_anchor_attention=True)
    assert output.logits.equal(output.visual_logits)
    assert output.language_logits is output.anchor_attention is None
    assert output.loss.equal(cross_entropy(output.logits, torch.tensor([0, 1, 2])))
    assert not any(name.startswith(("head.query", "head.norm")) for name in model.state_dict())
    best = model.predict(tiny.pixel_values(2))[1]["classes"][0]
    assert best["language_score"] is None
    assert best["sentences"] == []
    assert best["score"] == best["visual_score"]
    model.save_pretrained(tmp_path)
    again = VLLTRForImageClassification.from_pretrained(tmp_path)
    assert again(tiny.pixel_values()).logits.equal(output.logits)


def test_text_calls_without_a_text_tower_raise_and_recognition_works(tiny, tmp_path):
    model = tiny.recogniser(text=None)
    model.save_pretrained(tmp_path)
    again = VLLTRForImageClassification.from_pretrained(tmp_path)
    assert again.config.has_text_model is False
    assert again(tiny.pixel_values()).logits.equal(model(tiny.pixel_values()).logits)
    with pytest.raises(ValueError, match="no text tower"):
        again.vlltr.get_text_features(**tiny.texts())
    with pytest.raises(ValueError, match="no text tower"):
        VLLTRModel.from_pretrained(tmp_path)(**tiny.texts(), pixel_values=tiny.pixel_values())


def test_sentences_survive_as_bytes(tiny, tmp_path):
    model = tiny.recogniser()
    expected = [[*row, "", "", ""][:3] for row in tiny.SENTENCES]
    model.save_pretrained(tmp_path)
    for one in (model, VLLTRForImageClassification.from_pretrained(tmp_path)):
        assert [[one.head.sentence(c, m) for m in range(3)] for c in range(5)] == expected
        assert one.head.sentence(0, 2) == "Vulpes vulpes, 狐 🦊"
        assert one.head.anchor_mask.sum(1).tolist() == [3, 2, 1, 3, 0]
        assert one.config.num_sentence_bytes == len("".join("".join(row) for row in expected).encode())
        assert one.config.anchor_selection == {"split": "train", "images_per_class": 50}


def test_new_anchors_take_the_place_of_old_ones(tiny):
    model, pixel_values = tiny.recogniser(), tiny.pixel_values()
    before = model(pixel_values).language_logits
    mask = torch.ones(5, 3, dtype=torch.bool)
    sentences = [[f"{c}{m}" * (c + 1) for m in range(3)] for c in range(5)]
    model.set_anchors(torch.randn(5, 3, 16), mask, sentences)
    after = model(pixel_values)
    assert not after.language_logits.allclose(before)
    assert (
        relative(after.language_logits, language_by_definition(model, model.vlltr.get_image_features(pixel_values))[0])
        <= 1e-5
    )
    assert model.head.sentence(4, 2) == "42" * 5
    assert model.config.anchor_selection is None


@pytest.mark.parametrize("change", ["load_state_dict", "bfloat16"])
def test_what_is_derived_from_anchors_follows_them(tiny, change):
    model, pixel_values = tiny.recogniser(), tiny.pixel_values()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(pixel_values)
    if change == "load_state_dict":
        state["head.anchors"] = torch.randn(5, 3, 16)
        model.load_state_dict(state)
    else:
        model.head.to(torch.bfloat16).float()
    with torch.no_grad():
        features = model.vlltr.get_image_features(pixel_values)
        logits = model(image_features=features).language_logits
        assert relative(logits, language_by_definition(model, features)[0]) <= 1e-5


@pytest.mark.parametrize("fault", ["width", "classes", "mask", "sentences"])
def test_anchors_of_another_shape_are_refused(tiny, fault):
    features = torch.zeros(4 if fault == "classes" else 5, 3, 8 if fault == "width" else 16)
    mask = torch.zeros(5, 4 if fault == "mask" else 3, dtype=torch.bool)
    sentences = [["a"] * (2 if fault == "sentences" else 3)] * 5
    model = tiny.recogniser()
    before = model.head.sentence(0, 0)
    with pytest.raises(ValueError, match=r"anchors must have the shape \(5, 3, 16\)"):
        model.set_anchors(features, mask, sentences)
    assert model.head.sentence(0, 0) == before


def test_predict_takes_images_in_every_form(tiny, tmp_path):
    processor, model = tiny.processor(), tiny.recogniser()
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    model = VLLTRForImageClassification.from_pretrained(tmp_path)
    pictures = [tiny.picture(0), tiny.picture(1, size=(30, 50))]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    expected = model.predict(processor(images=pictures, return_tensors="pt")["pixel_values"])
    assert len(expected) == 2
    assert model.predict(pictures) == expected
    assert model.predict(paths) == model.predict(list(map(str, paths))) == model.predict(tuple(pictures)) == expected
    assert model.predict(pictures, processor=processor) == expected
    one = model.predict(pictures[1])
    assert model.predict(paths[1]) == model.predict(str(paths[1])) == one
    assert one[0]["classes"][0]["score"] == pytest.approx(expected[1]["classes"][0]["score"], rel=1e-5)
    assert model.predict(processor(images=pictures[1], return_tensors="pt")["pixel_values"][0]) == one


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_predict_takes_pictures_of_any_mode(tiny, mode):
    picture = tiny.picture().convert(mode)
    model, processor = tiny.recogniser(), tiny.processor()
    rgb = model.predict(picture.convert("RGB"), processor=processor)
    assert model.predict(picture, processor=processor) == rgb


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_predict_sees_white_where_a_picture_is_transparent(tiny, tmp_path, mode):
    model, processor = tiny.recogniser(), tiny.processor()
    clear = Image.new("RGBA", (40, 32), (0, 0, 0, 0))
    clear.paste((90, 90, 90, 255), (8, 8, 30, 20))
    on_white = Image.new("RGB", (40, 32), "white")
    on_white.paste((90, 90, 90), (8, 8, 30, 20))
    picture = clear.convert(mode)
    picture.save(tmp_path / "clear.png")
    assert picture.has_transparency_data
    expected = model.predict(on_white, processor=processor)
    assert model.predict(picture, processor=processor) == expected
    assert model.predict(tmp_path / "clear.png", processor=processor) == expected


def test_predict_names_a_file_that_is_not_there(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.png"):
        tiny.recogniser().predict(tmp_path / "missing.png", processor=tiny.processor())


def test_predict_without_a_processor_says_what_to_pass(tiny):
    with pytest.raises(ValueError, match="pass processor= or pixel_values"):
        tiny.recogniser().predict(tiny.picture())


def test_predict_tells_names_scores_and_sentences(tiny):
    model, pixel_values = tiny.recogniser().train(), tiny.pixel_values()
    results = model.predict(pixel_values, top_k=99, num_sentences=2)
    assert model.training
    model.eval()
    output = model(pixel_values, output_anchor_attention=True)
    fused, visual, language = (output[name].softmax(-1) for name in ("logits", "visual_logits", "language_logits"))
    for row, result in enumerate(results):
        classes = result["classes"]
        assert [one["index"] for one in classes] == fused[row].argsort(descending=True).tolist()
        assert {name: classes[0][name] for name in ("label", "index", "score")} == {
            name: value for name, value in result.items() if name != "classes"
        }
        assert sum(one["score"] for one in classes) == pytest.approx(1, abs=1e-5)
        for one in classes:
            index = one["index"]
            assert one["label"] == tiny.CLASS_NAMES[index]
            assert one["train_images"] == [120, 60, 25, 7, 1][index]
            assert one["score"] == fused[row, index].item()
            assert one["visual_score"] == visual[row, index].item()
            assert one["language_score"] == language[row, index].item()
            attention = output.anchor_attention[row, index]
            best = attention.argsort(descending=True).tolist()[: min(2, len(tiny.SENTENCES[index]))]
            assert [s["text"] for s in one["sentences"]] == [tiny.SENTENCES[index][m] for m in best]
            assert [s["weight"] for s in one["sentences"]] == [attention[m].item() for m in best]


def test_predict_lists_no_more_than_asked(tiny):
    result = tiny.recogniser().predict(tiny.pixel_values(1), top_k=2, num_sentences=0)[0]
    assert len(result["classes"]) == 2
    assert all(one["sentences"] == [] for one in result["classes"])


def test_weights_of_a_class_add_up_to_one(tiny):
    for one in tiny.recogniser().predict(tiny.pixel_values(1), num_sentences=9)[0]["classes"]:
        total = math.fsum(sentence["weight"] for sentence in one["sentences"])
        assert total == pytest.approx(1 if tiny.SENTENCES[one["index"]] else 0, abs=1e-6)


@pytest.mark.parametrize("vision", ["clip", "resnet", "timm_resnet18"])
def test_bfloat16(tiny, tmp_path, vision):
    model, pixel_values = tiny.recogniser(vision=vision), tiny.pixel_values()
    model.save_pretrained(tmp_path)
    half = VLLTRForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.vlltr.logit_scale.equal(model.vlltr.logit_scale)
    assert half.head.anchors.dtype in (torch.bfloat16, torch.float32)
    assert half.head.sentence(0, 2) == "Vulpes vulpes, 狐 🦊"
    expected = model.predict(pixel_values, top_k=5)
    for result, reference in zip(half.predict(pixel_values, top_k=5), expected):
        scores = {one["index"]: one["language_score"] for one in result["classes"]}
        for one in reference["classes"]:
            # logits reach the scale, 14.3, and carry its 2^-8 of rounding from each of several layers
            assert scores[one["index"]] == pytest.approx(one["language_score"], abs=0.15)


def test_a_head_in_bfloat16_keeps_its_constants_in_float32(tiny, tmp_path):
    """What `dtype=torch.bfloat16` loads: anchors that are multiplied as they are, everything after that in float32."""
    tiny.recogniser().save_pretrained(tmp_path)
    half = VLLTRForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    anchors = half.head.anchors
    gram, rstd = half.head.constants()
    assert anchors.dtype == torch.bfloat16
    assert gram.dtype == rstd.dtype == torch.float32
    assert relative(gram.double(), anchors.double() @ anchors.double().mT) <= 1e-6
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        logits = half(image_features=features).language_logits
        wanted = language_by_definition(half.double(), features.double())[0]
    assert logits.dtype == torch.float32
    assert 0 < (logits.double() - wanted).abs().max() < 2**-7 * wanted.abs().max()


def test_it_can_be_trained_after_it_has_predicted(tiny):
    model, labels = tiny.recogniser(), torch.tensor([0, 1, 2])
    features = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))

    def gradient():
        return torch.autograd.grad(model(image_features=features, labels=labels).loss, model.head.query.weight)[0]

    expected = gradient()
    model.head.float()  # what is derived from the anchors is computed anew
    with torch.inference_mode():
        model(image_features=features)
    assert torch.equal(gradient(), expected)


def test_gradient_checkpointing_changes_no_gradient(tiny):
    model, pixel_values = tiny.recogniser().train(), tiny.pixel_values()

    def gradients():
        model.zero_grad()
        model(pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.vlltr.vision_model.modules())
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(plain[name].equal(again[name]) for name in plain)


@pytest.mark.slow
def test_it_compiles_in_training_and_for_prediction(tiny):
    model, pixel_values = tiny.recogniser(), tiny.pixel_values()
    labels = torch.tensor([0, 1, 2])
    compiled = torch.compile(model, backend="eager")
    expected = model(pixel_values, labels=labels)
    output = compiled(pixel_values, labels=labels)
    assert relative(output.logits, expected.logits) <= 1e-6
    gradient, reference = (torch.autograd.grad(o.loss, model.head.query.weight)[0] for o in (output, expected))
    assert relative(gradient, reference) <= 1e-6
