"""onnxruntime on the processor."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_vlr.errors import UserError, first_line

Arrays = dict[str, npt.NDArray[Any]]


class Session:
    """An ONNX file, ready to run. threads: how many it computes with, None for all that there are.

    Raises `UserError` for a file that onnxruntime cannot run.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as native

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        # threads rest as soon as an answer is there, so that what runs next has the processor for itself
        options.add_session_config_entry("session.force_spinning_stop", "1")
        failures = (native.Fail, native.InvalidGraph, native.InvalidProtobuf, native.NotImplemented)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except failures as error:
            raise UserError(f"{path.name} does not run in onnxruntime: {first_line(error)}") from error
        self.inputs = {one.name: one.shape for one in self._session.get_inputs()}
        self.outputs = {one.name: one.shape for one in self._session.get_outputs()}

    def run(self, **inputs: npt.NDArray[Any]) -> Arrays:
        """Outputs by name."""
        inputs = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
        return dict(zip(self.outputs, self._session.run(None, inputs), strict=True))
