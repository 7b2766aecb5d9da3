"""open_clip's models, read from folders and files as it writes them, compute the same here, or are refused in words."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save_file

from hf_vlr import UniCLModel, VLLTRModel
from hf_vlr.convert.open_clip import WEIGHT_FILES, architecture_settings, plan_open_clip
from hf_vlr.convert.open_clip_settings import check_settings
from hf_vlr.convert.plan import BICUBIC, BILINEAR, OPENAI_MEAN, Options
from hf_vlr.errors import UserError

open_clip = pytest.importorskip("open_clip")

LENGTH, VOCABULARY, SIDE = 12, 60, 32
TEXT = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2}
VIT = {"image_size": SIDE, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16}
SETTINGS = {
    "vit": {"vision_cfg": VIT},
    "vit, quick gelu": {"vision_cfg": VIT, "quick_gelu": True},
    "vit, own text": {"vision_cfg": VIT, "custom_text": True},
    "vit, bias": {"vision_cfg": VIT, "init_logit_bias": -10},
    "vit, vectors": {"vision_cfg": VIT, "init_logit_bias": -10, "nonscalar_logit_scale": True, "custom_text": True},
    "vit, last norm": {"vision_cfg": {**VIT, "final_ln_after_pool": True, "patch_dropout": 0.5, "mlp_ratio": 2.5}},
    "vit, fixed positions": {"vision_cfg": {**VIT, "pos_embed_type": "sin_cos_2d"}},
    "vit, tanh": {
        "vision_cfg": {**VIT, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}},
        "text_cfg": {**TEXT, "act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-2}},
    },
    "resnet": {"vision_cfg": {"image_size": SIDE, "layers": [1, 2, 1, 1], "width": 4, "head_width": 32}},
    "resnet, quick gelu": {"vision_cfg": {"image_size": 64, "layers": [2, 1, 1, 2], "width": 8}, "quick_gelu": True},
    "eos": {"vision_cfg": VIT, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 2}},
    "eos, own text": {"vision_cfg": VIT, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 9}, "custom_text": True},
    "timm": {
        "vision_cfg": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear", "image_size": SIDE}
    },
    "timm, bias": {
        "vision_cfg": {
            **{"timm_model_name": "resnet10t", "timm_pool": "", "timm_proj": "linear", "timm_proj_bias": True},
            "image_size": SIDE,
        },
        "custom_text": True,
        "quick_gelu": True,
    },
    "timm, classifier": {
        "vision_cfg": {
            **{"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": None},
            "image_size": 224,
        },
        "custom_text": True,
    },
}


def settings_of(name):
    return {"embed_dim": 24, "text_cfg": TEXT, **SETTINGS[name]}


def built(settings):
    settings = json.loads(json.dumps(settings))
    kind = open_clip.CustomTextCLIP if settings.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(0)
    model = kind(**settings).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and not name.startswith("logit"):
                tensor.add_(torch.randn_like(tensor), alpha=0.05)
    return model


def stored(folder, settings, model, preprocess=None, safe=True):
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": settings, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    if safe:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "open_clip_model.safetensors")
    else:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return str(folder)


def converted(plan):
    ours, moves = plan.keys.forward(plan.state)
    assert sorted(move.source for move in moves) == sorted(plan.state)
    model, found = plan.model_class.from_pretrained(
        None, config=plan.config, state_dict={**ours, **plan.made}, output_loading_info=True
    )
    assert not any(found.values())
    return model.eval()


def texts(end):
    ids = torch.randint(10, VOCABULARY - 2, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    for row in range(4):
        ids[row, row + 3], ids[row, row + 4 :] = end, 0
    return ids


def check_same(theirs, plan, end=VOCABULARY - 1):
    model = converted(plan)
    images = torch.randn(2, 3, plan.image.size, plan.image.size, generator=torch.Generator().manual_seed(2))
    ids = texts(end)
    with torch.no_grad():
        expected = theirs.encode_image(images), theirs.encode_text(ids), theirs.get_logits(images, ids)[0]
        found = model.get_image_features(images), model.get_text_features(ids), model(ids, images).logits_per_image
    for name, ours, original in zip(("image", "text", "logits"), found, expected):
        assert (ours - original).norm() <= 1e-5 * original.norm(), name
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_features_and_logits_are_open_clips(tmp_path, name):
    settings = settings_of(name)
    theirs = built(settings)
    plan = plan_open_clip(stored(tmp_path, settings, theirs), Options())
    model = check_same(theirs, plan, settings["text_cfg"].get("eos_id", VOCABULARY - 1))
    assert type(model) is UniCLModel and not plan.dropped and not plan.notes
    back = plan.keys.backward({key: tensor for key, tensor in model.state_dict().items() if key not in plan.made})
    original = theirs.state_dict()
    assert sorted(back) == sorted(original)
    assert all(torch.equal(back[key], tensor.reshape(back[key].shape)) for key, tensor in original.items())


def test_the_bias_is_kept(tmp_path):
    settings = settings_of("vit, vectors")
    theirs = built(settings)
    with torch.no_grad():
        theirs.logit_bias.fill_(-6.5)
    plan = plan_open_clip(stored(tmp_path, settings, theirs), Options())
    assert plan.config.logit_bias_init_value == -10
    assert check_same(theirs, plan).logit_bias.item() == -6.5
    plain = settings_of("vit")
    assert converted(plan_open_clip(stored(tmp_path, plain, built(plain)), Options())).logit_bias is None


def test_heads_activation_and_norms_are_the_configurations(tmp_path):
    settings = settings_of("vit, tanh")
    config = plan_open_clip(stored(tmp_path, settings, built(settings)), Options()).config
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (3, 4)
    assert {config.vision_config.hidden_act, config.text_config.hidden_act} == {"gelu_pytorch_tanh"}
    assert (config.vision_config.layer_norm_eps, config.text_config.layer_norm_eps) == (1e-3, 1e-2)
    settings = settings_of("resnet")
    vision = plan_open_clip(stored(tmp_path, settings, built(settings)), Options()).config.vision_config
    assert (list(vision.layers), vision.width, vision.num_attention_heads) == ([1, 2, 1, 1], 4, 4)


def test_the_older_file_and_vl_ltrs_class(tmp_path):
    settings = settings_of("vit, quick gelu")
    theirs = built(settings)
    plan = plan_open_clip(stored(tmp_path, settings, theirs, safe=False), Options(model_type="vlltr"))
    assert type(check_same(theirs, plan)) is VLLTRModel


def test_flat_tensors_under_a_configuration_with_its_own_text(tmp_path):
    settings = settings_of("vit")
    theirs = built(settings)
    plan = plan_open_clip(stored(tmp_path, {**settings, "custom_text": True}, theirs), Options())
    check_same(theirs, plan)


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({}, (OPENAI_MEAN, False, BICUBIC)),
        ({"mean": [0.5, 0.4, 0.3], "resize_mode": "squash", "size": [32, 32]}, ((0.5, 0.4, 0.3), True, BICUBIC)),
        ({"interpolation": "bilinear", "resize_mode": "shortest", "size": 32}, (OPENAI_MEAN, False, BILINEAR)),
    ],
)
def test_images_are_made_as_the_configuration_says(tmp_path, preprocess, expected):
    settings = settings_of("vit")
    image = plan_open_clip(stored(tmp_path, settings, built(settings), preprocess), Options()).image
    assert (tuple(image.mean), image.squash, image.resample) == expected
    assert (image.size, image.resize) == (SIDE, None)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ({"resize_mode": "longest"}, "resize_mode 'longest' is not supported"),
        ({"size": 64}, "preprocess_cfg.size is 64, the tensors say 32"),
        ({"size": [32, 64]}, "must be square"),
    ],
)
def test_images_that_cannot_be_made_are_refused(tmp_path, preprocess, message):
    settings = settings_of("vit")
    with pytest.raises(UserError, match=message):
        plan_open_clip(stored(tmp_path, settings, built(settings), preprocess), Options())


def test_the_tokenizer_is_the_folders_or_the_one_that_is_named(tmp_path):
    settings = settings_of("vit")
    assert plan_open_clip(stored(tmp_path, settings, built(settings)), Options()).tokenizer is None
    named = {**settings, "text_cfg": {**TEXT, "hf_tokenizer_name": "someone/words"}}
    assert plan_open_clip(stored(tmp_path, named, built(settings)), Options()).tokenizer == "someone/words"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert plan_open_clip(stored(tmp_path, named, built(settings)), Options()).tokenizer == str(tmp_path)


REFUSED = [
    ({"vision_cfg": {**VIT, "pool_type": "avg"}}, r"vision_cfg\.pool_type = 'avg'"),
    ({"vision_cfg": {**VIT, "attentional_pool": True}}, r"vision_cfg\.attentional_pool = True"),
    ({"vision_cfg": {**VIT, "ls_init_value": 1e-4}}, r"vision_cfg\.ls_init_value = 0.0001"),
    ({"vision_cfg": {**VIT, "no_ln_pre": True}}, r"vision_cfg\.no_ln_pre = True"),
    ({"vision_cfg": {**VIT, "qk_norm": True}}, r"vision_cfg\.qk_norm = True"),
    ({"vision_cfg": {**VIT, "block_type": "custom"}}, r"vision_cfg\.block_type = 'custom'"),
    ({"vision_cfg": {**VIT, "norm_kwargs": {"elementwise_affine": False}}}, "norm_kwargs"),
    ({"vision_cfg": {**VIT, "act_kwargs": {"slope": 2}}}, "act_kwargs"),
    ({"quick_gelu": True, "vision_cfg": {**VIT, "act_kwargs": {"approximate": "tanh"}}}, "act_kwargs"),
    ({"vision_cfg": {**VIT, "invented": 3}}, r"vision_cfg\.invented = 3"),
    ({"text_cfg": {**TEXT, "pool_type": "last"}}, r"text_cfg\.pool_type = 'last'"),
    (
        {"text_cfg": {**TEXT, "no_causal_mask": True}},
        r"text_cfg\.no_causal_mask = True has no counterpart in this package's towers$",
    ),
    ({"text_cfg": {**TEXT, "embed_cls": True}}, r"text_cfg\.embed_cls = True"),
    ({"text_cfg": {**TEXT, "proj_bias": True}}, r"text_cfg\.proj_bias = True"),
    ({"text_cfg": {**TEXT, "proj_type": "none"}}, r"text_cfg\.proj_type = 'none'"),
    ({"text_cfg": {**TEXT, "hf_model_name": "roberta-base"}}, r"text_cfg\.hf_model_name = 'roberta-base'"),
    ({"text_cfg": {**TEXT, "tokenizer_kwargs": {"clean": "canonicalize"}}}, r"text_cfg\.tokenizer_kwargs"),
    ({"multimodal_cfg": {"width": 32}}, "multimodal_cfg"),
    ({"embed_dim": None}, "must hold embed_dim"),
    ({"vision_cfg": {**VIT, "image_size": 64}}, r"vision_cfg\.image_size is 64, the tensors say 32"),
    ({"vision_cfg": {**VIT, "image_size": [32, 48]}}, "must be square"),
    ({"vision_cfg": {**VIT, "layers": 3}}, r"vision_cfg\.layers is 3, the tensors say 2"),
    ({"vision_cfg": {**VIT, "width": 64}}, r"vision_cfg\.width is 64, the tensors say 48"),
    ({"vision_cfg": {**VIT, "patch_size": 8}}, r"vision_cfg\.patch_size is 8, the tensors say 16"),
    ({"vision_cfg": {**VIT, "layers": [1, 1, 1, 1]}}, r"no tensor visual\.conv3\.weight"),
    ({"text_cfg": {**TEXT, "context_length": 77}}, r"text_cfg\.context_length is 77, the tensors say 12"),
    ({"text_cfg": {**TEXT, "vocab_size": 49408}}, r"text_cfg\.vocab_size is 49408, the tensors say 60"),
    ({"text_cfg": {**TEXT, "heads": 5}}, "--text-heads 5 does not divide"),
    ({"vision_cfg": {"timm_model_name": "no_such_model"}}, "the installed timm has no model no_such_model"),
    ({"vision_cfg": {"timm_model_name": "resnet18", "timm_proj": "mlp", "timm_pool": ""}}, "must be one linear layer"),
    ({"vision_cfg": {"timm_model_name": "resnet18", "timm_proj": "none", "timm_pool": ""}}, "must be one linear layer"),
    ({"vision_cfg": {"timm_model_name": "resnet18", "timm_proj": None, "timm_pool": ""}}, "must be one linear layer"),
    ({"vision_cfg": {"timm_model_name": "resnet18", "timm_pool": "abs_attn", "timm_proj": ""}}, "'abs_attn'"),
    ({"vision_cfg": {"timm_model_name": "resnet18"}}, "timm_pool 'avg' with timm_proj 'linear'"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_our_towers_do_not_compute_is_refused_by_name(tmp_path, change, message):
    settings = settings_of("vit")
    source = stored(tmp_path, settings | change, built(settings))
    with pytest.raises(UserError, match=message):
        plan_open_clip(source, Options())


def test_every_architecture_of_open_clip_is_taken_or_refused_in_words():
    taken = set()
    for name in open_clip.list_models():
        try:
            check_settings(architecture_settings(name))
        except UserError as error:
            assert "has no counterpart" in str(error)
        else:
            taken.add(name)
    assert {"ViT-B-32", "ViT-H-14-quickgelu", "RN50x64", "ViT-H-14-worldwide", "convnext_base_w"} <= taken
    assert not {"ViT-B-16-SigLIP", "coca_ViT-B-32", "ViT-L-14-CLIPA", "roberta-ViT-B-32", "ViT-M-16-alt"} & taken
    with pytest.raises(UserError, match="convert transformers' form of this SigLIP, as hf-clip"):
        check_settings(architecture_settings("ViT-B-16-SigLIP2"))


@pytest.mark.parametrize("safe", [True, False])
def test_a_repository_is_read_from_the_cache(safe):
    settings = settings_of("vit")
    theirs = built(settings)
    cache = Path(HF_HUB_CACHE) / f"models--tiny--open_{safe}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0123456789")
    (cache / "snapshots").mkdir()
    stored(cache / "snapshots/0123456789", settings, theirs, safe=safe)
    check_same(theirs, plan_open_clip(f"hf-hub:tiny/open_{safe}", Options()))
    (cache / "snapshots/0123456789" / WEIGHT_FILES[not safe]).unlink()
    with pytest.raises(UserError, match=f"hf-hub:tiny/open_{safe} cannot be had as an open_clip model"):
        plan_open_clip(f"hf-hub:tiny/open_{safe}", Options())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_bare_file_needs_the_name_of_its_architecture(tmp_path, prefix):
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-S-32-alt", pretrained=None).eval()
    file = tmp_path / "epoch_3.pt"
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, file)
    with pytest.raises(UserError, match="give --architecture"):
        plan_open_clip(str(file), Options())
    with pytest.raises(UserError, match="open_clip has no architecture ViT-S-33"):
        plan_open_clip(str(file), Options(architecture="ViT-S-33"))
    with pytest.raises(UserError, match=r"the tensors say"):
        plan_open_clip(str(file), Options(architecture="ViT-B-32"))
    plan = plan_open_clip(str(file), Options(architecture="ViT-S-32-alt"))
    assert "OpenAI's way is assumed" in plan.notes[0]
    model = converted(plan)
    images, ids = torch.randn(2, 3, 224, 224), open_clip.tokenize(["a fox", "a wolf in the snow"])
    with torch.no_grad():
        for ours, original in [
            (model.get_image_features(images), theirs.encode_image(images)),
            (model.get_text_features(ids), theirs.encode_text(ids)),
        ]:
            assert (ours - original).norm() <= 1e-5 * original.norm()


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither a folder nor a file; a repository of the Hub is written hf-hub:"):
        plan_open_clip(str(tmp_path / "nothing"), Options())
    with pytest.raises(UserError, match=r"must hold open_clip_config\.json"):
        plan_open_clip(str(tmp_path), Options())
    with pytest.raises(UserError, match="hf-hub:nobody/nothing cannot be had"):
        plan_open_clip("hf-hub:nobody/nothing", Options())
    stored(tmp_path, settings_of("vit"), built(settings_of("vit")))
    for content, message in [("{", "cannot be read"), ("[]", "must hold a mapping"), ("{}", "holds no model_cfg")]:
        (tmp_path / "open_clip_config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            plan_open_clip(str(tmp_path), Options())
