"""The Hub as one may write to it: a token, a repository of one's own, and one line for whatever goes wrong."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_vlr.errors import UserError, first_line

AGAIN = "what is uploaded is not uploaded twice"
REFUSED = {
    402: "the Hub asks for payment; see the billing page of the account",
    403: "this token may not write there; choose a name of your own or your organisation's, or a token that may write",
    404: "not found, or not for this token; check the name, or log in: hf auth login",
    409: "this name is taken; choose another",
    413: "the upload is larger than the Hub takes",
    429: f"too many requests; start again in some minutes: {AGAIN}",
}
# seconds before a request is made again that the Hub answered with an error of its own
WAITS = (2.0, 8.0, 20.0)

Result = TypeVar("Result")


def check_name(repo_id: str) -> None:
    """`UserError` for a name that cannot be one of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: not a name on the Hub; write ORG/NAME in letters, digits, - _ and .") from error
    if repo_id.count("/") != 1:
        raise UserError(f"{repo_id}: the name of its owner is missing; write ORG/NAME")


def open_hub(repo_id: str, token: str | None = None) -> HfApi:
    """The Hub with a token, by default the one that `hf auth login` saved.

    Raises `UserError` without one, and for a name that cannot be.
    """
    check_name(repo_id)
    token = token or get_token()
    if not token:
        raise UserError("no token for the Hub; log in first: hf auth login (or set HF_TOKEN)")
    return HfApi(token=token)


def check_destination(repo_id: str, *, token: str | None = None) -> None:
    """Ask the Hub whether it knows the token, before long work. Raises `UserError`."""
    api = open_hub(repo_id, token)
    with one_line_errors(repo_id):
        api.whoami()


def claim(api: HfApi, repo_id: str, private: bool, repo_type: str = "model", space_sdk: str | None = None) -> None:
    """Make the repository, or see that the one that exists may be written to.

    repo_type: model, dataset or space, the last with its `space_sdk`. Raises `UserError` where `private` is asked for
    and the repository exists and is public.
    """
    try:
        # None leaves the choice to the organisation's own default.
        api.create_repo(repo_id, repo_type=repo_type, private=private or None, space_sdk=space_sdk)
        return
    except HfHubHTTPError as error:
        # A token for one repository alone may not create it, and may write to it all the same.
        if error.response.status_code not in (401, 403, 409) or not api.repo_exists(repo_id, repo_type=repo_type):
            raise
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise UserError(f"{repo_id}: exists and is public; make it private in its settings, or choose another name")


def persist(act: Callable[[], Result], say: Callable[[str], None] = lambda line: None) -> Result:
    """The result of `act()`, tried again after each of `WAITS` where the Hub answers 5xx.

    `act` may be started again from its beginning. `say` is told before every wait.
    """
    for wait in WAITS:
        try:
            return act()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500:
                raise
            say(f"the Hub is in trouble ({status}); trying again in {wait:g} s")
        time.sleep(wait)
    return act()


@contextmanager
def one_line_errors(repo_id: str, hints: Mapping[int, str] | None = None) -> Iterator[None]:
    """Turn what huggingface_hub raises into `UserError`s that say what to do; `hints` add to it, by HTTP status."""
    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE=1 forbids the network; unset it to push") from error
    except HTTPError as error:
        raise UserError(explain(error, repo_id, hints)) from error
    except (RuntimeError, OSError) as error:
        # huggingface_hub wraps what happens to a single file; hf_xet raises these kinds itself.
        cause = error.__cause__
        if isinstance(cause, HTTPError):
            raise UserError(explain(cause, repo_id, hints)) from error
        raise UserError(f"{repo_id}: the upload broke off ({first_line(error)}); start again: {AGAIN}") from error
    except ValueError as error:
        if "README.md" not in str(error):
            raise
        raise UserError(f"{repo_id}: the Hub refuses the card: {' '.join(str(error).split())}") from error


def explain(error: HTTPError, repo_id: str, hints: Mapping[int, str] | None = None) -> str:
    """What happened between here and the Hub, and what to do about it."""
    if not isinstance(error, HfHubHTTPError):
        return f"cannot reach {constants.ENDPOINT} ({first_line(error)}); check the network and start again: {AGAIN}"
    status = error.response.status_code
    if status == 401:
        first = "unset HF_TOKEN, which wins over a login, or mend it" if os.environ.get("HF_TOKEN") else "log in again"
        return f"the Hub refuses the token, it is wrong or has expired; {first}: hf auth login --force"
    if status in REFUSED:
        return "; ".join([f"{repo_id}: {REFUSED[status]}", *filter(None, [(hints or {}).get(status)])])
    if status >= 500:
        return f"{repo_id}: the Hub is in trouble ({status}); start again later: {AGAIN}"
    return f"{repo_id}: the Hub refuses ({status}): {error.server_message or first_line(error)}"
