"""Where an evaluation keeps what towers computed, so that a second one does not run them again."""

from huggingface_hub import cached_assets_path

from hf_vlr.features import StateCache
from hf_vlr.training.options import DataOptions


def evaluation_cache(data: DataOptions) -> StateCache:
    """The folder `data.cache_dir`; by default `states` in the assets cache of the Hugging Face libraries.

    `data.cache_dir=off` keeps nothing. The default follows HF_HOME and HF_ASSETS_CACHE, and may be deleted at any time:
    files are found by the content of weights, images and transform, and computed anew where they are missing.
    """
    if data.cache_dir:
        # a folder that somebody named is shared with trainings, which keep whole datasets
        return StateCache(data.cache_dir)
    try:
        folder = cached_assets_path("hf_vlr", namespace="default", subfolder="states")
    except (OSError, ValueError):
        # a home that cannot be written is no reason not to measure
        return StateCache(None)
    return StateCache(str(folder), whole=False)
