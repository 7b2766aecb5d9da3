"""Names in a recipe that are repositories on the Hub, as far as a name can tell."""

from typing import Any

from hf_vlr.hub.local_paths import is_local


def hub_id(source: str | None) -> str | None:
    """ORG/NAME where a recipe's value is one and no folder of this machine is called so, without its revision.

    A relative folder that is no more looks the same: only the Hub can tell.
    """
    named = (source or "").removeprefix("stream:")
    if named.count("/") != 1 or ":" in named or is_local(named):
        return None
    return named.partition("@")[0]


def base_models(recipe: dict[str, Any] | None) -> tuple[str, ...]:
    """What training began from on the Hub: `model.init`, else the towers that are `hf:ORG/NAME`."""
    model = (recipe or {}).get("model") or {}
    if model.get("init"):
        found = [hub_id(model["init"])]
    else:
        towers = [model.get("vision"), model.get("text") if model.get("language") else None]
        found = [hub_id(tower.removeprefix("hf:")) for tower in towers if tower and tower.startswith("hf:")]
    return tuple(dict.fromkeys(filter(None, found)))
