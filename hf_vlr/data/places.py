"""Where datasets lie, what their splits are called there, and what is said when they cannot be opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from datasets.exceptions import DatasetsError

from hf_vlr.errors import UserError

T = TypeVar("T")

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
SPLIT_NAMES = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "eval": "test",
}
HUB_NAME = r"[\w.-]+/[\w.-]+(:[\w.-]+)?"


def existing_folder(folder: str) -> Path:
    """The folder as a path, or `UserError` where there is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{folder or 'imagefolder:'}: there is no such folder; check the path in data.source")
    return path


def loaded(function: Callable[..., T], spec: str, *args: str, **kwargs: Any) -> T:
    """`function(*args, **kwargs)` of `datasets`, its errors as `UserError`."""
    try:
        return function(*args, **kwargs)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{spec}: the dataset could not be loaded ({reason}); check its name and files") from error
