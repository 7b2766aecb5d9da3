"""Names of OpenAI's CLIP, which VL-LTR, UniCL and open_clip share, beside ours."""

from hf_vlr.convert.keymap import Rule, move, prefixed


def transformer_rules(source: str, target: str) -> list[Rule]:
    """CLIP's residual attention blocks at `source`, transformers' CLIP layers at `target`."""
    attention = [f"self_attn.{part}_proj.*" for part in "qkv"]
    block = [
        Rule("attn.in_proj_*", tuple(attention)),
        move("attn.out_proj.*", "self_attn.out_proj.*"),
        move("ln_1.*", "layer_norm1.*"),
        move("ln_2.*", "layer_norm2.*"),
        move("mlp.c_fc.*", "mlp.fc1.*"),
        move("mlp.c_proj.*", "mlp.fc2.*"),
    ]
    return prefixed(block, f"{source}.*.", f"{target}.*.")


def text_rules(source: str = "", blocks: str = "transformer.resblocks") -> list[Rule]:
    """The text tower below `source`, whose blocks lie at `blocks`, as `text_model`; projections apart."""
    rules = [
        move("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        move("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        move("ln_final.*", "text_model.final_layer_norm.*"),
        *transformer_rules(blocks, "text_model.encoder.layers"),
    ]
    return prefixed(rules, source)


def vit_rules(source: str = "visual.") -> list[Rule]:
    """The vision transformer below `source` as `vision_model` and `visual_projection`."""
    rules = [
        move("class_embedding", "vision_model.embeddings.class_embedding"),
        move("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        move("conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        move("ln_pre.*", "vision_model.pre_layrnorm.*"),
        move("ln_post.*", "vision_model.post_layernorm.*"),
        move("proj", "visual_projection.weight", transpose=True),
        *transformer_rules("transformer.resblocks", "vision_model.encoder.layers"),
    ]
    return prefixed(rules, source)


def resnet_rules(source: str = "visual.") -> list[Rule]:
    """The modified ResNet below `source` as `vision_model` and `visual_projection`: names inside stay as they are."""
    rules = [
        move("attnpool.c_proj.*", "visual_projection.*"),
        move("attnpool.positional_embedding", "vision_model.attnpool.positional_embedding"),
        move("attnpool.*_proj.*", "vision_model.attnpool.*_proj.*"),
        *[move(f"{kind}{n}.**", f"vision_model.{kind}{n}.**") for kind in ("conv", "bn") for n in (1, 2, 3)],
        *[move(f"layer{n}.**", f"vision_model.layer{n}.**") for n in (1, 2, 3, 4)],
    ]
    return prefixed(rules, source)


def projection_rules(text: str = "text_projection") -> list[Rule]:
    """The text projection, multiplied from the right, and the log of the inverse temperature."""
    return [move(text, "text_projection.weight", transpose=True), move("logit_scale", "logit_scale")]
