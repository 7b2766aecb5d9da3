# SPDX-License-Identifier: MIT
"""A linear embedding as text tower: every token a row of a table, and a text the mean of its rows.

It is what UniCL's ablation of the language encoder asks for (Yang et al., CVPR 2022, Table 3): a linear embedding in
the transformer's place. The transformer is reported to be better; we know that from summaries, have not read the
table, and state no numbers. No code of it was published, so whether the original has a row per class name or a row per
word is not known. The paper's remark that the image-to-text loss becomes cross-entropy when the text encoder is a
linear embedding W (as we remember it) speaks for one row per class. Here there is a row per token: a text that was
never seen has a feature too, and classes share what their names share. Where no two class names have a token in common
the two readings can express the same classifiers.

Letters: `N` texts, `L` tokens, `K` width.
"""

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from .configuration_embedding import TextEmbeddingConfig


class TextEmbeddingModel(PreTrainedModel):
    """Token embeddings [N, L, K] of texts [N, L]; no positions, no layers, no pooler.

    `text_pooling="mean"` makes the linear text encoder of it: g(t) = 1/|t| Σ_i E[t_i] over the tokens that the mask
    attends to, those that frame a text included. It is blind to the order of words.
    """

    config: TextEmbeddingConfig
    base_model_prefix = "text_embedding"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _input_embed_layer = "token_embedding"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TextEmbeddingConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> BaseModelOutput:
        """`last_hidden_state` [N, L, K]; `attention_mask` [N, L] is for whoever pools it."""
        return BaseModelOutput(last_hidden_state=self.token_embedding(input_ids))


__all__ = ["TextEmbeddingModel"]
