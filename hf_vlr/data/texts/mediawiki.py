"""Pages from a wiki's MediaWiki API: slowly, politely, and each only once."""

import hashlib
import json
import re
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from hf_vlr import __version__
from hf_vlr.data.texts.page import Page
from hf_vlr.errors import UserError

TIMEOUT = 30.0
LONGEST_WAIT = 300.0
# Errors that the API reports in an answer of status 200, and that pass.
_PASSING = ("maxlag", "ratelimited", "readonly", "internal_api_error_DBQueryError")


class _Refused(NamedTuple):
    """A request that may be made again: why, and how many seconds the server wants first."""

    reason: str
    wait: float


class MediaWiki:
    """Looks pages up by title, one request at a time, and keeps every answer on disk.

    endpoint: the address of `api.php`. contact: a mail address or URL of whoever runs this, which goes into the
    User-Agent with this project's name and version. cache: a folder for the answers; what lies there is not asked
    for again, so an interrupted run goes on where it stopped. interval: least seconds between two requests.
    attempts: how often a request is made before giving up; after a failure the wait is what the server asks for, or
    `backoff` seconds, doubled each time. Raises `UserError` for a contact or endpoint that is none.
    """

    def __init__(
        self,
        endpoint: str,
        contact: str,
        cache: str | Path,
        *,
        interval: float = 1.0,
        attempts: int = 6,
        backoff: float = 2.0,
    ) -> None:
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise UserError(f"{endpoint!r} is not the http address of a wiki's api.php")
        if not re.fullmatch(r"[^\s@()]+@[^\s@()]+\.[^\s@()]+|https?://[^\s()]+", contact):
            raise UserError(f"contact {contact!r} is neither a mail address nor a URL; the wiki asks for one")
        self.endpoint = endpoint
        self.agent = f"hf_vlr/{__version__} ({contact})"
        self.cache = Path(cache) / (urlsplit(endpoint).hostname or "")
        self.interval, self.attempts, self.backoff = interval, attempts, backoff
        self._next_request = 0.0

    def page(self, title: str) -> Page:
        """The page of a title, redirects followed. Raises `UserError` where the wiki cannot be asked."""
        pages = self._answer(title).get("query", {}).get("pages") or [{"missing": True}]
        found = pages[0]
        name = found.get("title", title)
        if found.get("missing") or found.get("invalid"):
            return Page(name, "missing")
        if "disambiguation" in found.get("pageprops", {}):
            return Page(name, "disambiguation", found.get("fullurl", ""))
        return Page(name, "article", found.get("fullurl", ""), found.get("extract", ""))

    def _answer(self, title: str) -> dict[str, Any]:
        digest = hashlib.blake2b(f"{self.endpoint}\n{title}".encode(), digest_size=16).hexdigest()
        file = self.cache / f"{digest}.json"
        kept = _kept(file, title)
        if kept is None:
            kept = self._ask(title)
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part")
            partial.write_text(json.dumps({"title": title, "answer": kept}, ensure_ascii=False), encoding="utf-8")
            partial.replace(file)
        return kept

    def _ask(self, title: str) -> dict[str, Any]:
        fields = {
            "action": "query",
            "format": "json",
            "formatversion": "2",
            "prop": "extracts|info|pageprops",
            "explaintext": "1",
            "exsectionformat": "wiki",
            "inprop": "url",
            "ppprop": "disambiguation",
            "redirects": "1",
            "maxlag": "5",
            "titles": title,
        }
        request = Request(f"{self.endpoint}?{urlencode(fields)}", headers={"User-Agent": self.agent})
        reason = ""
        for attempt in range(self.attempts):
            answer = self._once(request)
            if not isinstance(answer, _Refused):
                return answer
            reason = answer.reason
            if answer.wait > LONGEST_WAIT:
                raise UserError(f"{self.endpoint} asks to wait {answer.wait:.0f} s; run the same command again later")
            self._next_request = time.monotonic() + max(answer.wait, self.backoff * 2**attempt)
        raise UserError(
            f"{self.endpoint} failed {self.attempts} times for {title!r} ({reason}); "
            "run the same command again to go on from there"
        )

    def _once(self, request: Request) -> dict[str, Any] | _Refused:
        time.sleep(max(0.0, self._next_request - time.monotonic()))
        self._next_request = time.monotonic() + self.interval
        try:
            with urlopen(request, timeout=TIMEOUT) as response:
                wait = _seconds(response.headers.get("Retry-After"))
                answer = json.load(response)
        except HTTPError as error:
            if error.code == 429 or error.code >= 500:
                return _Refused(f"status {error.code}", _seconds(error.headers.get("Retry-After")))
            raise UserError(f"{self.endpoint} refuses the request (status {error.code}); check --api") from error
        except (OSError, HTTPException, ValueError) as error:
            return _Refused(f"{type(error).__name__}: {error}", 0.0)
        if not isinstance(answer, dict) or not ("query" in answer or "error" in answer):
            raise UserError(f"{self.endpoint} answers, but not as MediaWiki does; check --api")
        if "error" in answer:
            code, info = answer["error"].get("code", ""), answer["error"].get("info", "")
            if code in _PASSING:
                return _Refused(f"{code}: {info}", wait)
            raise UserError(f"{self.endpoint} reports {code}: {info}")
        return answer


def _kept(file: Path, title: str) -> dict[str, Any] | None:
    """The answer that lies in the cache; None for none, and for one that cannot be read."""
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry.get("answer") if isinstance(entry, dict) and entry.get("title") == title else None


def _seconds(retry_after: str | None) -> float:
    """The wait that a `Retry-After` header asks for, a number of seconds or a date; 0 for none."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
