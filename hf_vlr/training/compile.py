"""torch.compile for the towers of a model, where nearly all of a step's time goes."""

from hf_vlr.modeling.modeling_unicl import UniCLPreTrainedModel

# random draws as in the uncompiled tower: a repeated forward repeats them, and a compiled run matches a plain one
OPTIONS = {"fallback_random": True}


def compile_towers(model: UniCLPreTrainedModel) -> None:
    """Compile the towers in place: modules, parameter names and the model's code stay as they are.

    Nothing is compiled yet when this returns: a tower is at its first call, which takes from seconds to minutes, and
    once more at its first call with other sizes. That second graph is for all sizes, so the smaller last batch of an
    epoch and texts of any number and length compile no further. Training, evaluation and a forward without gradients
    have graphs of their own; a batch of a single row may have too. After torch's limit of recompilations (8 for a
    tower) further kinds of input run uncompiled.

    Call it before the model is wrapped for several processes, and after `apply_patch_dropout`.
    """
    for tower in model.towers():
        tower.compile(options=OPTIONS)
