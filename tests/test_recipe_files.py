"""The packaged recipes: each says where it comes from, loads with its bases, and builds its model."""

import re
from functools import cache

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_vlr.cli.recipes import OTHERS, comment_parts, family
from hf_vlr.errors import UserError
from hf_vlr.training.costs import model_bytes
from hf_vlr.training.options import Recipe
from hf_vlr.training.recipe import (
    RecipeFile,
    changed_values,
    load_recipe,
    override_recipe,
    packaged_recipes,
    recipe_files,
)
from hf_vlr.training.rehearsal import Rehearsal, Shape, build_task
from hf_vlr.training.sketch import sketch_dual_encoder

NAMES = sorted(packaged_recipes())
# what has to be fetched or converted first
BROUGHT = ("openai/clip-vit-base-patch16", "./models/clip-rn50", "./models/clip-vitb16-384")
# millions of parameters of the towers that were published: image and text towers, projections, temperature
PUBLISHED = {"unicl-in1k-swin-t": 91_340_667, "unicl-in21k-swin-b": 150_695_609}
CLIP_VOCABULARY, OURS = 49_408, 4_096


@cache
def loaded(name: str) -> Recipe:
    return load_recipe(name)


@cache
def files(name: str) -> list[RecipeFile]:
    return recipe_files(name)


def origin(recipe: Recipe) -> Recipe:
    """The recipe that the dual encoder of another one comes from."""
    while recipe.model.init and recipe.model.init.startswith("runs/"):
        recipe = loaded(recipe.model.init.removeprefix("runs/"))
    return recipe


def test_all_recipes_load_and_their_titles_tell_them_apart():
    titles = packaged_recipes()
    assert len(set(titles.values())) == len(titles) >= 90
    for name, title in titles.items():
        assert loaded(name).output == f"runs/{name}"
        assert 10 < len(title) <= 110, name


def test_every_recipe_says_where_it_comes_from():
    for name in NAMES:
        fields = dict(comment_parts(files(name)[0].comment)[1])
        for field in ("Source", "Hardware", "Expected", "Run here"):
            assert len(fields.get(field, "")) > 3, f"{name} has no {field}"


def test_every_command_line_trains_the_recipe_it_stands_in():
    for name in NAMES:
        commands = comment_parts(files(name)[0].comment)[2]
        trained = [re.search(r"(?:hf-vlr|-m hf_vlr) train (\S+)", line) for line in commands]
        assert trained and trained[0] is not None, f"{name} has no command line"
        assert {found[1] for found in trained if found} == {name}
        words = [word for line in commands for word in line.split() if re.match(r"[a-z_]+\.[a-z_.]+=", word)]
        if words:
            override_recipe(loaded(name), words)


def test_what_a_recipe_names_is_there():
    for name in NAMES:
        comment, recipe = files(name)[0].comment, loaded(name)
        mentioned = re.findall(r"(?<![\w/-])runs/([\w-]+)", comment) + re.findall(
            r"\b((?:vlltr|unicl)-[\w-]*\w)\b", comment
        )
        init = recipe.model.init or ""
        mentioned += [init.removeprefix("runs/")] if init.startswith("runs/") else []
        unknown = {other for other in mentioned if other not in NAMES and not re.fullmatch(r".*-(\d+|supcon)", other)}
        assert not unknown, f"{name} names {unknown}"
        assert not recipe.model.init or init in BROUGHT or init.startswith("runs/")


def test_bases_are_packaged_and_are_what_they_seem():
    for name in NAMES:
        chain = files(name)
        assert all(file.path is None for file in chain)
        assert len(chain) == 1 or chain[0].values.keys() - {"base"}, f"{name} only repeats its base"
        assert len(changed_values(loaded(name))) > 2


def test_every_recipe_belongs_to_a_family():
    assert not [name for name in NAMES if family(name) == OTHERS]


def test_published_settings():
    stage1, stage2 = loaded("vlltr-places-lt-vitb16-stage1"), loaded("vlltr-places-lt-vitb16-stage2")
    assert (stage1.optim.lr, stage1.train.batch_size, stage1.train.epochs) == (1e-5, 1024, 50)
    assert (stage1.loss.distillation, stage1.loss.label_smoothing, stage1.data.sampler) == (0.5, 0.1, "sqrt")
    # the attention is trained at 1e-6 everywhere
    for name in NAMES:
        recipe = loaded(name)
        if recipe.task == "recognition" and "head.query" in recipe.optim.lr_scales:
            assert recipe.optim.lr * recipe.optim.lr_scales["head.query"] == pytest.approx(1e-6), name
    assert (stage2.model.fusion_weight, stage2.data.mixup, stage2.data.cutmix) == (0.2, 0.8, 1.0)
    inat = loaded("vlltr-inat18-rn50-stage2")
    assert (inat.train.epochs, inat.model.fusion_weight, inat.model.detach_norm) == (360, 0.7, True)
    assert "vision_model" not in inat.model.freeze
    inat = loaded("vlltr-inat18-vitb16-stage1")
    assert inat.optim.lr * inat.optim.min_lr_ratio == pytest.approx(1e-5)
    assert inat.optim.warmup_fraction * inat.train.epochs == pytest.approx(5)
    pretraining = loaded("unicl-in21k-yfcc14m-swin-b")
    assert pretraining.optim.warmup_fraction * pretraining.train.epochs == pytest.approx(5)
    assert pretraining.optim.lr == pytest.approx(5e-4 * pretraining.train.batch_size / 512)


def test_cifar_is_trained_on_whole():
    for name in NAMES:
        recipe = loaded(name)
        if "cifar" in recipe.data.source and recipe.rebalance.method != "ncm":
            assert recipe.data.validation_fraction == 0.0 and recipe.model.fusion_weight is not None, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_published_models(name):
    recipe = loaded(name)
    with FakeTensorMode():
        task = build_task(recipe, sketch_dual_encoder(recipe), Shape(None, False, 77))
    width = task.model.text_model.config.hidden_size
    count = sum(parameter.numel() for parameter in task.model.parameters())
    assert count + (CLIP_VOCABULARY - OURS) * width == PUBLISHED[name]


def unlike() -> list[str]:
    """Recipes that need nothing brought, one for each kind of model and objective."""
    kinds: dict[str, str] = {}
    for name in NAMES:
        recipe = loaded(name)
        if origin(recipe).model.init not in BROUGHT:
            towers, model = origin(recipe).model, recipe.model
            shape = (towers.vision, towers.text if model.language else "", towers.projection_dim, model.visual_head)
            kinds.setdefault(repr((recipe.task, shape, recipe.loss.objective)), name)
    return list(kinds.values())


@pytest.mark.parametrize("name", unlike())
def test_a_model_is_built_from_nothing_but_its_recipe(name):
    recipe = loaded(name)
    with FakeTensorMode():
        rehearsal = Rehearsal(recipe, sketch_dual_encoder(recipe), Shape(3, True, 8), lambda: pytest.skip("unused"))
        built = model_bytes(rehearsal.whole)
    assert built.weights > built.gradients > 0


def test_what_has_to_be_brought_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("vlltr-imagenet-lt-rn50-stage2", "vlltr-inat18-vitb16-384-stage1"):
        with pytest.raises(UserError, match=r"model\.init=\./models/clip-\S+ is neither a folder here nor"):
            sketch_dual_encoder(loaded(name))
