# SPDX-License-Identifier: MIT
"""Configuration of the smallest text encoder: a table of token embeddings."""

from transformers.configuration_utils import PreTrainedConfig, strict


@strict
class TextEmbeddingConfig(PreTrainedConfig):
    """Configuration of `TextEmbeddingModel`.

    Args:
        vocab_size: tokens, and so rows of the table.
        hidden_size: width K of a row.
        max_position_embeddings: the most tokens of a text that are read. The model knows no positions; this bounds
            what a long text costs.
        initializer_range: standard deviation of fresh rows.
    """

    model_type = "text_embedding"

    vocab_size: int = 4096
    hidden_size: int = 128
    max_position_embeddings: int = 77
    initializer_range: int | float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def validate_architecture(self) -> None:
        """Checks across fields; called by the strict dataclass."""
        for name in ("vocab_size", "hidden_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


__all__ = ["TextEmbeddingConfig"]
