"""Pushing to a Hub over HTTP: one commit, what a second push changes, failures that pass and failures that stay.

A client runs in a process of its own, because huggingface_hub reads its environment when it is imported.
"""

import importlib.util
import json
import socket
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from hf_vlr import VLLTRModel
from hf_vlr.cli.push import own_examples
from hf_vlr.errors import UserError
from hf_vlr.hub import push_run


def neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runs, local_hub = neighbour("hub_runs"), neighbour("local_hub")
AGAIN = "what is uploaded is not uploaded twice"


@pytest.fixture
def hub(tmp_path):
    with local_hub.LocalHub(tmp_path / "hub", {"hf_good": ("ann", "org"), "hf_other": ("bob",)}) as running:
        yield running


@pytest.fixture
def run(tiny, tmp_path) -> Path:
    """A run whose weights are in many files."""
    folder = runs.make_run(tiny, tmp_path / "machine" / "run")
    (folder / "model.safetensors").unlink()
    tiny.recogniser().save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 4
    return folder


def request(run: Path, repo_id: str = "org/fox", **options: object) -> dict:
    return {"folder": str(run), "repo_id": repo_id, **options}


def sent(hub, oids: list[str]) -> int:
    """Bytes of large files that came in."""
    return sum((hub.folder / oid).stat().st_size for oid in oids)


@pytest.mark.slow
def test_a_run_is_one_commit_and_pushing_again_brings_it_up_to_date(hub, run, tiny, tmp_path):
    home = tmp_path / "home"
    (first,) = runs.push(hub, home, request(run, license="cc-by-4.0"))
    repo = hub.repos["models", "org/fox"]
    assert first["url"] == f"{hub.endpoint}/org/fox/commit/{repo.commits[-1].sha}"
    assert [commit.title for commit in repo.commits] == ["initial commit", "Upload the model"]
    there = set(repo.commits[-1].files)
    assert {"config.json", "README.md", "recipe.yaml", "model.safetensors.index.json", "modeling_vlltr.py"} <= there
    assert not [path for path in there if path.startswith("checkpoints") or path == "predictions.npz"]
    machine = str(run.parent).encode()
    assert not [path for path in there if machine in hub.read("org/fox", path)]
    weights = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    assert all(hub.read("org/fox", name) == content for name, content in weights.items())

    before, received = dict(repo.commits[-1].files), len(hub.received)
    hub.append(repo, "by hand", before | {"notes.md": hub.store(b"mine", False)})
    (run / "report.html").unlink()
    runs.write_lines(run / "log.jsonl", [{"step": 6, "loss": 0.25}])
    second, third = runs.push(hub, home, *[request(run, license="cc-by-4.0")] * 2)
    assert [commit.title for commit in repo.commits[2:]] == ["by hand", "Update the model"]
    unchanged = "nothing has changed: the repository holds all of this already"
    assert unchanged not in second["said"]
    assert third["said"][-1] == unchanged
    assert second["url"] == third["url"] == f"{hub.endpoint}/org/fox/commit/{repo.commits[-1].sha}"
    assert there - set(repo.commits[-1].files) == {"report.html"}
    assert hub.read("org/fox", "notes.md") == b"mine"
    assert "[the report]" not in hub.read("org/fox", "README.md").decode()
    # the picture of the loss is the one large file that has changed
    assert len(hub.received) == received + 1


@pytest.mark.slow
def test_a_hub_in_trouble_is_asked_again(hub, run, tmp_path):
    hub.fail("POST /api/repos/create", 500)
    hub.fail("POST /api/models/org/fox/preupload", 503, times=2)
    hub.fail("PUT /objects/", 500)
    hub.fail("POST /api/models/org/fox/commit", 502, times=2)
    (done,) = runs.push(hub, tmp_path / "home", request(run))
    repo = hub.repos["models", "org/fox"]
    assert done["url"].endswith(repo.commits[-1].sha)
    waits = [line for line in done["said"] if line.startswith("the Hub is in trouble")]
    assert waits == [f"the Hub is in trouble ({code}); trying again in 0.05 s" for code in (500, 502, 502)]
    assert len(hub.received) == len(set(hub.received))
    assert len(repo.commits) == 2
    hub.fail("POST /api/models/org/wolf/commit", 502, times=4)
    failed, done = runs.push(hub, tmp_path / "home", *[request(run, "org/wolf")] * 2)
    assert failed["error"] == f"org/wolf: the Hub is in trouble (502); start again later: {AGAIN}"
    assert done["url"].endswith(hub.repos["models", "org/wolf"].commits[-1].sha)
    assert len(hub.received) == len(set(hub.received))


@pytest.mark.slow
def test_a_push_that_fails_half_way_goes_on_where_it_was(hub, run, tmp_path):
    # not a failure of the Hub's own, so it is not tried again at once
    last = max(run.glob("model-*.safetensors"), key=lambda path: path.stat().st_size).read_bytes()
    oid = local_hub.hashlib.sha256(last).hexdigest()
    hub.fail(f"PUT /objects/{oid}", 403)
    failed, done = runs.push(hub, tmp_path / "home", *[request(run)] * 2)
    assert failed["error"].startswith("org/fox: this token may not write there")
    assert done["url"].startswith(hub.endpoint)
    files = hub.repos["models", "org/fox"].commits[-1].files.values()
    large = {blob.sha256: blob.size for blob in files if blob.large}
    assert sorted(hub.received) == sorted(large)
    assert sent(hub, hub.received) == sum(large.values())


@pytest.mark.slow
def test_a_push_that_is_killed_goes_on_where_it_was(hub, run, tmp_path, monkeypatch):
    stalled, released, receive = threading.Event(), threading.Event(), local_hub.Handler.receive_object

    def slow(handler, oid):
        if len(hub.received) == 3:
            stalled.set()
            released.wait(60)
            raise local_hub.Refusal(500, "nobody listens")
        receive(handler, oid)

    monkeypatch.setattr(local_hub.Handler, "receive_object", slow)
    process = runs.start(hub, tmp_path / "home", "-c", runs.PUSH)
    process.stdin.write(json.dumps(request(run)) + "\n")
    process.stdin.flush()
    assert stalled.wait(120)
    process.kill()
    process.communicate()
    monkeypatch.setattr(local_hub.Handler, "receive_object", receive)
    released.set()
    arrived = list(hub.received)
    assert len(hub.repos["models", "org/fox"].commits) == 1
    (done,) = runs.push(hub, tmp_path / "home", request(run))
    assert "url" in done
    files = hub.repos["models", "org/fox"].commits[-1].files.values()
    large = {blob.sha256: blob.size for blob in files if blob.large}
    assert sorted(hub.received) == sorted(large)
    again = hub.received[len(arrived) :]
    assert sent(hub, again) == sum(large.values()) - sent(hub, arrived)


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(hub, run, tmp_path):
    hub.repos["models", "ann/pack"] = local_hub.Repo("models", "ann/pack", False, None)
    said = runs.push(
        hub, tmp_path / "home",
        request(run, token="hf_expired"),
        request(run, "ann/fox", token="hf_other"),
        request(run, dataset="org/none"),
        request(run, "org/mine", private=True),
        request(run, "org/fox", private=True),
    )  # fmt: skip
    expired = (
        "the Hub refuses the token, it is wrong or has expired; unset HF_TOKEN, which wins over a login, or mend it"
    )
    assert said[0]["error"] == f"{expired}: hf auth login --force"
    assert said[1]["error"].startswith("ann/fox: this token may not write there; choose a name of your own")
    assert said[2]["error"].startswith("org/none: no such data set on the Hub, or not for this token; check --dataset")
    assert "url" in said[3]
    assert hub.repos["models", "org/mine"].private
    assert said[4]["error"].startswith("org/fox: exists and is public; make it private in its settings")
    # nothing was uploaded for any of them
    assert len(hub.repos["models", "org/fox"].commits) == 1
    hub.fail("create", 409, message="a Space has this name")
    hub.fail("validate-yaml", 400, message="license is none we know")
    taken, card = runs.push(hub, tmp_path / "home", request(run, "org/new"), request(run, "org/new", license="x"))
    assert taken["error"] == "org/new: this name is taken; choose another"
    assert card["error"].startswith("org/new: the Hub refuses the card: Invalid metadata in README.md.")


@pytest.mark.slow
def test_without_network_or_token_one_line_says_so(hub, run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    (said,) = runs.push(hub, tmp_path / "home", request(run), HF_ENDPOINT=closed)
    assert said["error"].startswith(f"cannot reach {closed} (")
    assert said["error"].endswith(f"); check the network and start again: {AGAIN}")
    (said,) = runs.push(hub, tmp_path / "home", request(run), HF_TOKEN="")
    assert said["error"] == "no token for the Hub; log in first: hf auth login (or set HF_TOKEN)"
    assert hub.requests == []


def test_offline_nothing_is_tried(tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "run")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1 forbids the network; unset it to push"):
        push_run(run, "org/fox", token="hf_good")


@pytest.mark.slow
def test_the_data_set_is_linked_where_the_hub_has_it(hub, tiny, tmp_path):
    dual = tiny.model(VLLTRModel)
    run = runs.make_run(
        tiny, tmp_path / "machine" / "run", "task=cvlp", "data.source=org/foxes", "model.init=runs/first", model=dual
    )
    (said,) = runs.push(hub, tmp_path / "home", request(run))
    assert "org/foxes is no data set on the Hub; the card gives its name alone" in said["said"]
    card = hub.read("org/fox", "README.md").decode()
    assert "datasets/org/foxes" not in card
    assert "base_model" not in card
    repo = hub.repos["datasets", "org/foxes"] = local_hub.Repo("datasets", "org/foxes", False, None)
    hub.append(repo, "all", {})
    first = hub.repos["models", "runs/first"] = local_hub.Repo("models", "runs/first", False, None)
    hub.append(first, "all", {})
    runs.push(hub, tmp_path / "home", request(run))
    card = hub.read("org/fox", "README.md").decode()
    assert "[org/foxes](https://huggingface.co/datasets/org/foxes)" in card
    assert "base_model:\n- runs/first\n" in card
    assert b"id: org/foxes" in hub.read("org/fox", ".eval_results/foxes-test.yaml")


@pytest.mark.slow
def test_one_command_pushes_a_model_and_a_space_for_it(hub, tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "machine" / "run")
    words = ["-m", "hf_vlr", "push", str(run), "org/fox", "--private", "--space", "org/fox-demo"]
    said = runs.client(hub, tmp_path / "home", *words)
    model, space = hub.repos["models", "org/fox"], hub.repos["spaces", "org/fox-demo"]
    assert f"pushed: {hub.endpoint}/org/fox/commit/{model.commits[-1].sha}" in said.splitlines()
    assert f"Space: {hub.endpoint}/spaces/org/fox-demo" in said.splitlines()
    assert model.private
    assert space.sdk == "gradio"
    assert "org/fox" in hub.read("org/fox-demo", "README.md", "spaces").decode()


@pytest.mark.slow
def test_pushing_the_same_again_says_so_in_our_words(hub, tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "machine" / "run")
    words = ["-m", "hf_vlr", "push", str(run), "org/fox"]
    first = runs.client(hub, tmp_path / "home", *words)
    process = runs.start(hub, tmp_path / "home", *words)
    again, errors = process.communicate(timeout=180)
    assert "nothing has changed" not in first
    assert "nothing has changed: the repository holds all of this already" in again.splitlines()
    assert "pushed" not in again
    assert "empty commit" not in again + errors


@pytest.mark.slow
def test_a_space_that_may_not_be_written_keeps_the_model_at_home(hub, tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "machine" / "run")
    words = ["-m", "hf_vlr", "push", str(run), "ann/fox", "--space", "bob/demo"]
    process = runs.start(hub, tmp_path / "home", *words)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "bob/demo: this token may not write there" in errors
    assert "Upload the model" not in [commit.title for commit in hub.repos["models", "ann/fox"].commits]
    assert hub.received == []


@pytest.mark.slow
def test_pictures_go_to_the_space(hub, tiny, tmp_path):
    run = runs.make_run(tiny, tmp_path / "machine" / "run")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    words = ["-m", "hf_vlr", "push", str(run), "org/fox", "--space", "org/demo", "--examples", str(pictures)]
    process = runs.start(hub, tmp_path / "home", *words)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "no pictures to show as examples" in errors
    assert hub.requests == []
    Image.new("RGB", (20, 10), "red").save(pictures / "red.png")
    runs.client(hub, tmp_path / "home", *words)
    assert "examples/1.png" in hub.repos["spaces", "org/demo"].commits[-1].files


def test_a_run_has_pictures_of_its_own_or_those_of_the_quickstart(tmp_path):
    run = tmp_path / "quick" / "stage2"
    run.mkdir(parents=True)
    (tmp_path / "quick" / "examples").mkdir()
    # a folder of that name beside a run is anybody's
    assert own_examples(str(run)) is None
    (tmp_path / "quick" / "quickstart.md").write_text("rows")
    assert own_examples(str(run)) == str(tmp_path / "quick" / "examples")
    (run / "examples").mkdir()
    assert own_examples(str(run)) == str(run / "examples")


TRAINING = (
    "data.options={classes: 8, unseen: 2, max_count: 8, imbalance: 2, size: 16, validation: 1, test: 1}",
    "data.image_size=16",
    "vision=scratch:resnet",
    "train.batch_size=12",
    "train.steps=2",
)  # fmt: skip


@pytest.mark.slow
def test_a_training_can_publish_what_it_made(hub, tmp_path):
    folder = tmp_path / "run"
    words = ["-m", "hf_vlr", "train", "shapes-baseline", *TRAINING, f"output={folder}"]
    said = runs.client(hub, tmp_path / "home", *words, "train.push_to_hub=org/trained", "train.hub_private=true")
    pushed = hub.repos["models", "org/trained"]
    assert pushed.private
    assert f"{hub.endpoint}/org/trained/commit/{pushed.commits[-1].sha}" in said
    assert hub.read("org/trained", "model.safetensors") == (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_training_that_may_not_publish_does_not_begin(hub, tmp_path):
    folder = tmp_path / "run"
    words = ["-m", "hf_vlr", "train", "shapes-baseline", *TRAINING, f"output={folder}", "train.push_to_hub=org/trained"]
    process = runs.start(hub, tmp_path / "home", *words, HF_TOKEN="hf_expired")
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 2
    assert "error: the Hub refuses the token" in errors
    assert not folder.exists()
