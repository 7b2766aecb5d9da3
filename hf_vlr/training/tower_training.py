"""What training does to towers, and takes no part in the model that is saved."""

from hf_vlr.modeling import UniCLModel
from hf_vlr.training.compile import compile_towers
from hf_vlr.training.options import ModelOptions
from hf_vlr.training.patch_dropout import apply_patch_dropout


def prepare_towers(model: UniCLModel, options: ModelOptions) -> None:
    """Patch dropout and compilation, where they are asked for. Raises `UserError` for a tower without patches."""
    if options.patch_dropout:
        apply_patch_dropout(model.vision_model, options.patch_dropout)
    if options.compile:
        compile_towers(model)
