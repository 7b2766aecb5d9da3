"""A Hub on 127.0.0.1 for tests: repositories of models, datasets and Spaces, with the standard library alone.

It answers what `huggingface_hub`, `datasets` and `transformers` ask when they create, fill, list and read a repository.
Files of some kinds are large ones (LFS): uploaded by themselves, and read through a redirection, as on the real Hub.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

TYPES = ("models", "datasets", "spaces")
LARGE = re.compile(r"\.(parquet|arrow|safetensors|bin|pt|onnx|msgpack|h5|zip|gz|npy|npz|png|jpe?g)$")
NEUTRAL = {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
NO_TOKEN = "Invalid username or password."
ATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Refusal(Exception):
    """(status, what is said about it[, the word by which clients tell its kind])."""


class Blob(NamedTuple):
    """A stored file: `sha256` of its content, `oid` as git counts it, whether it is a large one."""

    sha256: str
    oid: str
    size: int
    large: bool


class Commit(NamedTuple):
    """What a repository holds at one moment, by path."""

    sha: str
    title: str
    date: str
    files: dict[str, Blob]

    def paths(self) -> list[str]:
        return sorted(set(self.files) | {path[: it.start()] for path in self.files for it in re.finditer("/", path)})

    def describe(self, path: str) -> dict[str, Any]:
        about = {"path": path, "lastCommit": {"id": self.sha, "title": self.title, "date": self.date}}
        if path not in self.files:
            return {**about, "type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        blob = self.files[path]
        large = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.large else {}
        return {**about, "type": "file", "oid": blob.oid, "size": blob.size, **large}


@dataclass
class Repo:
    """A repository of one branch, its commits from the first to the last."""

    kind: str
    name: str
    private: bool
    sdk: str | None
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit:
        for commit in reversed(self.commits):
            if revision in ("main", commit.sha):
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class LocalHub:
    """`with LocalHub(folder) as hub`: a running Hub that keeps its files in `folder`.

    tokens: by token, the names under which it may write, the user's own first. `repos`, `requests` (method, path) and
    `received` (digests of large files that came in) are for looking at; `fail` makes it misbehave; `environment` is
    what a client's process needs before it imports huggingface_hub.
    """

    def __init__(self, folder: Path, tokens: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.folder = folder
        self.tokens = dict(tokens or {"hf_good": ("ann", "org")})
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.received: list[str] = []
        self.lock = threading.RLock()
        self._failures: list[list[Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LocalHub":
        self.folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = "hf_good") -> dict[str, str]:
        """Variables of a client whose caches lie in `home`."""
        here = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
        off = {f"HF_HUB_DISABLE_{it}": "1" for it in ("XET", "UPDATE_CHECK", "TELEMETRY", "PROGRESS_BARS")}
        variables = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", **off, **here}
        return variables if token is None else {**variables, "HF_TOKEN": token}

    def fail(self, path: str, status: int, times: int = 1, message: str = "as the test wants it") -> None:
        """Answer `status` to the next `times` requests whose `METHOD /path` contains `path`."""
        self._failures.append([path, status, times, message])

    def raise_failure(self, request: str) -> None:
        for failure in self._failures:
            if failure[2] and failure[0] in request:
                failure[2] -= 1
                raise Refusal(failure[1], failure[3])

    def store(self, data: bytes, large: bool) -> Blob:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest).write_bytes(data)
        return Blob(digest, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), len(data), large)

    def read(self, repo: str, path: str, kind: str = "models", revision: str = "main") -> bytes:
        """The content of a file."""
        return (self.folder / self.repos[kind, repo].at(revision).files[path].sha256).read_bytes()

    def append(self, repo: Repo, title: str, files: dict[str, Blob]) -> Commit:
        text = f"{repo.kind}/{repo.name}/{len(repo.commits)}/{title}/{sorted(files.items())}"
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        repo.commits.append(Commit(hashlib.sha1(text.encode()).hexdigest(), title, date, files))
        return repo.commits[-1]


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def handle_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        try:
            with self.hub.lock:
                self.hub.requests.append((self.command, split.path))
                self.hub.raise_failure(f"{self.command} {split.path}")
                self.names = self.who()
                answer = self.route([unquote(word) for word in split.path.strip("/").split("/")])
        except Refusal as refusal:
            status, message, code = (*refusal.args, "")[:3]
            headers = {"X-Error-Message": ascii(message)[1:-1]} | ({"X-Error-Code": code} if code else {})
            return self.send(status, json.dumps({"error": message}).encode(), headers)
        if answer is not None:
            self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def who(self) -> tuple[str, ...]:
        """The names under which the client may write; a token that is none is refused wherever it is shown."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, ())

    def route(self, words: list[str]) -> Any:
        kind, path = (words[0], words[1:]) if words[0] in TYPES else ("models", words)
        if words[0] == "objects":
            return self.receive_object(words[1]) if self.command == "PUT" else self.send_object(words[1])
        if words[0] == "api" and words[1] in TYPES and len(words) >= 4:
            action, *rest = words[4:] or ["revision", "main"]
            answer = getattr(self, "repo_" + action.replace("-", "_"), None)
            if answer is not None:
                return answer(self.find(words[1], words[2:4], action in ("preupload", "commit")), *rest)
        elif words[0] == "api" and hasattr(self, "hub_" + words[-1].replace("-", "_")):
            return getattr(self, "hub_" + words[-1].replace("-", "_"))()
        elif path[2:] == ["info", "lfs", "objects", "batch"]:
            return self.batch(self.find(kind, [path[0], path[1].removesuffix(".git")], True))
        elif path[2:3] == ["resolve"] and len(path) > 4:
            return self.resolve(self.find(kind, path[:2]), path[3], "/".join(path[4:]))
        raise Refusal(404, f"nothing at {self.path}")

    def find(self, kind: str, words: list[str], writes: bool = False) -> Repo:
        repo, allowed = self.hub.repos.get((kind, "/".join(words))), words[0] in self.names
        if repo is None or (repo.private and not allowed):
            # Without a token nobody learns whether a private repository exists.
            raise Refusal(*((404, "Repository not found") if self.names else (401, NO_TOKEN)), "RepoNotFound")
        if writes and not allowed:
            raise Refusal(403, "this token may not write here") if self.names else Refusal(401, NO_TOKEN)
        return repo

    def hub_whoami_v2(self) -> dict[str, Any]:
        if not self.names:
            raise Refusal(401, NO_TOKEN)
        return {"type": "user", "name": self.names[0], "orgs": [{"name": name} for name in self.names[1:]]}

    def hub_validate_yaml(self) -> dict[str, Any]:
        return {"errors": [], "warnings": []}

    def hub_create(self) -> dict[str, str]:
        wanted, user = json.loads(self.body), self.hub_whoami_v2()["name"]
        kind, owner = wanted.get("type", "model") + "s", wanted.get("organization") or user
        name, private = f"{owner}/{wanted['name']}", wanted.get("visibility") == "private"
        if owner not in self.names:
            raise Refusal(403, f'You don\'t have the rights to create a {kind[:-1]} under the namespace "{owner}"')
        if (kind, name) in self.hub.repos:
            raise Refusal(409, f"You already created this {kind[:-1]} repo: {name}")
        repo = self.hub.repos[kind, name] = Repo(kind, name, private, wanted.get("sdk"))
        self.hub.append(repo, "initial commit", {".gitattributes": self.hub.store(ATTRIBUTES, False)})
        return {"url": self.url(repo), "name": name}

    def url(self, repo: Repo) -> str:
        return f"{self.hub.endpoint}/{'' if repo.kind == 'models' else repo.kind + '/'}{repo.name}"

    def repo_preupload(self, repo: Repo, revision: str) -> dict[str, Any]:
        files = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            large, there = bool(LARGE.search(path)), repo.at(revision).files.get(path)
            oid = {"oid": there.sha256 if large else there.oid} if there else {}
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid})
        return {"files": files}

    def repo_commit(self, repo: Repo, revision: str) -> dict[str, Any]:
        files, title = dict(repo.at(revision).files), ""
        for line in self.body.splitlines():
            key, value = (json.loads(line)[word] for word in ("key", "value"))
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = self.hub.store(base64.b64decode(value["content"]), False)
            elif key == "lfsFile" and (self.hub.folder / value["oid"]).is_file():
                files[value["path"]] = self.hub.store((self.hub.folder / value["oid"]).read_bytes(), True)
            elif key in ("deletedFile", "deletedFolder"):
                gone = value["path"].rstrip("/")
                files = {path: blob for path, blob in files.items() if not f"{path}/".startswith(f"{gone}/")}
            else:
                raise Refusal(400, f"{key} {value.get('path')}: not possible")
        commit = self.hub.append(repo, title, files)
        return {"success": True, "commitUrl": f"{self.url(repo)}/commit/{commit.sha}", "commitOid": commit.sha}

    def repo_revision(self, repo: Repo, revision: str) -> dict[str, Any]:
        commit, about = repo.at(revision), {"id": repo.name, "private": repo.private, "sdk": repo.sdk, **NEUTRAL}
        if "README.md" in commit.files:
            card = self.hub.read(repo.name, "README.md", repo.kind, revision).decode().split("\n---")[0]
            about |= dict(re.findall(r"^(pipeline_tag|library_name): *(\S+)$", card, re.M))
        about |= {"sha": commit.sha, "createdAt": repo.commits[0].date, "lastModified": commit.date}
        return {**about, "siblings": [{"rfilename": path} for path in sorted(commit.files)]}

    def repo_tree(self, repo: Repo, revision: str, *folders: str) -> list[dict[str, Any]]:
        commit, prefix = repo.at(revision), "".join(f"{folder}/" for folder in folders)
        deep = self.query.get("recursive", [""])[0].lower() == "true"
        paths = [path for path in commit.paths() if path.startswith(prefix)]
        if prefix and not paths:
            raise Refusal(404, f"{prefix} does not exist", "EntryNotFound")
        return [commit.describe(path) for path in paths if deep or "/" not in path[len(prefix) :]]

    def repo_paths_info(self, repo: Repo, revision: str) -> list[dict[str, Any]]:
        commit, wanted = repo.at(revision), parse_qs(self.body.decode()).get("paths", [])
        return [commit.describe(path) for path in commit.paths() if path in {one.strip("/") for one in wanted}]

    def batch(self, repo: Repo) -> dict[str, Any]:
        objects = json.loads(self.body)["objects"]
        for one in objects:
            if not (self.hub.folder / one["oid"]).is_file():
                one["actions"] = {"upload": {"href": f"{self.hub.endpoint}/objects/{one['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def receive_object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content is another than announced")
        self.hub.received.append(self.hub.store(self.body, True).sha256)
        self.send(200)

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.at(revision)
        if path not in commit.files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        blob, headers = commit.files[path], {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if not blob.large:
            return self.send_object(blob.sha256, {**headers, "ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        # Another host, as the real one: clients follow redirections within a host before they read the headers.
        place = f"http://localhost:{self.server.server_port}/objects/{blob.sha256}"
        return self.send(302, b"", {**headers, **linked, "Location": place})

    def send_object(self, oid: str, headers: Mapping[str, str] | None = None) -> None:
        """The content, or the part of it that is asked for. Like a signed address, it asks for no token."""
        file = self.hub.folder / oid
        if not re.fullmatch("[0-9a-f]{64}", oid) or not file.is_file():
            raise Refusal(404, "no such object")
        data, headers = file.read_bytes(), {"ETag": f'"{oid}"', **(headers or {})}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.send(200, data, headers)
        start, stop = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1)
        return self.send(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
