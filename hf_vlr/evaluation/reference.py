"""A second evaluation that the first is held against: it must have seen the same images."""

import numpy as np

from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import Predictions


def check_reference(predictions: Predictions, reference: Predictions) -> None:
    """Raise `UserError` where a reference was measured on other classes or other images."""
    if reference.num_classes != predictions.num_classes:
        raise UserError(
            f"the reference knows {reference.num_classes} classes, these predictions {predictions.num_classes}; "
            "give a reference on the same data"
        )
    if len(reference.labels) != len(predictions.labels):
        raise UserError(
            f"the reference has {len(reference.labels)} images, these predictions {len(predictions.labels)}; "
            "give a reference on the same split"
        )
    if not np.array_equal(reference.labels, predictions.labels):
        raise UserError("the reference has the same number of images but other labels; give one on the same split")
    both = predictions.rows is not None and reference.rows is not None
    if both and not np.array_equal(reference.rows, predictions.rows):
        raise UserError("the reference was measured on other images with the same labels; give one on the same split")
