"""The Space: its files, the wheel in it, and what lands on a Hub; its app started as a Space starts it."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import hf_vlr
from hf_vlr.demo import packing
from hf_vlr.demo.space_files import GRADIO, dependencies, space_texts, write_space
from hf_vlr.errors import UserError
from hf_vlr.hub.space import push_space

ROOT = Path(__file__).resolve().parent.parent
WHEEL = f"hf_vlr-{hf_vlr.__version__}-py3-none-any.whl"


def load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


models, LocalHub = load("demo_models"), load("local_hub").LocalHub


def test_the_repositorys_space_is_what_the_templates_make():
    folder = ROOT / "spaces" / "long_tail_recognition"
    found = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert found == space_texts("ORG/SPACE", "ORG/NAME")
    assert not [text for text in found.values() if "{{" in text.replace("{{value}}", "")]


def test_front_matter_is_what_a_gradio_space_takes():
    _, head, body = space_texts("ann/demo", "org/m")["README.md"].split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["models"] == ["org/m"]
    assert front["sdk_version"] == GRADIO and front["python_version"] == "3.11" and front["license"] == "mit"
    assert len(front["short_description"]) <= 60
    assert {front["colorFrom"], front["colorTo"]} <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray",
    }  # fmt: skip
    assert front["suggested_hardware"] == "cpu-basic" and len(front["emoji"]) == 1
    assert "hf-vlr push RUN_DIR org/m --space ann/demo` writes both" in " ".join(body.split())
    assert 'Client("ann/demo")' in body and "hf-vlr demo org/m" in body


def test_the_gradio_of_the_space_is_one_that_the_package_takes():
    needed = {one.name: one for one in map(Requirement, dependencies())}
    assert Version(GRADIO) in needed["gradio"].specifier
    assert {"torch", "transformers", "gradio", "numpy"} <= needed.keys() and "hf_vlr" not in needed
    assert not {"pytest", "wandb"} & needed.keys()


def test_a_published_package_is_required_and_else_a_wheel_goes_along(tmp_path):
    for name in ("published", "packed"):
        (tmp_path / name).mkdir()
    assert write_space(tmp_path / "published", "ann/demo", "org/m", package="hf_vlr[demo]==9.9") == [
        "README.md",
        "app.py",
        "requirements.txt",
    ]
    assert (tmp_path / "published" / "requirements.txt").read_text() == "hf_vlr[demo]==9.9\n"
    assert WHEEL in write_space(tmp_path / "packed", "ann/demo", "org/m")
    assert (tmp_path / "packed" / "requirements.txt").read_text().split() == dependencies()


def test_examples_go_along_without_what_a_camera_wrote(tiny, tmp_path):
    from PIL import Image

    source, target = tmp_path / "photos", tmp_path / "space"
    source.mkdir()
    target.mkdir()
    exif = Image.Exif()
    exif[271] = "a camera"
    Image.new("RGB", (2000, 1000)).save(source / "a.jpg", exif=exif)
    write_space(target, "ann/demo", "org/m", package="hf_vlr", examples=source)
    with Image.open(target / "examples" / "1.png") as image:
        assert image.size == (512, 256) and not image.getexif()
    with pytest.raises(UserError, match="no pictures to show"):
        write_space(target, "ann/demo", "org/m", package="hf_vlr", examples=tmp_path)


def test_the_wheel_holds_the_package_and_repeats(tmp_path):
    (tmp_path / "two").mkdir()
    path, again = packing.pack_wheel(tmp_path), packing.pack_wheel(tmp_path / "two")
    assert path.name == WHEEL and path.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        info = f"hf_vlr-{hf_vlr.__version__}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        record = archive.read(f"{info}/RECORD").decode().splitlines()
    assert {"hf_vlr/demo/style.css", "hf_vlr/demo/space/app.py.template", "hf_vlr/modeling/towers.py"} <= names
    assert {line.split(",")[0] for line in record} == names
    assert not [name for name in names if "__pycache__" in name]
    assert 'Requires-Dist: gradio>=6; extra == "demo"' in metadata


def test_what_is_not_installed_cannot_be_packed(monkeypatch):
    def absent(name):
        raise packing.PackageNotFoundError(name)

    monkeypatch.setattr(packing, "_clone", lambda: None)
    monkeypatch.setattr(packing, "requires", absent)
    with pytest.raises(UserError, match="pip install it"):
        packing.requirements()


def test_a_dry_run_lists_the_files(monkeypatch):
    said = []
    assert push_space("ann/demo", "org/m", dry_run=True, say=said.append) == ""
    assert [line.split()[-1] for line in said] == ["README.md", "app.py", WHEEL, "requirements.txt"]
    for wrong in (("demo", "org/m"), ("ann/demo", "m"), ("ann/de mo", "org/m")):
        with pytest.raises(UserError, match=r"ORG/NAME"):
            push_space(*wrong, dry_run=True)


@pytest.mark.slow
def test_pip_installs_the_wheel(tmp_path):
    wheel, site = packing.pack_wheel(tmp_path), tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    installed = {path.relative_to(site).as_posix() for path in (site / "hf_vlr").rglob("*") if path.suffix != ".pyc"}
    assert set(packing.package_files()) <= installed and (site / "bin" / "hf-vlr").is_file()
    code = "import hf_vlr.demo.about, hf_vlr.modeling as m; print(m.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True,
        text=True, timeout=300, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(site)


PUSH = """
import sys
from hf_vlr.errors import UserError
from hf_vlr.hub.space import push_space
for line in sys.stdin:
    space, model, privacy, package = line.split()
    try:
        address = push_space(
            space, model, private=privacy == "private", package=None if package == "-" else package, say=lambda _: None
        )
        print(address)
    except UserError as error:
        print("UserError:", error)
"""
CREATE = (
    "import sys; from huggingface_hub import HfApi; HfApi().upload_folder(repo_id='org/m', folder_path=sys.argv[1])"
)


def client(hub, home, code, *words, text=""):
    """Run a program that sees this Hub; what it printed."""
    environment = os.environ | hub.environment(home)
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_space_on_the_hub_and_started_from_there(tiny, tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        home = tmp_path / "home"
        folder = models.recogniser(tiny, tmp_path / "model")
        client(hub, home, "from huggingface_hub import create_repo; create_repo('org/m')")
        client(hub, home, CREATE, str(folder))
        pushes = "ann/demo org/m public -\nann/demo org/m public hf_vlr[demo]\nann/demo org/none public -\n"
        pushes += "ann/demo org/m private -\nbob/demo org/m public -\nann/demo org/m public -\n"
        said = client(hub, home, PUSH, text=pushes)
        assert said[0] == said[1] == said[5] == f"{hub.endpoint}/spaces/ann/demo"
        assert said[2].startswith("UserError: org/none: no such model on the Hub")
        assert said[3].startswith("UserError: ann/demo: exists and is public")
        assert said[4].startswith("UserError: bob/demo: this token may not write there")
        space = hub.repos["spaces", "ann/demo"]
        assert space.sdk == "gradio"
        # one commit each, after the one that makes it; a wheel that is no longer needed goes
        kept = [set(one.files) - {".gitattributes"} for one in space.commits[-3:]]
        plain = {"README.md", "app.py", "requirements.txt"}
        assert kept == [plain | {WHEEL}, plain, plain | {WHEEL}]
        cloned = tmp_path / "space"
        cloned.mkdir()
        for name in space.commits[-1].files:
            (cloned / name).parent.mkdir(parents=True, exist_ok=True)
            (cloned / name).write_bytes(hub.read("ann/demo", name, "spaces"))
        start_space(cloned, hub.environment(home) | {"HF_HUB_OFFLINE": "0"})


# every address that is not this machine's is written down, and refused
GUARD = """
import socket, sys
real = socket.socket.connect
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("OUTSIDE", address, file=sys.stderr, flush=True)
        raise OSError("no network here")
    return real(self, address)
socket.socket.connect = connect
resolve = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        print("OUTSIDE", host, file=sys.stderr, flush=True)
        raise OSError("no network here")
    return resolve(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
import runpy
runpy.run_path("app.py", run_name="__main__")
"""


def start_space(folder, environment):
    """Start app.py as a Space does, ask it, and see that it came from the wheel and spoke to nobody else."""
    from gradio_client import Client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | environment | {"GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    log = folder.with_suffix(".log")
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-v", "-c", GUARD], cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, log)
            asked = Client(url, verbose=False)
            about = asked.predict(api_name="/about")
        finally:
            process.terminate()
            process.wait(60)
    assert about["model"] == "org/m" and len(about["classes"]) == 5
    text = log.read_text(errors="replace")
    assert "OUTSIDE" not in text
    assert f"{WHEEL}/hf_vlr" in text and str(ROOT / "hf_vlr" / "demo") not in text


def wait_for(url, process, log):
    """Until the page answers, or the process has ended."""
    for _ in range(240):
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/config", timeout=5) as answer:
                assert json.load(answer)["version"]
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the page did not answer")
