"""Triton kernels with the contracts of the plain-torch functions in `hf_vlr.modeling`, which calls them where they run.

`hf_vlr.modeling.backend` decides that. They have been checked in Triton's interpreter, against the plain functions and
their references, and compiled ahead of time for compute capabilities 8.0 to 9.0; they have not run on a GPU yet, so
nothing is known of their speed.

Importing this package imports Triton, and raises ImportError without it.
"""

from hf_vlr.kernels.contrast import log_sums, weighted_sums
from hf_vlr.kernels.recognition import MOST_SENTENCES, attended_cosines, attended_cosines_gradient

__all__ = ["MOST_SENTENCES", "attended_cosines", "attended_cosines_gradient", "log_sums", "weighted_sums"]
