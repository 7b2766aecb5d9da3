"""VL-LTR's checkpoints: every published size, what the user says about classes, and what is refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlr.convert import convert, restore
from hf_vlr.convert.archive import read_archive
from hf_vlr.convert.conversion import build, fit_image_size, fit_positions
from hf_vlr.convert.plan import Options
from hf_vlr.convert.positions import resize_positions
from hf_vlr.convert.vl_ltr import plan_vl_ltr
from hf_vlr.errors import UserError
from hf_vlr.modeling import VLLTRForImageClassification, VLLTRModel

GOLDEN = Path(__file__).with_name("golden")


def published(file: str) -> dict[str, tuple[str, dict[str, tuple[tuple[int, ...], torch.dtype]]]]:
    """Header and `{name: (shape, dtype)}` of every architecture of a key list.

    For other numbers of classes the list names the head's tensors only; the tower's are those of 1000 classes.
    """
    found: dict[str, tuple[str, dict]] = {}
    for line in (GOLDEN / file).read_text().splitlines():
        if line.startswith("====="):
            header = line.strip("= ")
            found[header.partition(":")[0]] = (header, {})
        elif line.strip():
            name, shape, dtype, _ = line.split("\t")
            shape = tuple(int(number) for number in re.findall(r"\d+", shape))
            found[header.partition(":")[0]][1][name] = (shape, getattr(torch, dtype.removeprefix("torch.")))
    for key, (_, entries) in found.items():
        whole = found[re.sub(r"num_classes=\d+", "num_classes=1000", key)][1]
        entries |= {name: entry for name, entry in whole.items() if name not in entries}
    return found


SIZES = published("vl_ltr_state_dict_keys.txt")


@pytest.fixture(scope="module")
def stage_2():
    return read_archive(GOLDEN / "vlltr_lgr_vit_tiny.pth").weights()


@pytest.mark.parametrize("size", SIZES)
def test_every_published_size_has_a_place_for_every_tensor(size):
    header, entries = SIZES[size]
    # a single number, shown as a tensor of each shape: nothing of gigabytes is allocated
    state = {name: torch.zeros((), dtype=dtype).expand(shape) for name, (shape, dtype) in entries.items()}
    assert len(state) == int(re.search(r"(\d+) tensors", header)[1])
    plan = plan_vl_ltr(state, {}, Options())
    with torch.device("meta"):
        model = plan.model_class(plan.config)
        ours, moves = plan.keys.forward({name: torch.empty(shape) for name, (shape, _) in entries.items()})
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in (ours | plan.made).items()} == expected
    assert [move.source for move in moves] == list(entries)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    anchors = model.head.anchors.numel() if "head.anchors" in ours else 0
    assert numbers + anchors == int(re.search(r"(\d+) parameters", header)[1])
    assert plan.config.vision_config.image_size == 224
    heads = {"r50": 32, "vit16": 12}[re.search("r50|vit16", size)[0]]
    assert plan.config.vision_config.num_attention_heads == heads
    assert not plan.config.has_text_model or plan.config.text_config.num_attention_heads == 8


def test_the_published_fusion_weight_and_its_exceptions(stage_2):
    def weight(arguments, **options):
        return plan_vl_ltr(stage_2, arguments, Options(**options)).config.fusion_weight

    assert weight({"data_set": "IMNET_LT"}) == 0.2
    assert weight({"data_set": "INAT18"}) == 0.7
    assert weight({}) == 0.2
    assert weight({"data_set": "INAT18"}, fusion_weight=0.0) == 0.0
    with pytest.raises(UserError, match=r"--fusion-weight must lie in \[0, 1\], not 1.5"):
        weight({}, fusion_weight=1.5)
    many = dict(stage_2) | {"text_embeddings": torch.zeros(1).expand(8142, 5, 32)}
    assert plan_vl_ltr(many, {}, Options()).config.fusion_weight == 0.7


def test_the_norm_gradient_follows_the_checkpoint_unless_told(stage_2):
    def detached(model, **options):
        return plan_vl_ltr(stage_2, {"model": model}, Options(**options)).config.detach_norm

    assert not detached("LGR_vit16")
    assert detached("LGR_vit16_v_detach_img_grad")
    assert detached("LGR_vit16", detach_norm=True)
    assert not detached("LGR_vit16_v_detach_img_grad", detach_norm=False)


def test_the_mask_from_rows_counts_and_texts(stage_2, tmp_path):
    golden = load_file(GOLDEN / "vlltr_lgr_vit_tiny.io.safetensors")
    counts = golden["num_sentences"].tolist()
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    (tmp_path / "counts.txt").write_text("".join(f"{count}\n" for count in counts))
    texts = tmp_path / "texts"
    texts.mkdir()
    for label, count in enumerate(counts):
        (texts / f"desc_{label}.txt").write_text("".join(f"Sentence {i}.\n" for i in range(count)))
    choices = (
        Options(),
        Options(sentence_counts=str(tmp_path / "counts.json")),
        Options(sentence_counts=str(tmp_path / "counts.txt")),
        Options(texts=str(texts)),
    )
    for options in choices:
        mask = plan_vl_ltr(stage_2, {}, options).made["head.anchor_mask"]
        assert torch.equal(~mask, golden["padding_mask"])
    (tmp_path / "few.json").write_text(json.dumps([1] * 7))
    with pytest.raises(UserError, match="more anchors in the checkpoint than it has sentences"):
        plan_vl_ltr(stage_2, {}, Options(sentence_counts=str(tmp_path / "few.json")))


def test_names_and_counts_of_the_user_reach_the_model(stage_2, tmp_path):
    (tmp_path / "names.txt").write_text("red_fox\nowl\nowl\nlynx\nwolf\nhare\nelk\n")
    (tmp_path / "images.txt").write_text("9\n8\n7\n6\n5\n4\n3\n")
    plan = plan_vl_ltr(
        stage_2, {}, Options(labels=str(tmp_path / "names.txt"), class_counts=str(tmp_path / "images.txt"))
    )
    assert list(plan.config.id2label.values())[:3] == ["red fox", "owl (1)", "owl (2)"]
    assert plan.config.label2id["owl (2)"] == 2
    assert plan.made["head.class_counts"].tolist() == [9, 8, 7, 6, 5, 4, 3]


def test_what_does_not_fit_is_listed_by_name(stage_2):
    def converted(state):
        plan = plan_vl_ltr(state, {}, Options())
        ours, _ = plan.keys.forward(plan.state)
        return build(plan, ours | plan.made, torch.float32)

    state = dict(stage_2)
    del state["visual.ln_post.bias"], state["visual.transformer.resblocks.1.ln_2.weight"]
    with pytest.raises(UserError, match=r"2 missing: .*layers\.1\.layer_norm2\.weight, .*post_layernorm\.bias"):
        converted(state)
    with pytest.raises(UserError, match=r"1 tensors of the checkpoint have no place in this model: visual\.extra"):
        converted(dict(stage_2) | {"visual.extra": torch.zeros(2)})
    with pytest.raises(UserError, match=r"1 of another shape: .*post_layernorm\.bias \(3,\) in place of \(64,\)"):
        converted(dict(stage_2) | {"visual.ln_post.bias": torch.zeros(3)})
    # of many names every family is there, none is merely counted
    many = dict(stage_2) | {
        f"visual.extra.{i}.{leaf}": torch.zeros(2) for i in range(15) for leaf in ("weight", "bias")
    }
    with pytest.raises(
        UserError, match=r"30 tensors .*: visual\.extra\.\*\.weight \(15\), visual\.extra\.\*\.bias \(15\)$"
    ):
        converted(many)
    with pytest.raises(UserError, match="this is no VL-LTR checkpoint"):
        converted({"fc.weight": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", ["vlltr_cvlp_vit_tiny", "vlltr_cvlp_rn_tiny"])
def test_another_image_size_interpolates_the_positions(name):
    plan = plan_vl_ltr(read_archive(GOLDEN / f"{name}.pth").weights(), {}, Options())
    ours, _ = plan.keys.forward(plan.state)
    size = plan.image.size
    image = fit_image_size(plan, 2 * size)
    ((_, before, after),) = fit_positions(ours, plan.config)
    source = next(value for key, value in plan.state.items() if re.search(r"visual\..*positional_embedding", key))
    assert (before, after) == (len(source), 4 * (len(source) - 1) + 1)
    assert (image.size, image.resize) == (2 * size, 2 * plan.image.resize)
    model = build(plan, ours | plan.made, torch.float32).eval()
    assert model.get_image_features(torch.randn(1, 3, 2 * size, 2 * size)).isfinite().all()
    with pytest.raises(ValueError, match=r"size|positions"):
        model.get_image_features(torch.randn(1, 3, size, size))


def test_interpolated_positions_keep_what_a_grid_means():
    torch.manual_seed(0)
    positions = torch.randn(1 + 9, 4)
    assert resize_positions(positions, 3, 1) is positions
    assert torch.equal(resize_positions(positions, 6, 1)[:1], positions[:1])
    flat = torch.ones(1 + 9, 4)
    assert torch.allclose(resize_positions(flat, 6, 1), torch.ones(37, 4))
    # columns of a ramp along x stay equal along y, and keep rising
    ramp = torch.arange(5.0).repeat(5)[:, None]
    wider = resize_positions(ramp, 10, 0).view(10, 10)
    assert torch.allclose(wider, wider[:1].expand(10, 10), atol=1e-6)
    assert bool((wider[0].diff() > 0).all())
    with pytest.raises(UserError, match="no square grid"):
        resize_positions(positions, 3, 2)


def test_stage_1_brings_the_text_tower_of_stage_2(tmp_path):
    first, second = GOLDEN / "vlltr_cvlp_vit_tiny.pth", GOLDEN / "vlltr_lgr_vit_tiny.pth"
    convert("vl-ltr", second, tmp_path / "out", stage1=str(first), tokenizer="none")
    convert("vl-ltr", first, tmp_path / "first", tokenizer="none")
    golden = load_file(GOLDEN / "vlltr_cvlp_vit_tiny.io.safetensors")
    both, one = VLLTRModel.from_pretrained(tmp_path / "out"), VLLTRModel.from_pretrained(tmp_path / "first")
    assert torch.equal(both.get_text_features(golden["input_ids"]), one.get_text_features(golden["input_ids"]))
    restored = restore(VLLTRForImageClassification.from_pretrained(tmp_path / "out"), "vl-ltr")
    assert all(torch.equal(restored[name], tensor) for name, tensor in read_archive(second).weights().items())
    with pytest.raises(UserError, match=r"is not the stage 1 of this model: its vision tower is another"):
        convert("vl-ltr", second, tmp_path / "other", stage1=str(GOLDEN / "vlltr_cvlp_rn_tiny.pth"))
