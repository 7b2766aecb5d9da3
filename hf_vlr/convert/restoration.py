"""The way back: tensors of a model of this package under the original's names."""

from collections.abc import Mapping

from torch import Tensor

from hf_vlr.convert.openai_clip import openai_clip_keys
from hf_vlr.convert.unicl import restore_unicl
from hf_vlr.convert.vl_ltr import MADE, dual_encoder_keys, recogniser_keys
from hf_vlr.errors import UserError
from hf_vlr.modeling import UniCLConfig
from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

FORMATS = ("vl-ltr", "unicl", "openai-clip")


def restore(model: UniCLPreTrainedModel, format: str) -> dict[str, Tensor]:
    """The model's tensors as `format` (`vl-ltr`, `unicl` or `openai-clip`) names and shapes them.

    `restore` after `convert` gives the original tensors bit for bit (unless positions were interpolated or the dtype
    changed). What a format has no place for is left out: the mask, sentences and counts of a recogniser. Raises
    `UserError` for towers that the format does not know.
    """
    return restore_tensors(model.state_dict(), model.config, format)


def restore_tensors(ours: Mapping[str, Tensor], config: UniCLConfig, format: str) -> dict[str, Tensor]:
    """The same for any tensors under our names: gradients, moments of an optimiser, a part of a state dict."""
    if format == "vl-ltr" and any(name.startswith("head.") for name in ours):
        return recogniser_keys(config).backward({name: tensor for name, tensor in ours.items() if name not in MADE})
    if format == "vl-ltr":
        return dual_encoder_keys(config).backward(ours)
    if format == "unicl":
        return restore_unicl(ours, config)
    if format == "openai-clip":
        return openai_clip_keys(config).backward(ours)
    raise UserError(f"cannot write the format {format}; there are {', '.join(FORMATS)}")
