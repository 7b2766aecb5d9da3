"""The rules of the house: what lies where, who imports whom, how long things get, what the wheel holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    "pyproject.toml", "README.md", "LICENSE", "CITATION.cff",
    "hf_vlr", "modeling", "datasets_scripts", "spaces", "tests",
}  # fmt: skip
CODE = ("hf_vlr", "modeling", "datasets_scripts", "spaces")
MAX_FILE, MAX_FUNCTION = 450, 60
BUILDERS = "hf_vlr.datasets_scripts"


def ignored(path: Path) -> bool:
    """Whether .gitignore names the path or a folder above it; `/name/` counts at the top level only."""
    parts = path.relative_to(ROOT).parts
    return any(
        fnmatch(part, pattern.strip("/"))
        for pattern in (ROOT / ".gitignore").read_text().split()
        for part in (parts[:1] if pattern.startswith("/") else parts)
    )


def files(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """The files below folders that belong to the project; `()` for any suffix."""
    found = (path for folder in folders for path in sorted((ROOT / folder).rglob("*")))
    return [
        path for path in found if path.is_file() and (not suffixes or path.suffix in suffixes) and not ignored(path)
    ]


def imports(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, number of leading dots, whether an ImportError is caught) of every import, at any depth."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, guarded
        elif isinstance(node, ast.Try):
            caught = any("ImportError" in ast.unparse(handler.type or node) for handler in node.handlers)
            for child in node.body:
                yield from imports(ast.Module([child], []), guarded or caught)
            rest = [*node.handlers, *node.orelse, *node.finalbody]
            yield from imports(ast.Module(rest, []), guarded)
        else:
            yield from imports(node, guarded)


def bad_import(folder: str, name: str, module: str, dots: int, guarded: bool) -> bool:
    top = module.partition(".")[0]
    if folder == "modeling":
        if dots:
            return dots > 1 or not module or "." in module
        return not guarded and top not in {"torch", "transformers"} and top not in sys.stdlib_module_names
    within = module == BUILDERS or module.startswith(f"{BUILDERS}.") or top in {"datasets_scripts", "modeling"}
    if folder == "hf_vlr":
        return bool(dots) or (within and name != "hf_vlr/data/registry.py")
    if folder == "datasets_scripts":
        ours = top == "hf_vlr" and not re.match(r"hf_vlr\.(data|errors|datasets_scripts)(\.|$)", module)
        return ours or top in {"datasets_scripts", "modeling"} or dots > 1
    return top in {"datasets_scripts", "modeling"}


def function_lengths(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Lines of every function from its `def` to its end, its docstring not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, length


def trusts_remote_code(tree: ast.AST) -> bool:
    return any(
        isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and isinstance(node.value, ast.Constant)
        and node.value.value is True
        for node in ast.walk(tree)
    )


def absolute_paths(text: str) -> list[str]:
    return re.findall(r"(?<![\w.~}/-])/(?:home|root|work|tmp|mnt|Users|scratch)/[\w.-]+", text)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_top_level_is_exactly_the_house():
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not ignored(path)}
    assert found == TOP_LEVEL


@pytest.mark.parametrize("folder", CODE)
def test_imports_point_one_way(folder):
    wrong = [
        f"{relative(path)} imports {'.' * dots}{module}"
        for path in files(folder)
        for module, dots, guarded in imports(ast.parse(path.read_text()))
        if bad_import(folder, relative(path), module, dots, guarded)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("folder", "code", "allowed"),
    [
        ("modeling", "from .towers import build", True),
        ("modeling", "import torch.nn.functional as F", True),
        ("modeling", "try:\n    import timm\nexcept ImportError:\n    timm = None", True),
        ("modeling", "try:\n    import timm\nexcept (KeyError, ImportError):\n    timm = None", True),
        ("modeling", "try:\n    import timm\nexcept KeyError:\n    timm = None", False),
        ("modeling", "try:\n    pass\nexcept ImportError:\n    import timm", False),
        ("modeling", "def f():\n    import numpy", False),
        ("modeling", "import hf_vlr.errors", False),
        ("modeling", "from . import towers", False),
        ("modeling", "from ..hf_vlr import errors", False),
        ("modeling", "from .sub.towers import build", False),
        ("hf_vlr", "from hf_vlr.modeling import UniCLModel", True),
        ("hf_vlr", "from hf_vlr.datasets_scripts.places import Places", False),
        ("hf_vlr", "import modeling.towers", False),
        ("hf_vlr", "from . import errors", False),
        ("datasets_scripts", "from hf_vlr.data.images import open_image", True),
        ("datasets_scripts", "from hf_vlr.errors import UserError", True),
        ("datasets_scripts", "from hf_vlr.training.recipe import load_recipe", False),
        ("datasets_scripts", "import hf_vlr", False),
        ("spaces", "import hf_vlr", True),
        ("spaces", "import modeling", False),
    ],
)
def test_the_import_rule_itself(folder, code, allowed):
    found = [bad_import(folder, f"{folder}/x.py", *one) for one in imports(ast.parse(code))]
    assert found == [not allowed]


def test_modeling_is_flat_and_spaces_is_no_package():
    assert not [path.name for path in (ROOT / "modeling").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert not (ROOT / "spaces" / "__init__.py").exists()


def test_nothing_is_too_long():
    long = []
    for path in files(*CODE, "tests"):
        text = path.read_text()
        lines = text.count("\n")
        if lines > MAX_FILE:
            long.append(f"{relative(path)}: {lines} lines")
        for name, length in function_lengths(ast.parse(text)):
            if length > MAX_FUNCTION:
                long.append(f"{relative(path)} {name}: {length} lines")
    assert not long, "\n".join(long)


def test_function_lengths_leave_the_docstring_out():
    tree = ast.parse('@mark\ndef f(\n    a\n):\n    """One\n\n    three."""\n    return a\n')
    assert list(function_lengths(tree)) == [("f", 4)]


def test_no_file_is_called_utils():
    assert not [relative(path) for path in files(*CODE, "tests") if "utils" in path.stem]


def test_no_code_is_trusted_and_no_path_is_absolute():
    trusting = [relative(path) for path in files(*CODE) if trusts_remote_code(ast.parse(path.read_text()))]
    assert not trusting
    assert trusts_remote_code(ast.parse("load(x, trust_remote_code=True)"))
    texts = [*files(*CODE, "tests", suffixes=(".py", ".yaml", ".toml", ".md")), ROOT / "pyproject.toml"]
    found = {relative(path): absolute_paths(path.read_text()) for path in texts}
    assert not {name: paths for name, paths in found.items() if paths}
    assert absolute_paths("at " + "/home" + "/someone") == ["/home" + "/someone"]


def test_pyproject_lists_the_packages_and_data_of_the_tree():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    homes = {name: ROOT / setup["package-dir"].get(name, name.replace(".", "/")) for name in setup["packages"]}
    found = {path.parent for path in files("hf_vlr", "modeling", "datasets_scripts")}
    assert set(homes.values()) == found
    assert all((home / "__init__.py").is_file() for home in homes.values())
    patterns = {home / pattern for name, home in homes.items() for pattern in setup["package-data"].get(name, ())}
    data = [path for path in files("hf_vlr", "modeling", "datasets_scripts", suffixes=()) if path.suffix != ".py"]
    missed = [relative(path) for path in data if not any(fnmatch(str(path), str(one)) for one in patterns)]
    assert not missed, f"not in package-data: {missed}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the sources: building in place would leave files, and take up stale ones."""
    target = tmp_path_factory.mktemp("sources") / "clone"
    target.mkdir()
    for name in sorted(TOP_LEVEL - {"tests"}):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return target


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_wheel(copy, tmp_path):
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    run(
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path / "dist"),
        str(copy),
        cwd=tmp_path,
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    (info,) = {name.partition("/")[0] for name in names} - {"hf_vlr"}
    assert re.fullmatch(r"hf_vlr-[\d.]+\.dist-info", info)
    expected = {relative(path) for path in files("hf_vlr", suffixes=())}
    expected |= {f"hf_vlr/{relative(path)}" for path in files("modeling", "datasets_scripts", suffixes=())}
    assert {name for name in names if name.startswith("hf_vlr/")} == expected
    assert "hf_vlr/py.typed" in names

    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=tmp_path)
    script = (
        "import hf_vlr; from transformers import AutoConfig;"
        "import hf_vlr.datasets_scripts, hf_vlr.modeling.configuration_unicl as m;"
        "print(hf_vlr.__version__, hf_vlr.__file__, m.__file__, type(AutoConfig.for_model('unicl')).__name__)"
    )
    version, *paths, config = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(site)).split()
    assert info == f"hf_vlr-{version}.dist-info"
    assert all(Path(path).is_relative_to(site) for path in paths)
    assert config == "UniCLConfig"


@pytest.mark.slow
def test_editable_install(copy, tmp_path):
    build = "from setuptools import build_meta; import sys; print(build_meta.build_editable(sys.argv[1]))"
    name = run(sys.executable, "-c", build, str(tmp_path), cwd=copy).split()[-1]
    site = tmp_path / "site"
    zipfile.ZipFile(tmp_path / name).extractall(site)
    script = (
        f"import site; site.addsitedir({str(site)!r});"
        "import hf_vlr, hf_vlr.errors, hf_vlr.modeling, hf_vlr.datasets_scripts as d;"
        "print(hf_vlr.errors.__file__, hf_vlr.modeling.__file__, d.__file__)"
    )
    # -S and -I: without the environment's own installation, editable or not.
    paths = run(sys.executable, "-I", "-S", "-c", script, cwd=tmp_path).split()
    wanted = ["hf_vlr/errors.py", "modeling/__init__.py", "datasets_scripts/__init__.py"]
    assert paths == [str(copy / path) for path in wanted]
