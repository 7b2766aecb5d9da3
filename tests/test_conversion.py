"""A conversion from the command line to the pipelines, and what is left behind when it fails: nothing."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    pipeline,
)

from hf_vlr.cli.main import main
from hf_vlr.convert import convert, restore
from hf_vlr.convert.archive import read_archive
from hf_vlr.errors import UserError
from hf_vlr.modeling import UniCLModel, VLLTRForImageClassification, VLLTRModel
from hf_vlr.training.model_builder import load_dual_encoder
from hf_vlr.training.options import DataOptions, Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.run import run
from hf_vlr.training.run_data import transforms

GOLDEN = Path(__file__).with_name("golden")
FILES = {path.stem: "unicl" if path.stem.startswith("unicl") else "vl-ltr" for path in sorted(GOLDEN.glob("*.pth"))}
STAGE_2 = GOLDEN / "vlltr_lgr_vit_tiny.pth"


@pytest.fixture
def hf_vlr(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def clip_file(tiny, tmp_path_factory) -> tuple[Path, Path]:
    """A CLIP of 514 tokens as a torch file with OpenAI's names in float16, and the folder of its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = UniCLModel(tiny.config()).half()
    torch.save({"state_dict": restore(model, "openai-clip")}, folder / "clip.pt")
    tiny.processor().tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "clip.pt", folder / "tokenizer"


@pytest.mark.parametrize("name", FILES)
def test_one_command_converts_each_golden_file(hf_vlr, tmp_path, name):
    code, out, err = hf_vlr(
        "convert", "--from", FILES[name], GOLDEN / f"{name}.pth", tmp_path / "out", "--tokenizer", "none"
    )
    assert code == 0, err
    assert err.splitlines()[0] == f"reading {name}.pth …"
    assert out.splitlines()[-1] == f"written to {tmp_path / 'out'}"
    model = AutoModel.from_pretrained(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kind = {"unicl": "UniCLModel", "cvlp": "VLLTRModel", "lgr": "VLLTRForImageClassification"}
    kind = next(value for key, value in kind.items() if key in name)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    assert re.search(rf"^{kind}: {len(tensors)} tensors, {numbers:,} numbers, float32", out, re.M)
    assert type(model).__name__ == ("VLLTRModel" if "lgr" in name else kind)


def test_the_table_shows_families_and_what_was_done(hf_vlr, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = hf_vlr("convert", "--from", "vl-ltr", STAGE_2, tmp_path / "out", "--image-size", 64)
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    tower = "vlltr.vision_model"
    for row in (
        ["checkpoint", "model", "tensors", "parameters", "dtype", "what"],
        ["text_embeddings", "head.anchors", "1", "1,120", "float32"],
        ["visual.proj", "vlltr.visual_projection.weight", "1", "2,048", "float32", "transposed"],
        [
            *("visual.positional_embedding", f"{tower}.embeddings.position_embedding.weight"),
            *("1", "4,160", "float32", "17 to 65 positions"),
        ],
        [
            *("visual.transformer.resblocks.*.attn.in_proj_weight|in_proj_bias",),
            *(f"{tower}.encoder.layers.*.self_attn.q|k|v_proj.weight|bias", "12", "24,960", "float32", "split in 3"),
        ],
        ["-", "head.anchor_mask", "1", "35", "bool", "made"],
        ["fusion weight 0.2 of the visual branch (published for IMNET_LT)"],
        ["28 of 35 anchors are real (rows that are not all zero); their sentences are not in the checkpoint"],
    ):
        assert row in rows


def test_the_record_names_every_tensor(tmp_path):
    convert("vl-ltr", STAGE_2, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    state = VLLTRForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    targets = [target for row in record["moves"] for target in row["targets"]]
    assert sorted([*targets, *record["made"]]) == sorted(state)
    assert (record["format"], record["sources"]) == ("vl-ltr", [STAGE_2.name])
    assert {(row["dtype"], *row["shape"]) for row in record["moves"] if row["source"] == "visual.proj"} == {
        ("float32", 64, 32)
    }


def test_the_card_says_where_it_came_from_and_no_path(tmp_path):
    convert("vl-ltr", STAGE_2, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: hf_vlr\npipeline_tag: image-classification\n")
    assert f"| source | `{STAGE_2.name}` |" in card
    assert re.search(r"\| SHA-256 \| [0-9a-f]{64} \|", card)
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_converted_recogniser_predicts_and_classifies_through_the_pipeline(tiny, hf_vlr, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    code, _, err = hf_vlr("convert", "--from", "vl-ltr", STAGE_2, tmp_path / "out", "--labels", tmp_path / "names.txt")
    assert code == 0, err
    picture = tiny.picture()
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    (found,) = model.predict([picture], top_k=7)
    assert {one["label"] for one in found["classes"]} == set("abcdefg")
    assert all(one["train_images"] is None for one in found["classes"])
    scores = pipeline("image-classification", model=str(tmp_path / "out"))(picture, top_k=7)
    assert [one["label"] for one in scores] == [one["label"] for one in found["classes"]]
    assert [one["score"] for one in scores] == pytest.approx([one["score"] for one in found["classes"]], rel=1e-5)
    with pytest.raises(ValueError, match="this checkpoint has no text tower"):
        model.vlltr.get_text_features(torch.ones(1, 3, dtype=torch.int64))
    picture.save(tmp_path / "picture.png")
    code, out, err = hf_vlr("predict", tmp_path / "out", tmp_path / "picture.png", "--top", 1)
    assert code == 0, err
    assert "training images" not in out and "(a sentence that the checkpoint does not keep)" in out


@pytest.mark.parametrize("model_type", ["unicl", "vlltr"])
def test_a_converted_clip_runs_zero_shot_through_the_pipeline(tiny, clip_file, tmp_path, model_type):
    file, tokenizer = clip_file
    out = tmp_path / "out"
    convert("openai-clip", file, out, tokenizer=str(tokenizer), model_type=model_type, text_heads=2, vision_heads=2)
    model = AutoModelForZeroShotImageClassification.from_pretrained(out)
    assert type(model) is (VLLTRModel if model_type == "vlltr" else UniCLModel)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    labels, picture = ["a fox", "two wolves"], tiny.picture()
    classify = pipeline("zero-shot-image-classification", model=str(out))
    found = {one["label"]: one["score"] for one in classify(picture, candidate_labels=labels, hypothesis_template="{}")}
    inputs = AutoProcessor.from_pretrained(out)(text=labels, images=picture, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = dict(zip(labels, model(**inputs).logits_per_image.softmax(-1)[0].tolist()))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_text_means_the_same_padded_or_not(clip_file, tmp_path):
    file, tokenizer = clip_file
    convert("openai-clip", file, tmp_path / "out", tokenizer=str(tokenizer), text_heads=2, vision_heads=2)
    model, processor = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModel, AutoProcessor))
    short = processor(text=["a fox"], return_tensors="pt")
    long = processor(text=["a fox"], return_tensors="pt", padding="max_length")
    assert long["input_ids"].shape[1] == model.config.text_config.max_position_embeddings
    with torch.no_grad():
        one, other = (model.get_text_features(**inputs) for inputs in (short, long))
    assert ((one - other).norm() / one.norm()).item() <= 1e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_another_precision(tmp_path, dtype):
    convert("vl-ltr", STAGE_2, tmp_path / "out", dtype=dtype)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["head.anchors"].dtype == getattr(torch, dtype)
    whole = convert("vl-ltr", STAGE_2, tmp_path / "whole").tensors
    assert tensors["vlltr.logit_scale"].dtype == torch.float32
    assert torch.equal(tensors["vlltr.logit_scale"], whole["vlltr.logit_scale"])
    assert torch.equal(tensors["head.query.weight"], whole["head.query.weight"].to(getattr(torch, dtype)))
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == model.head.query.weight.dtype == getattr(torch, dtype)
    assert model.vlltr.logit_scale.dtype == torch.float32
    assert model.predict(torch.zeros(1, 3, 32, 32))[0]["score"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "vl-ltr", "MISSING"], "no-such-file"),
        (["--from", "unicl", STAGE_2], "error: "),
        (["--from", "openai-clip", STAGE_2], "error: "),
        (["--from", "vl-ltr", STAGE_2, "--labels", "MISSING"], "no-such-file"),
        (["--from", "vl-ltr", GOLDEN / "vlltr_cvlp_vit_tiny.pth", "--tokenizer", "TOKENIZER"], "--tokenizer none"),
        (["--from", "vl-ltr", GOLDEN / "vlltr_cvlp_vit_tiny.pth", "--text-heads", "7"], "--text-heads"),
        (["--from", "vl-ltr", GOLDEN / "vlltr_lgr_rn_tiny.pth", "--image-size", "100"], "no multiple of 32"),
        (["--from", "unicl", GOLDEN / "unicl_swin_tiny.io.safetensors"], "error: "),
    ],
)
def test_what_fails_says_so_in_one_line_and_leaves_nothing(hf_vlr, clip_file, tmp_path, words, message):
    (tmp_path / "work").mkdir()
    standing = {"MISSING": tmp_path / "no-such-file", "TOKENIZER": clip_file[1]}
    format, kind, source, *more = [standing.get(word, word) for word in words]
    code, out, err = hf_vlr("convert", format, kind, source, tmp_path / "work" / "out", *more)
    assert code == 2
    assert out == ""
    complaint = [line for line in err.splitlines() if not line.endswith("…")]
    assert len(complaint) == 1 and complaint[0].startswith("error: ") and message in complaint[0]
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("format", "source", "options", "message"),
    [
        (
            "vl-ltr",
            "vlltr_cvlp_vit_tiny",
            {"labels": "nowhere"},
            "--labels is for stage 2, and this checkpoint is of st",
        ),
        (
            "vl-ltr",
            "vlltr_lgr_vit_tiny",
            {"model_type": "unicl"},
            "--model-type means nothing for vl-ltr; it is for open",
        ),
        (
            "vl-ltr",
            "vlltr_lgr_vit_tiny",
            {"tokenizer": "nowhere"},
            "--tokenizer is for a text tower, and this checkpoin",
        ),
        ("unicl", "unicl_swin_tiny", {"vision_heads": 2}, "--vision-heads means nothing for unicl"),
        (
            "hf-clip",
            "unicl_swin_tiny",
            {"fusion_weight": 0.5},
            "--fusion-weight means nothing for hf-clip; it is for v",
        ),
        (
            "vl-ltr",
            "vlltr_lgr_vit_tiny",
            {"image_size": 100_000},
            "--image-size must lie between 1 and 2048, not 100000",
        ),
        ("vl-ltr", "vlltr_lgr_vit_tiny", {"image_size": -32}, "--image-size must lie between 1 and 2048, not -32"),
    ],
)
def test_an_option_without_a_meaning_is_refused(tmp_path, format, source, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        convert(format, GOLDEN / f"{source}.pth", tmp_path / "out", **{"tokenizer": None, **options})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_another_kind_are_not_cast(tmp_path):
    state = read_archive(STAGE_2).weights()
    for name, dtype in (("visual.conv1.weight", torch.int64), ("logit_scale", torch.complex64)):
        torch.save({"model": {**state, name: state[name].to(dtype)}}, tmp_path / "file.pth")
        with pytest.raises(UserError, match=rf"1 of another kind: vlltr\..* {str(dtype).removeprefix('torch.')}"):
            convert("vl-ltr", tmp_path / "file.pth", tmp_path / "out")


def test_code_beside_a_tokenizer_is_neither_run_nor_offered(clip_file, tmp_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    (folder / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}')
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "Evil"}))

    def asked(*_):
        raise AssertionError("the user was asked whether to run it")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(UserError, match="no tokenizer in"):
        convert("openai-clip", clip_file[0], tmp_path / "out", tokenizer=str(folder), text_heads=2, vision_heads=2)
    assert not (tmp_path / "marker").exists()


def test_a_folder_that_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "file" / "out", tmp_path / "link"):
        with pytest.raises(UserError, match=r"cannot be written|already exists"):
            convert("vl-ltr", tmp_path / "no-such-file", out)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert convert("vl-ltr", STAGE_2, "~/out").folder == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "out"]


def test_an_occupied_folder_is_left_alone(hf_vlr, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, err = hf_vlr("convert", "--from", "vl-ltr", STAGE_2, tmp_path)
    assert code == 2 and "already exists" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(VLLTRForImageClassification, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        convert("vl-ltr", STAGE_2, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_unknown_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="unknown format clip; there are vl-ltr, unicl"):
        convert("clip", STAGE_2, tmp_path / "out")
    with pytest.raises(UserError, match="dtype int8 is none of float32"):
        convert("vl-ltr", STAGE_2, tmp_path / "out", dtype="int8")
    with pytest.raises(UserError, match="cannot write the format clip"):
        restore(UniCLModel.from_pretrained(convert("vl-ltr", GOLDEN / "vlltr_cvlp_vit_tiny.pth", tmp_path / "x",
                                                   tokenizer="none").folder), "clip")  # fmt: skip


@pytest.mark.parametrize("vision", ["vit", "resnet"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")
def test_an_archive_as_openai_published_them(tmp_path, vision):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is in the extra [convert]")
    towers = {
        "vit": {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32},
        "resnet": {"layers": (1, 2, 1, 1), "width": 32, "image_size": 64},
    }
    text = {"context_length": 20, "vocab_size": 512, "width": 64, "heads": 1, "layers": 2}
    torch.manual_seed(0)
    original = open_clip.CLIP(32, towers[vision], text, quick_gelu=True).eval()
    size = towers[vision]["image_size"]
    images, texts = torch.randn(2, 3, size, size), torch.randint(1, 500, (2, 20))
    texts[:, 9] = 511
    torch.jit.save(torch.jit.trace(original, (images, texts)), tmp_path / "archive.pt")
    convert("openai-clip", tmp_path / "archive.pt", tmp_path / "out", tokenizer="none")
    model = AutoModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        pairs = [
            (model.get_image_features(images), original.encode_image(images)),
            (model.get_text_features(texts), original.encode_text(texts)),
        ]
    for ours, theirs in pairs:
        assert ((ours - theirs).norm() / theirs.norm()).item() <= 1e-5
    state = original.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in restore(model, "openai-clip").items())


def test_siglip_pads_as_the_tokenizer_it_is_given(tiny, tmp_path):
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layers, "vocab_size": 514, "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = SiglipConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 16})
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "siglip")
    tokenizer = tiny.processor().tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    convert("hf-clip", tmp_path / "siglip", tmp_path / "out", tokenizer=str(tmp_path / "tokenizer"))
    model, processor = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModel, AutoProcessor))
    assert model.config.text_config.pad_token_id == tokenizer.pad_token_id
    assert processor.tokenizer.model_max_length == 16
    inputs = processor(text=["a fox", "two grey wolves"], images=tiny.picture(), return_tensors="pt", padding=True)
    original = SiglipModel.from_pretrained(tmp_path / "siglip")
    padded = tokenizer(["a fox", "two grey wolves"], return_tensors="pt", padding="max_length", max_length=16)
    with torch.no_grad():
        ours = model(**inputs).logits_per_image
        theirs = original(padded["input_ids"], inputs["pixel_values"]).logits_per_image
    assert ((ours - theirs).norm() / theirs.norm()).item() <= 1e-5
    # a picture is squashed to the square, by training as by the processor
    encoder = load_dual_encoder(str(tmp_path / "out"), "unicl")
    evaluation, _ = transforms(DataOptions(), encoder.image_processor)
    seen, shown = evaluation(tiny.picture()), inputs["pixel_values"][0]
    assert (seen - shown).abs().max() <= 2 / 127.5  # two grey levels: two resizing libraries
    small = "data.options={classes: 4, unseen: 1, max_count: 4, imbalance: 2, size: 16, validation: 1, test: 1}"
    words = [small, f"model.init={tmp_path / 'out'}", "data.max_text_length=16", "train.batch_size=4", "train.steps=1"]
    folder = run(override_recipe(Recipe(task="unicl"), [*words, f"output={tmp_path / 'run'}"]))
    assert AutoModel.from_pretrained(folder).logit_bias is not None


def test_a_model_without_a_tokenizer_is_not_measured_by_texts(hf_vlr, tmp_path):
    out = convert("unicl", GOLDEN / "unicl_swin_tiny.pth", tmp_path / "out", tokenizer="none").folder
    small = "data.options={classes: 4, unseen: 1, max_count: 4, imbalance: 2, size: 16, validation: 1, test: 1}"
    code, _, err = hf_vlr("eval", out, "--data", "shapes-lt", small)
    assert code == 2
    assert err.splitlines()[-1] == f"error: model {out} has no tokenizer beside it, so it cannot read texts"


def test_what_else_the_file_holds_is_said(tmp_path):
    state = read_archive(STAGE_2).weights()
    moments = {"state": {index: {"exp_avg": tensor} for index, tensor in enumerate(state.values())}}
    torch.save({"model": dict(state), "model_ema": dict(state), "optimizer": moments}, tmp_path / "file.pth")
    notes = convert("vl-ltr", tmp_path / "file.pth", tmp_path / "out").notes
    number = len(state)
    assert f"taken from 'model'; left unread: model_ema ({number} tensors), optimizer ({number} tensors)" in notes


def test_a_card_names_both_sources_of_a_stage_2(tmp_path):
    first = GOLDEN / "vlltr_cvlp_vit_tiny.pth"
    convert("vl-ltr", STAGE_2, tmp_path / "out", stage1=str(first), tokenizer="none")
    card = (tmp_path / "out" / "README.md").read_text()
    assert STAGE_2.name in card and first.name in card
    assert len(re.findall(r"[0-9a-f]{64}", card)) == 2


def test_a_converted_unicl_runs_zero_shot_with_clips_own_tokenizer(tiny, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is in the extra [convert]")
    words = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    text = {**tiny.TEXT_TOWERS["clip"], **words, "max_position_embeddings": 77, "hidden_act": "quick_gelu"}
    torch.manual_seed(0)
    original = UniCLModel(tiny.config(vision="swin", text_config={**text, "layer_norm_eps": 1e-12}))
    torch.save({"model": restore(original, "unicl"), "epoch": 3}, tmp_path / "file.pth")
    convert("unicl", tmp_path / "file.pth", tmp_path / "out", text_heads=2)
    labels, picture = ["a fox, drawn in ink", "two wolves"], tiny.picture()
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "out"))
    found = {one["label"]: one["score"] for one in classify(picture, candidate_labels=labels, hypothesis_template="{}")}
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(
        text=labels, images=picture, return_tensors="pt", padding="max_length"
    )
    theirs = open_clip.tokenize(labels)
    assert torch.equal(inputs["input_ids"][theirs != 0], theirs[theirs != 0])
    with torch.no_grad():
        expected = dict(zip(labels, original.eval()(**inputs).logits_per_image.softmax(-1)[0].tolist()))
    assert found == pytest.approx(expected, rel=1e-4)
