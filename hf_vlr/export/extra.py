"""The packages that exporting needs beside the package's own."""

from importlib.util import find_spec

from hf_vlr.errors import UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def require_extra() -> None:
    """Raise `UserError` that says how to install what is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f'{" and ".join(missing)} {verb} not installed: in the package\'s repository, pip install -e ".[export]"'
        )
