"""Checkpoints that are damaged or mean harm: one line of error; nothing runs, is imported, hangs or fills memory."""

import argparse
import importlib.util
import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_vlr.convert.archive import MAX_PICKLE_BYTES, read_archive
from hf_vlr.errors import UserError
from hf_vlr.pickles import MAX_INSTRUCTIONS

SPEC = importlib.util.spec_from_file_location("crafted", Path(__file__).with_name("crafted.py"))
crafted = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(crafted)
mapping, module, named, storage, tensor = (
    getattr(crafted, name) for name in ("mapping", "module", "named", "storage", "tensor")
)
refused, scripted, value, write, zipped = (
    getattr(crafted, name) for name in ("refused", "scripted", "value", "write", "zipped")
)

CONTENT = {"model": {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, "args": argparse.Namespace(model="a")}
LEGACY = {"_use_new_zipfile_serialization": False}


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def saved(path: Path, content: object, **how: object) -> Path:
    torch.save(content, path, **how)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "checkpoint.pth"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A file that appears when a hostile command runs or a hostile module is imported."""
    found = tmp_path / "executed"
    (tmp_path / "hostile_module.py").write_text(f"open({str(found)!r}, 'w')\ndef function(*_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield found
    assert not found.exists()
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize("name", ["system", "eval", "Popen", "getattr"])
@pytest.mark.parametrize("how", [{}, {"pickle_protocol": 4}, LEGACY], ids=["zip", "protocol 4", "legacy"])
def test_a_call_is_inert_beside_the_weights_and_refused_among_them(file, marker, name, how):
    call = {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Call(getattr, "", "join"),
    }[name]
    archive = read_archive(saved(file, {"model": CONTENT["model"], "args": call}, **how))
    assert archive.content["args"].name.endswith(f".{name}")
    assert archive.content["args"].arguments == call.reduced[1]
    found = archive.weights()
    assert all(crafted.same(found[key], wanted) for key, wanted in CONTENT["model"].items())
    weights = {"w": torch.ones(1), "x": call}
    for content in (call, {"w": call}, {"model": call}, {"model": {"w": call}}, weights, {"model": weights}):
        assert f".{name}" in refused(saved(file, content, **how))


HOSTILE = named("hostile_module", "function")
VIEW = value(0) + value((2,)) + value((1,))


@pytest.mark.parametrize(
    "weight",
    [
        HOSTILE,
        HOSTILE + b")R",
        HOSTILE + b")\x81",
        HOSTILE + b")}\x92",
        HOSTILE + b")\x81}b",
        HOSTILE + b")R)R",
        value("hostile_module") + value("function") + b"\x93)R",
        value("hostile_module") + value("function.__globals__.get") + b"\x93)R",
        HOSTILE + b"(" + storage() + VIEW + b"\x89}tR",
        tensor(over=HOSTILE + b")R"),
        tensor(over=storage(kind=HOSTILE)),
        named("torch._utils", "_rebuild_parameter") + HOSTILE + b")R" + b"\x89}\x87R",
        named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + VIEW + b"\x89" + HOSTILE + b")RtR",
    ],
)
def test_no_way_of_naming_a_function_imports_it(file, marker, weight):
    assert "hostile_module.function" in refused(zipped(file, mapping(w=weight)))
    assert "hostile_module.function" in refused(zipped(file, mapping(model=mapping(v=tensor(), w=weight))))
    assert "hostile_module.function" in refused(scripted(file, module(v=tensor(), w=weight)))
    found = read_archive(zipped(file, mapping(model=mapping(v=tensor()), args=weight))).weights()
    assert found["v"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_torchscript_refuses_what_is_no_module(file, marker):
    assert "hostile_module.function" in refused(scripted(file, HOSTILE))
    assert "hostile_module.function" in refused(scripted(file, module(visual=module(w=tensor(), x=HOSTILE + b")R"))))
    assert "no tensors" in refused(scripted(file, module(visual=module(on=b"\x88"))))


@pytest.mark.parametrize(
    "weight",
    [
        tensor((7,), (1,)),
        tensor((2, 3), (3, 1), offset=1),
        tensor((2, 3), (4, 1)),
        tensor((2**40,), (0,)),
        tensor((7,), (0,)),
        tensor((2**31, 2**31, 2**31), (0, 0, 0)),
        tensor((0, 2**61, 2**61), (1, 1, 1)),
        tensor((2,), (1,), offset=-1),
        tensor((2,), (-1,), offset=5),
        tensor((-2, -3), (3, 1)),
        tensor((2,), (2**63,)),
        tensor((2,), (1,), offset=2**200),
        tensor((1,) * 65, (1,) * 65),
        tensor((2, 3), (1,)),
        tensor((2.0, 3.0), (3, 1)),
        tensor((True, 3), (3, 1)),
        tensor([2, 3], [3, 1]),
        tensor("ab", (3, 1)),
        tensor((7,), (1,), over=storage(7)),
        tensor((2**40,), (1,), over=storage(2**40)),
        tensor(over=storage(2**63)),
        tensor(over=storage(-6)),
        tensor(over=storage(key="1")),
        tensor(over=storage(key="../../../etc/passwd")),
        tensor(over=value("storage")),
        tensor(over=value("storage") + b"Q"),
        tensor(over=b")Q"),
        tensor((2,), (1,), over=storage(2, kind=named("torch", "BoolStorage"))),
        tensor(over=storage(kind=named("torch", "QInt8Storage"))),
        tensor(function="_rebuild_qtensor"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(file, weight):
    # the second float begins with bytes that are no bool
    refused(zipped(file, mapping(w=weight), **{"data/0": struct.pack("<6f", 0.3, 1, 2, 3, 4, 5)}))


DEEP = 100_000
AGAIN = 2_000
BOMBS = {
    "nested lists": b"]" * DEEP + b"a" * (DEEP - 1),
    "nested tuples": b")" + b"\x85" * DEEP,
    "nested calls": named("a", "B") + b")R" * DEEP,
    "nested states": named("a", "B") + b"q\x000" + b"h\x00)\x81" * DEEP + b"b" * (DEEP - 1),
    "nested tuples as a key": b"})" + b"\x85" * DEEP + b"Ns",
    "nested tuples in a set": b"\x8f()" + b"\x85" * DEEP + b"\x90",
    "doubled lists": b"]q\x00" + b"](h\x00h\x00eq\x00" * AGAIN,
    "doubled tuples": b")q\x00" + b"h\x00h\x00\x86q\x00" * AGAIN,
    "a list in itself": b"]q\x00h\x00a",
    "long names": value("m" * 10**6) + b"q\x00" + b"h\x00h\x00\x93" * DEEP,
    "colliding keys": b"}(" + b"".join(value((2**61 - 1) * k << 61) + b"N" for k in range(DEEP // 10)) + b"u",
    "marks": b"(" * DEEP + b"t" * DEEP,
    "memo": b"N" + b"\x94" * DEEP,
}
TOO_LONG = {
    "instructions": b"N0" * MAX_INSTRUCTIONS + b"N",
    "pairs again and again": named("collections", "OrderedDict") + b"q\x00](" + value((1, 2)) * AGAIN + b"eq\x01"
    + b"h\x00h\x01\x85R" * AGAIN,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(file, name):
    """As the only weights; and beside weights as an argument."""
    refused(zipped(file, mapping(model=BOMBS[name])))


@pytest.mark.parametrize("name", TOO_LONG)
def test_programs_that_are_too_long(file, name):
    assert "too long" in refused(zipped(file, TOO_LONG[name]))


def test_states_are_given_once(file):
    assert "twice" in refused(zipped(file, named("a", "B") + b"}b}b"))


def test_modules_that_share_modules_do_not_grow_without_end(file):
    empty = named("__torch__", "M") + b")\x81"
    two = b"}(" + value("a") + b"h\x00" + value("b") + b"h\x00ub"
    assert "too many names" in refused(scripted(file, empty + b"q\x00" + (empty + two + b"q\x00") * 40))
    assert "too many names" in refused(scripted(file, empty + b"q\x00" + two))
    assert "too many names" in refused(scripted(file, module(**{"a" * 1001: tensor()})))


HUGE = struct.pack("<Q", 2**32)


@pytest.mark.parametrize(
    "program",
    [
        b"\x8e" + HUGE + b"abc",  # BINBYTES8
        b"\x8d" + HUGE + b"abc",  # BINUNICODE8
        b"\x8d" + b"\xff" * 8 + b"abc",
        b"\x96" + HUGE + b"abc",  # BYTEARRAY8
        b"X\xff\xff\xff\xffabc",  # BINUNICODE
        b"T\xff\xff\xff\x7fabc",  # BINSTRING
        b"T\xff\xff\xff\xffabc",
        b"\x8b\xff\xff\xff\x7fabc",  # LONG4
        b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096,
        b"L" + b"9" * 100_000 + b"L\n",  # LONG
        b"I" + b"9" * 100_000 + b"\n",  # INT
        b"\x82\x01",  # EXT1
        b"\x84\x01\x00\x00\x00",  # EXT4
        b"(ios\nsystem\n",  # INST
        b"(" + named("os", "system") + b"o",  # OBJ
        b"P0\n",  # PERSID
        b"\x97",  # NEXT_BUFFER
        b"]\x98",  # READONLY_BUFFER
        b"N2",  # DUP
        b"\xff",  # nothing
        b"0",  # POP of an empty stack
        b"}(Nu",  # a key without a value
        b")Na",  # append to a tuple
        b"]NNs",  # items of a list
        b"K\x01)R",  # a call of a number
        named("a", "b") + b"]R",  # a list of arguments
        b"K\x01K\x02\x93",  # a number as a name
        b"cos",  # no end of line
        b"c\xff\xfe\n\x00\nN",  # a name of no letters
        b"h\x07",  # a memo that is not there
        b"X\x02\x00\x00\x00\xff\xfe",  # text in no encoding
        b"\x87",  # TUPLE3 of nothing
        b"t",  # a mark that is not there
        named("collections", "OrderedDict") + b"]K\x01a\x85R",  # no pairs
        storage(6) + storage(7),  # one storage twice
    ],
)
def test_programs_that_no_checkpoint_has(file, program):
    assert "its pickle" in refused(zipped(file, program))


def test_names_are_shown_on_one_line(file):
    message = refused(zipped(file, mapping(w=b"co\\ns\\q\nsys\\x1b[2Jtem\n")))
    assert "\x1b" not in message and "tem" in message
    assert "a\\nb" in refused(zipped(file, mapping(v=tensor(), **{"a\nb": b"]"})))


def test_the_memo_may_have_any_index(file):
    program = mapping(w=tensor() + b"r\xff\xff\xff\xff0j\xff\xff\xff\xff")
    assert read_archive(zipped(file, program)).weights()["w"].shape == (2, 3)


def test_what_is_no_file(tmp_path):
    assert "does not exist" in refused(tmp_path / "absent.pth")
    assert "is no file" in refused(tmp_path)


NO_ZIPS = (b"P", b"PK", b"PK\x03\x04", b"PK\x05\x06" + bytes(18))


@pytest.mark.parametrize("data", [*NO_ZIPS, b"", b"a text\n" * 9, bytes(99), b"\x80\x02N."])
def test_what_is_no_checkpoint(file, data):
    refused(write(file, data))


def test_a_zip_file_of_something_else(file):
    for names in (["mimetype"], ["a/data.pkl", "b/data.pkl"], ["data.pkl"], ["a/b/data.pkl"]):
        with zipfile.ZipFile(file, "w") as other:
            for name in names:
                other.writestr(name, b"N.")
        assert "data.pkl" in refused(file)


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "legacy"])
def test_truncated_files(file, how):
    whole = saved(file, CONTENT, **how).read_bytes()
    for length in range(0, len(whole), 41):
        with pytest.raises(UserError):
            read_archive(write(file, whole[:length])).weights()


def test_compressed_and_encrypted_members(file):
    program = mapping(w=tensor())
    assert "compressed" in refused(zipped(file, program, zipfile.ZIP_DEFLATED))
    assert "compressed" in refused(zipped(file, b"N" * 10**6, zipfile.ZIP_BZIP2))
    data = bytearray(zipped(file, program).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refused(write(file, bytes(data)))


@pytest.mark.parametrize("fields", [(20,), (24,), (20, 24), (42,), (16,)])
@pytest.mark.parametrize("number", [0xFFFFFFFE, 0x7FFFFFFF, 10**6])
def test_members_that_claim_to_be_elsewhere_or_larger(file, fields, number):
    """The stored size, the true size, both, the place and the check sum, of each member in turn."""
    data = zipped(file, mapping(w=tensor())).read_bytes()
    start = data.index(b"PK\x01\x02")
    for member in (start, data.index(b"PK\x01\x02", start + 1)):
        wrong = bytearray(data)
        for field in fields:
            wrong[member + field : member + field + 4] = struct.pack("<I", number)
        refused(write(file, bytes(wrong)))


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_names_that_leave_the_folder(file, name):
    with zipfile.ZipFile(zipped(file, mapping(w=tensor())), "a") as hostile:
        hostile.writestr(name, b"")
    assert "evil" in refused(file)


def test_members_of_one_name(file):
    with warnings.catch_warnings(), zipfile.ZipFile(zipped(file, mapping(w=tensor())), "a") as hostile:
        warnings.simplefilter("ignore")
        hostile.writestr("archive/data.pkl", b"\x80\x02N.")
    assert "two members" in refused(file)


def test_byte_order(file):
    program = mapping(w=tensor())
    assert read_archive(zipped(file, program, byteorder=b"little")).weights()
    assert "byte order big" in refused(zipped(file, program, byteorder=b"big"))


def test_a_pickle_larger_than_any(file):
    assert "above" in refused(zipped(file, b"N" * MAX_PICKLE_BYTES))


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"{}",
        b'{"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4398046511104]}}',
        b'{"w": {"dtype": "NEW", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}',
    ],
)
def test_damaged_safetensors(file, header):
    for length in (len(header), 2**40):
        refused(write(file, struct.pack("<Q", length) + header + bytes(4)))


def test_damaged_legacy_files(file):
    whole = saved(file, OrderedDict(w=torch.arange(6.0)), **LEGACY).read_bytes()
    size = whole.rindex(struct.pack("<Q", 6))
    for wrong in (
        whole[:size] + struct.pack("<Q", 2**40) + whole[size + 8 :],
        whole[:-1],
        whole.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        whole.replace(b"FloatStorage", b"QInt8Storage"),
        whole[: size - 2] + b"0." + whole[size:],
    ):
        assert wrong != whole
        refused(write(file, wrong))


def damaged(data: bytes, seed: int) -> bytes:
    """One to eight bytes changed at random, and in every fourth case the end cut off."""
    draw = random.Random(seed)
    wrong = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        wrong[draw.randrange(len(wrong))] = draw.randrange(256)
    return bytes(wrong[: draw.randrange(len(wrong))] if seed % 4 == 3 else wrong)


def outcome(path: Path) -> dict[str, torch.Tensor] | None:
    """The weights of a file, None where it is refused; any other exception is a failure of the test."""
    try:
        archive = read_archive(path)
        archive.settings("args")
        found = archive.weights()
    except UserError as error:
        assert "\n" not in str(error)
        return None
    # every element is there to be computed with
    assert all(tensor.numel() < 100 and tensor.clone().numel() == tensor.numel() for tensor in found.values())
    return found


def test_damaged_files_give_the_same_tensors_or_an_error(file):
    whole = saved(file, CONTENT).read_bytes()
    read = [found for seed in range(300) if (found := outcome(write(file, damaged(whole, seed)))) is not None]
    assert 0 < len(read) < 300
    for found in read:
        assert found.keys() == CONTENT["model"].keys()
        assert all(crafted.same(found[name], wanted) for name, wanted in CONTENT["model"].items())


def test_damaged_pickles_give_tensors_or_an_error(file):
    """The pickle alone, with a right check sum: the damage gets as far as the machine that runs it."""
    with zipfile.ZipFile(saved(file, CONTENT)) as whole:
        members = {name.split("/", 1)[1]: whole.read(name) for name in whole.namelist()}
    program = members.pop("data.pkl")[2:-1]
    scripts = module(visual=module(w=tensor()), on=b"\x88", none=b"N")
    found = [outcome(zipped(file, damaged(program, seed), **members)) for seed in range(400)]
    found += [outcome(scripted(file, damaged(scripts, seed))) for seed in range(300)]
    assert 0 < sum(one is None for one in found) < 700


def test_damaged_legacy_and_safetensors_files_give_tensors_or_an_error(file):
    stream = io.BytesIO()
    torch.save(CONTENT, stream, **LEGACY)
    save_file(CONTENT["model"], file)
    for whole in (stream.getvalue(), file.read_bytes()):
        found = [outcome(write(file, damaged(whole, seed))) for seed in range(300)]
        assert 0 < sum(one is None for one in found) < 300
