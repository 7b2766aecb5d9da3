"""Reading foreign checkpoints: every tensor bit for bit, everything else as plain data."""

import argparse
import importlib.util
import tracemalloc
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_vlr.convert.archive import attribute, read_archive
from hf_vlr.convert.tensors import ForeignTensor
from hf_vlr.errors import UserError
from hf_vlr.pickles import Placeholder

SPEC = importlib.util.spec_from_file_location("crafted", Path(__file__).with_name("crafted.py"))
crafted = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(crafted)
same, named, value, zipped = crafted.same, crafted.named, crafted.value, crafted.zipped

GOLDEN = Path(__file__).with_name("golden")
LEGACY = {"_use_new_zipfile_serialization": False}


class Config(dict):
    """A dict with attributes, pickled as `yacs.config.CfgNode` is."""


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("size", torch.tensor(32))
        self.tied = self.blocks[0]

    def forward(self, pixels):
        x = self.stem(pixels).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return self.tied(x) * self.scale


def state() -> OrderedDict:
    """Tensors of every kind that checkpoints hold."""
    torch.manual_seed(0)
    flat = torch.randn(24)
    return OrderedDict(
        weight=torch.randn(4, 3),
        flat=flat,
        transposed=flat.view(4, 6).t(),
        part=flat[5:9],
        parameter=nn.Parameter(torch.randn(2)),
        half=torch.randn(3).half(),
        bfloat=torch.randn(3).bfloat16(),
        double=torch.randn(2).double(),
        count=torch.tensor(7),
        index=torch.arange(5, dtype=torch.int32),
        bytes=torch.arange(5, dtype=torch.uint8),
        mask=torch.tensor([True, False]),
        nothing=torch.empty(0, 3),
        complex=torch.randn(2, dtype=torch.complex64),
    )


def saved(path: Path, content: object, **how: object) -> Path:
    torch.save(content, path, **how)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "checkpoint.pth"


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}, LEGACY], ids=["zip", "protocol 4", "legacy"])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
def test_all_kinds_of_tensors_come_back_bit_for_bit(file, how, wrapper):
    saved(file, state() if wrapper is None else {"epoch": 3, wrapper: state()}, **how)
    archive = read_archive(file)
    assert archive.kind == ("legacy" if how == LEGACY else "zip")
    found = archive.weights()
    wanted = torch.load(file, weights_only=False)
    wanted = wanted if wrapper is None else wanted[wrapper]
    assert list(found) == list(wanted) == list(state())
    assert all(same(found[name], wanted[name]) for name in wanted)
    assert not any(tensor.requires_grad for tensor in found.values())
    assert found["part"].data_ptr() == found["flat"][5:].data_ptr() == found["transposed"][5, 0].data_ptr()


def test_a_state_dict_of_a_module_with_its_metadata(file):
    wanted = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    assert hasattr(wanted, "_metadata")
    found = read_archive(saved(file, wanted)).weights()
    assert list(found) == list(wanted)
    assert all(same(found[name], tensor) for name, tensor in wanted.items())


def test_foreign_tensors_tell_dtype_and_shape_before_they_are_read(file):
    part = read_archive(saved(file, {"model": state()})).content["model"]["half"]
    assert isinstance(part, ForeignTensor)
    assert (part.dtype, part.shape, part.numel) == (torch.float16, (3,), 3)
    assert same(part.read(), state()["half"])


def test_only_what_is_asked_for_is_read(file):
    moments = torch.full((50_000,), 3.5)
    saved(file, {"model": state(), "optimizer": {"state": {0: {"exp_avg": moments}}}})
    data = file.read_bytes()
    assert data.count(moments.numpy().tobytes()) == 1
    file.write_bytes(data.replace(moments.numpy().tobytes(), bytes(moments.nbytes)))
    tracemalloc.start()
    archive = read_archive(file)
    assert len(archive.weights()) == len(state())
    assert tracemalloc.get_traced_memory()[1] < moments.nbytes
    tracemalloc.stop()
    with pytest.raises(UserError, match="check sum"):
        archive.content["optimizer"]["state"][0]["exp_avg"].read()


def test_one_storage_of_many_tensors_is_in_memory_once(file):
    big = torch.zeros(2**20)
    saved(file, {f"w{index}": big[index:] for index in range(1000)})
    tracemalloc.start()
    found = read_archive(file).weights()
    assert tracemalloc.get_traced_memory()[1] < 2 * big.nbytes
    tracemalloc.stop()
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


def test_scalars_among_the_weights_are_set_apart(file):
    scalars = {"size": 224, "scale": 0.5, "on": True, "kind": "a"}
    found = read_archive(saved(file, {"w": torch.ones(2), **scalars})).weights()
    assert list(found) == ["w"]
    assert found.scalars == scalars


def test_which_mapping_holds_the_weights(file):
    one, two = {"a": torch.ones(1)}, {"b": torch.zeros(1)}

    def names(content: object, *wrappers: str) -> list[str]:
        archive = read_archive(saved(file, content))
        return list(archive.weights(wrappers) if wrappers else archive.weights())

    assert names({"state_dict": two, "model": one}) == ["a"]
    assert names({"model": "ViT-B/16", "state_dict": two}) == ["b"]
    assert names({"model": {"depth": 2}, "state_dict": two}) == ["b"]
    assert names({"ema": one, "model": two}, "ema") == ["a"]
    assert names({"epoch": 1, **one}) == ["a"]


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "legacy"])
def test_what_is_left_in_the_file_is_counted(file, how):
    weight, moment = torch.ones(3), torch.zeros(3)
    optimizer = {"state": {0: {"exp_avg": moment, "steps": [torch.ones(1), (torch.ones(2), 5)]}}, "lr": 0.1}
    inside = argparse.Namespace(buffer=torch.ones(4), again=moment)
    content = {"epoch": 3, "model_ema": {"w": weight}, "model": {"w": weight}, "optimizer": optimizer, "args": inside}
    found = read_archive(saved(file, content, **how)).weights()
    assert (found.wrapper, found.rest) == ("model", {"model_ema": 1, "optimizer": 3, "args": 2})
    other = read_archive(file).weights(["model_ema"])
    assert (other.wrapper, other.rest) == ("model_ema", {"model": 1, "optimizer": 3, "args": 2})
    bare = read_archive(saved(file, {"w": weight, "epoch": 3}, **how)).weights()
    assert (bare.wrapper, bare.rest) == ("", {})


def test_what_is_left_is_counted_without_being_read_or_walked_twice(file):
    # a list that holds itself, and lists of lists of lists, each written once
    deep = b"]" + crafted.tensor() + b"aq\x07" + b"".join(b"0](h%ch%ceq%c" % (n, n, n + 1) for n in range(7, 90))
    loop = b"]q\x01h\x01a"
    beside = crafted.mapping(model=crafted.mapping(w=crafted.tensor()), deep=deep, loop=loop)
    assert read_archive(zipped(file, beside)).weights().rest == {"deep": 1}


def test_what_costs_too_much_to_count_is_refused(file):
    long = b"]q\x01(" + b"N" * 10_000 + b"e"
    shared = {f"k{index}": b"h\x01" for index in range(200)}
    content = crafted.mapping(model=crafted.mapping(w=crafted.tensor()), first=long, **shared)
    assert "holds too much beside model" in crafted.refused(zipped(file, content))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {"w": torch.ones(1), "l": [1]}}, "l among its weights is a list"),
        ({"model": {"w": torch.ones(1), "n": None}}, "n among its weights is None"),
        ({"w": torch.ones(1), "optimizer": {"a": 1}}, "optimizer among its weights is a dict"),
        ({3: torch.ones(1)}, "3 among its weights is no name"),
        ({(1, "a"): torch.ones(1)}, "is no name"),
        ({"epoch": 1, "weights": {"w": torch.ones(1)}}, "it holds: epoch, weights"),
        ({"weights": {}, "args": argparse.Namespace()}, "no weights under model, state_dict, model_state_dict"),
        ({"weights": {}, "args": argparse.Namespace()}, "it holds: weights, args (argparse.Namespace)"),
        ({"model": {}}, "holds no weights"),
        ([torch.ones(1)], "holds a list"),
        (3, "holds a number; it must hold a dict"),
        (torch.ones(1), "holds a single tensor; it must hold a dict"),
        (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        ({"w": torch.eye(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
        ({"w": torch.ones(1, device="meta")}, "_rebuild_meta_tensor"),
        ({"w": torch.ones(1).expand(9)}, "contiguous"),
        ({"model": nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_are_no_weights_is_named(file, content, reason):
    assert reason in crafted.refused(saved(file, content))


@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}, LEGACY], ids=["zip", "protocol 4", "legacy"])
def test_foreign_objects_are_plain_data(file, how):
    config = Config(MODEL=Config(SPEC=Config(DIM=24)), names=["a", "b"])
    config.immutable = True
    args = argparse.Namespace(model="CVLP_r50", size=(2, 3), odd={(1, 2): "x"}, some={1, 2})
    archive = read_archive(saved(file, {"model": state(), "args": args, "config": config}, **how))
    wanted = {"args.model": "CVLP_r50", "args.size": (2, 3), "config.MODEL.SPEC.DIM": 24, "config.immutable": True}
    assert {path: attribute(archive.content, path) for path in wanted} == wanted
    assert attribute(archive.content, "args.absent", 5) == attribute(archive.content, "args.model.deeper", 5) == 5
    assert archive.settings("args")["size"] == (2, 3)
    assert archive.settings("config")["names"] == ["a", "b"]
    assert archive.settings("absent") == archive.settings("model.half") == {}
    placeholder = archive.content["args"]
    assert isinstance(placeholder, Placeholder) and placeholder.name == "argparse.Namespace"
    ((key, inside),) = placeholder.state["odd"].items()
    assert (key.arguments, inside) == (((1, 2),), "x")
    some = placeholder.state["some"]
    assert (some if isinstance(some, list) else some.arguments[0]) == [1, 2]


def test_placeholders_take_state_items_and_appends(file):
    program = named("a", "B") + b")\x81(" + value(1) + value(2) + b"e(" + value("k") + value(3) + b"u"
    content = read_archive(zipped(file, program + b"N" + crafted.mapping(slot=value(4)) + b"\x86b")).content
    assert (content.name, content.arguments, content.items) == ("a.B", (), [1, 2])
    assert content.state == {"slot": 4, "k": 3}
    assert repr(content) == "<placeholder of a.B>"
    assert read_archive(zipped(file, named("a", "B") + b")R" + value(5) + b"b")).content.state == {"__setstate__": 5}


def test_safetensors(tmp_path):
    wanted = {name: tensor.detach().contiguous().clone() for name, tensor in state().items()}
    save_file(wanted, tmp_path / "model.safetensors")
    archive = read_archive(str(tmp_path / "model.safetensors"))
    assert archive.kind == "safetensors"
    assert all(archive.content[name].dtype == tensor.dtype for name, tensor in wanted.items())
    assert all(archive.content[name].shape == tensor.shape for name, tensor in wanted.items())
    found = archive.weights()
    assert found.keys() == wanted.keys()
    assert all(same(found[name], tensor) for name, tensor in wanted.items())


def test_files_without_check_sums(file):
    torch.serialization.set_crc32_options(False)
    try:
        saved(file, state())
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_archive(file).weights()["weight"], state()["weight"])


def test_an_ordered_dict_as_python_2_wrote_it(file):
    pair = b"(" + value("w") + crafted.tensor() + b"t"
    found = read_archive(zipped(file, named("collections", "OrderedDict") + b"](" + pair + b"e\x85R")).weights()
    assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_extents_of_one_may_have_any_stride(file):
    found = read_archive(zipped(file, crafted.mapping(w=crafted.tensor((1, 6), (2**60, 1))))).weights()
    assert found["w"].tolist() == [list(range(6))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torchscript(file, dtype):
    tower = Tower().to(dtype).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(tower, torch.ones(1, 3, 2, 2, dtype=dtype)), file)
    archive = read_archive(file)
    assert archive.kind == "torchscript"
    found = archive.weights()
    wanted = tower.state_dict()
    assert found.keys() == wanted.keys()
    assert all(same(found[name], tensor) for name, tensor in wanted.items())
    assert found.scalars["stem.1.training"] is False


def test_torchscript_values_beside_the_tensors(file):
    device = named("torch", "device") + value("cpu") + b"\x85R"
    numbers = named("torch.jit._pickle", "build_intlist") + b"]" + value(3) + b"a\x85R"
    inner = crafted.module(w=crafted.tensor(), where=device, numbers=numbers, none=b"N")
    found = read_archive(crafted.scripted(file, crafted.module(visual=inner, size=value(32)))).weights()
    assert (list(found), found.scalars) == (["visual.w"], {"visual.where": "cpu", "size": 32})


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.pth")))
def test_original_checkpoints(name):
    archive = read_archive(GOLDEN / name)
    found = archive.weights()
    assert found
    if "config" in archive.content:
        assert archive.content["config"].name == "yacs.config.CfgNode"
        assert attribute(archive.content, "config.MODEL").state
        return
    wanted = torch.load(GOLDEN / name, weights_only=False, map_location="cpu")
    assert list(found) == list(wanted["model"])
    assert all(same(found[key], tensor) for key, tensor in wanted["model"].items())
    assert archive.settings("args") == vars(wanted["args"])
