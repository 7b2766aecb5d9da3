"""This package as a wheel, made of the files it runs from: no network and no build tools."""

import base64
import hashlib
import re
import tomllib
import zipfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import hf_vlr
from hf_vlr import __version__
from hf_vlr.errors import UserError

PACKAGE = "hf_vlr"
# in a clone the latter two lie beside the package
PARTS = (PACKAGE, f"{PACKAGE}.modeling", f"{PACKAGE}.datasets_scripts")
# of an archive's members, so that the same files make the same bytes
DATE = (2020, 1, 1, 0, 0, 0)
TAGS = "Wheel-Version: 1.0\nGenerator: hf_vlr\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def pack_wheel(folder: Path) -> Path:
    """Write `hf_vlr-VERSION-py3-none-any.whl` into a folder; what pip installs from it is this package as it runs here.

    Also for an editable installation, whose parts lie in several folders. Python can import from the file as it is.
    Raises `UserError` where the package runs from something else than files, or is not installed.
    """
    info = f"{PACKAGE}-{__version__}.dist-info"
    members = package_files() | {
        f"{info}/METADATA": _metadata().encode(),
        f"{info}/WHEEL": TAGS.encode(),
        f"{info}/entry_points.txt": b"[console_scripts]\nhf-vlr = hf_vlr.cli.main:main\n",
    }
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{PACKAGE}-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, DATE), data, zipfile.ZIP_DEFLATED)
    return path


def package_files() -> dict[str, bytes]:
    """The content of every file of the package, by its path in a wheel."""
    found: dict[str, bytes] = {}
    for module in map(import_module, PARTS):
        root = Path(module.__path__[0])
        if not root.is_dir():
            raise UserError(f"{PACKAGE} does not run from files ({root}), so it cannot be packed: pip install it")
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(root).as_posix()
                found["/".join([*module.__name__.split("."), inside])] = path.read_bytes()
    return dict(sorted(found.items()))


def requirements() -> list[str]:
    """What the package requires, and with markers what its extras do; of a clone what its pyproject.toml says today.

    Raises `UserError` where the package is neither a clone nor installed.
    """
    project = _clone()
    if project is None:
        try:
            return requires(PACKAGE) or []
        except PackageNotFoundError as error:
            raise UserError(f"{PACKAGE} is not installed, so its requirements are not known: pip install it") from error
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(f'{one}; extra == "{name}"' for name in extras for one in extras[name])]


def _clone() -> dict[str, Any] | None:
    """The `project` of the pyproject.toml beside the package, None for an installed one."""
    path = Path(hf_vlr.__path__[0]).parent / "pyproject.toml"
    if not path.is_file():
        return None
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    return project if project.get("name") == PACKAGE else None


def _metadata() -> str:
    lines = requirements()
    extras = sorted({found[1] for line in lines for found in re.finditer(r'extra == "([^"]+)"', line)})
    fields = {"Name": [PACKAGE], "Version": [__version__], "Provides-Extra": extras, "Requires-Dist": lines}
    return "Metadata-Version: 2.1\n" + "".join(f"{key}: {one}\n" for key in fields for one in fields[key])


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
