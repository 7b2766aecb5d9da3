"""The local Hub itself: what it tells readers, whom it refuses, and that a client takes it for the real one."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("local_hub", Path(__file__).with_name("local_hub.py"))
local_hub = sys.modules[SPEC.name] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(local_hub)

WEIGHTS = bytes(range(256)) * 8
CLIENT = """
import sys
from huggingface_hub import HfApi, HfFileSystem, snapshot_download
api = HfApi()
weights = bytes(range(256)) * 8
api.create_repo("org/model", private=True)
api.upload_file(path_or_fileobj=weights, path_in_repo="deep/er/model.safetensors", repo_id="org/model")
card = b"---\\npipeline_tag: zero-shot-image-classification\\n---\\n# A model"
api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="org/model")
info = api.model_info("org/model")
assert (info.private, info.pipeline_tag) == (True, "zero-shot-image-classification"), info
files = [".gitattributes", "README.md", "deep/er/model.safetensors"]
assert sorted(api.list_repo_files("org/model")) == files
assert sorted(one.path for one in api.list_repo_tree("org/model")) == [".gitattributes", "README.md", "deep"]
assert [one.path for one in api.list_repo_tree("org/model", "deep", recursive=True)][0] == "deep/er"
assert open(snapshot_download("org/model") + "/deep/er/model.safetensors", "rb").read() == weights
with HfFileSystem().open("org/model/deep/er/model.safetensors", block_size=512) as file:
    file.seek(1000)
    assert file.read(100) == weights[1000:1100]
assert not api.file_exists("org/model", "none.txt")
assert not api.repo_exists("org/none") and not api.revision_exists("org/model", "v9")
api.delete_folder("deep", repo_id="org/model")
assert sorted(api.list_repo_files("org/model")) == files[:2]
api.create_repo("ann/app", repo_type="space", space_sdk="gradio")
done = api.upload_file(path_or_fileobj=b"print(1)", path_in_repo="app.py", repo_id="ann/app", repo_type="space")
assert api.space_info("ann/app").sdk == "gradio"
assert [one["name"] for one in api.whoami()["orgs"]] == ["org"]
print(done.commit_url)
"""


@pytest.fixture
def hub(tmp_path):
    with local_hub.LocalHub(tmp_path / "hub") as running:
        yield running


def ask(hub, method: str, path: str, body: object = None, **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer, read


GOOD = {"Authorization": "Bearer hf_good"}


@pytest.fixture
def filled(hub):
    """A public model and a private one, each with weights."""
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    for name, visibility in (("open", "public"), ("closed", "private")):
        ask(hub, "POST", "/api/repos/create", {"name": name, "organization": "org", "visibility": visibility}, **GOOD)
        assert ask(hub, "PUT", f"/objects/{oid}", WEIGHTS)[0].status == 200
        value = {"path": "model.safetensors", "algo": "sha256", "oid": oid, "size": len(WEIGHTS)}
        lines = [{"key": "header", "value": {"summary": "weights"}}, {"key": "lfsFile", "value": value}]
        body = b"\n".join(json.dumps(line).encode() for line in lines)
        assert ask(hub, "POST", f"/api/models/org/{name}/commit/main", body, **GOOD)[0].status == 200
    return hub


def test_large_files_are_read_through_a_redirection_and_in_parts(filled):
    sha, oid = filled.repos["models", "org/open"].commits[-1].sha, hashlib.sha256(WEIGHTS).hexdigest()
    head, body = ask(filled, "HEAD", "/org/open/resolve/main/model.safetensors")
    assert (head.status, body) == (302, b"")
    assert (head.headers["X-Repo-Commit"], head.headers["X-Linked-Etag"]) == (sha, f'"{oid}"')
    assert head.headers["X-Linked-Size"] == str(len(WEIGHTS))
    place = head.headers["Location"].partition("/objects/")[2]
    whole, body = ask(filled, "GET", f"/objects/{place}")
    assert (whole.status, body) == (200, WEIGHTS)
    part, body = ask(filled, "GET", f"/objects/{place}", Range="bytes=10-19")
    assert (part.status, body, part.headers["Content-Range"]) == (206, WEIGHTS[10:20], f"bytes 10-19/{len(WEIGHTS)}")
    assert ask(filled, "GET", f"/objects/{place}", Range="bytes=2000-")[1] == WEIGHTS[2000:]
    small, body = ask(filled, "GET", f"/org/open/resolve/{sha}/.gitattributes")
    git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    assert (small.status, small.headers["ETag"]) == (200, f'"{git}"')


@pytest.mark.parametrize(
    ("method", "path", "token", "status", "code"),
    [
        ("GET", "/api/models/org/open", "", 200, None),
        ("GET", "/api/models/org/open", "hf_expired", 401, None),
        ("GET", "/api/models/org/closed", "", 401, "RepoNotFound"),
        ("GET", "/api/models/org/closed", "hf_stranger", 404, "RepoNotFound"),
        ("GET", "/api/models/org/closed", "hf_good", 200, None),
        ("GET", "/api/models/org/none", "hf_good", 404, "RepoNotFound"),
        ("GET", "/api/models/org/open/revision/v9", "", 404, "RevisionNotFound"),
        ("HEAD", "/org/open/resolve/main/none.txt", "", 404, "EntryNotFound"),
        ("GET", "/api/models/org/open/tree/main/none", "", 404, "EntryNotFound"),
        ("POST", "/api/models/org/open/commit/main", "", 401, None),
        ("POST", "/api/models/org/open/commit/main", "hf_stranger", 403, None),
        ("GET", "/api/whoami-v2", "", 401, None),
        ("GET", "/objects/../secret", "", 404, None),
        ("GET", "/favicon.ico", "", 404, None),
    ],
)
def test_whom_it_refuses(filled, method, path, token, status, code):
    filled.tokens["hf_stranger"] = ("bob",)
    answer, _ = ask(filled, method, path, **({"Authorization": f"Bearer {token}"} if token else {}))
    assert (answer.status, answer.headers["X-Error-Code"]) == (status, code)


def test_an_upload_must_be_what_was_announced(hub):
    assert ask(hub, "PUT", f"/objects/{'0' * 64}", WEIGHTS)[0].status == 400
    assert list(hub.folder.iterdir()) == []


def test_it_fails_as_often_as_it_is_told(hub):
    hub.fail("GET /api/whoami", 503, times=2)
    assert [ask(hub, "GET", "/api/whoami-v2", **GOOD)[0].status for _ in range(3)] == [503, 503, 200]
    assert len(hub.requests) == 3


@pytest.mark.slow
def test_a_client_takes_it_for_the_real_one(hub, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= hub.environment(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = hub.repos["spaces", "ann/app"].commits[-1].sha
    assert done.stdout.strip() == f"{hub.endpoint}/spaces/ann/app/commit/{last}"
    assert hub.read("ann/app", "app.py", "spaces") == b"print(1)"
