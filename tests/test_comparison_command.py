"""`hf-vlr compare` on folders: what it reads, what it refuses, what it prints and writes."""

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from hf_vlr.cli.compare import command
from hf_vlr.comparison.comparison import Options, compare_runs
from hf_vlr.comparison.document import comparison_document
from hf_vlr.comparison.page import comparison_html
from hf_vlr.comparison.words import Named, named_rows
from hf_vlr.errors import UserError
from hf_vlr.evaluation.predictions import Predictions, write_predictions

NAMES = ("fox", "wolf", "lynx", "<b>cat</b>", "hare")
COUNTS = np.array([400, 150, 60, 15, 4])
LABELS = np.repeat(np.arange(5), [40, 30, 20, 12, 8])
ROWS = np.array([f"{index:03d}.png" for index in range(LABELS.size)])
PROTOCOL = {
    "split": "test",
    "resolution": 224,
    "test_time_augmentation": None,
    "pretraining": None,
    "texts": None,
    "seed": 0,
    "source": "shapes-lt",
    "training": {"steps": 500, "seconds": 3.25},
    "versions": {"hf_vlr": "0.1.0", "torch": "2.11"},
    "rule": {"name": "oltr", "many_above": 100, "few_below": 20, "averaging": "class", "at_most": []},
}


@pytest.fixture
def run(tmp_path):
    """Writes the folder of a run; returns its path as a word."""

    def write(
        name: str, gain=0.0, seed=0, predictors=("fused",), protocol=None, metrics=None, recipe=None, **test
    ) -> str:
        order = test.pop("order", np.arange(LABELS.size))
        known = {"labels": LABELS, "train_counts": COUNTS, "class_names": NAMES, "rows": ROWS} | test
        scores = {}
        for index, predictor in enumerate(predictors):
            drawn = np.random.default_rng([seed, index]).normal(size=(LABELS.size, known["train_counts"].size))
            drawn[np.arange(LABELS.size), LABELS] += 1 + gain
            scores[predictor] = drawn[order][: len(known["labels"])].astype(np.float32)
        write_predictions(tmp_path / name / "predictions.npz", Predictions(scores, protocol={}, **known))
        document = {"protocol": PROTOCOL | {"seed": seed} | (protocol or {}), "predictors": metrics or {}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(document))
        if recipe:
            (tmp_path / name / "recipe.yaml").write_text(recipe)
        return str(tmp_path / name)

    return write


@pytest.fixture
def compare():
    """Runs the command: its output. What a user did wrong is raised."""

    def call(*words: str) -> str:
        result = CliRunner().invoke(
            command, ["--resamples", "999", *words], catch_exceptions=False, standalone_mode=False
        )
        return result.output

    return call


def refusal(*words: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        compare_runs(words, Options(resamples=999, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# words


def test_words_name_rows(tmp_path):
    for name in ("one", "two", "od,d", "a=b", "c:d"):
        (tmp_path / name).mkdir()
    one, two, odd, equals, colon = (str(tmp_path / name) for name in ("one", "two", "od,d", "a=b", "c:d"))
    assert named_rows([one + "/", f"x={two}"]) == [Named(one, (one + "/",)), Named("x", (two,))]
    assert named_rows([f"x={one},{two}", odd]) == [Named("x", (one, two)), Named(odd, (odd,))]
    assert named_rows([equals, colon]) == [Named(equals, (equals,)), Named(colon, (colon,))]
    both = named_rows([f"x={one}:visual", f"y={one},{two}:fused"], "language")
    assert both == [Named("x", (one,), "visual"), Named("y", (one, two), "fused")]
    assert named_rows([one, two], "language")[1].predictor == "language"
    assert named_rows([f"{one},{two}", f"y={one}"])[0] == Named(one, (one, two))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a=x"], "nothing to be compared with"),
        (["a=x", "a=y"], "two rows are called a"),
        (["a=x,x", "y"], "a holds x twice"),
        (["a=x,./x", "y"], r"a holds \./x twice"),
        (["a=x,y/../x", "y"], "twice"),
        (["a=x,x/predictions.npz", "y"], "twice"),
        (["a=x,", "y"], "names an empty run"),
        (["=x", "y"], "is no row"),
        (["a=", "y"], "is no row"),
    ],
)
def test_words_that_name_no_rows(words, said):
    with pytest.raises(UserError, match=said):
        named_rows(words)


def test_two_predictors_make_two_rows(run):
    one, two = run("one", predictors=("visual", "fused")), run("two", predictors=("visual", "fused"))
    assert "takes two predictors (visual, fused)" in refusal(f"a={one}:visual,{two}:fused", f"b={one}")


# reading and refusing


def test_the_predictor_is_the_fused_one_or_the_only_one(run):
    both, only = run("both", predictors=("visual", "fused")), run("only", predictors=("language",))
    several = run("several", predictors=("visual", "mine"))
    texts = run("texts", predictors=("all texts", "language"))
    strange = run("strange", predictors=("mine", "yours"))
    words = [f"a={both}", f"b={only}", f"c={both}:visual", f"d={texts}"]
    found = compare_runs(words, Options(resamples=999))
    assert [row.runs[0].predictor for row in found.rows.values()] == ["fused", "language", "visual", "language"]
    assert "several predictors (mine, yours): choose one" in refusal(both, strange)
    assert compare_runs([both, several], Options(resamples=999)).rows[several].runs[0].predictor == "visual"
    assert "has no predictor 'fused'; it has language" in refusal(both, only, predictor="fused")
    assert "from two predictors" in refusal(both, only, predictor="VL-LTR's mixed convention")
    assert compare_runs([both, several], Options(predictor="visual", resamples=999)).against == both


def test_a_run_may_be_named_by_its_file(run):
    one, two = run("one"), run("two", seed=1)
    whole, files = (
        compare_runs([f"a={one}{end}", f"b={two}{end}"], Options(resamples=999)) for end in ("", "/predictions.npz")
    )
    assert whole.differences == files.differences


def test_what_is_no_run_is_refused(run, tmp_path):
    assert "holds no predictions.npz" in refusal(run("one"), str(tmp_path))
    assert "--against c is no row; there are a, b" in refusal(f"a={run('one')}", f"b={run('two')}", against="c")


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"train_counts": COUNTS[:5].repeat(2)[:6], "class_names": (*NAMES, "owl")}, "has 5 classes"),
        ({"class_names": ("fox", "lynx", *NAMES[2:])}, "class 1 is 'wolf' in"),
        ({"labels": LABELS[:100], "rows": ROWS[:100]}, "110 and 100 images"),
        ({"rows": np.char.add(ROWS, "x")}, "different images (110 of 110)"),
        ({"labels": np.r_[LABELS[1:], 0]}, "other labels for 5 of 110 images"),
        ({"labels": np.r_[LABELS[1:], 0], "rows": None}, "other labels for 5 of 110 images"),
        (
            {"train_counts": np.array([400, 90, 60, 15, 4])},
            "class 1 is many-shot with 150 training images in the one, ",
        ),
    ],
)
def test_other_images_are_not_paired(run, test, said):
    message = refusal(f"a={run('one')}", f"b={run('two', seed=1, **test)}")
    assert said in message


def test_whose_counts_hold_can_be_said(run):
    words = [f"a={run('one')}", f"b={run('two', train_counts=np.array([400, 90, 60, 15, 4]))}"]
    assert "--counts-from a" in refusal(*words)
    sizes = [
        [one.title for one in compare_runs(words, Options(resamples=999, counts_from=row)).measures[2:5]]
        for row in "ab"
    ]
    assert sizes == [["many (2)", "medium (1)", "few (2)"], ["many (1)", "medium (2)", "few (2)"]]
    found = compare_runs(words, Options(resamples=999, counts_from="b"))
    assert "training images" in [one.field for one in found.flagged]
    assert "is no row; there are a, b" in refusal(*words, counts_from="c")


def test_without_identities_runs_are_paired_by_order_if_their_splits_agree(run):
    old, new = run("old", rows=None), run("new", seed=1)
    assert compare_runs([old, new], Options(resamples=999)).images.paired_by == "order"
    other = run("other", rows=None, protocol={"split": "val"})
    assert "--allow-different-splits" in refusal(new, other)
    found = compare_runs([new, other], Options(resamples=999, different_splits=True))
    assert "split" in [one.field for one in found.flagged]
    # identities prove what names do not
    named = run("named", protocol={"split": "val"})
    assert compare_runs([new, named], Options(resamples=999)).images.paired_by == "identity"


def test_identities_in_another_order_are_put_in_order(run):
    order = np.random.default_rng(0).permutation(LABELS.size)
    plain, moved = run("plain", seed=1), run("moved", seed=1, order=order, labels=LABELS[order], rows=ROWS[order])
    found = compare_runs([plain, moved], Options(resamples=999))
    assert found.agreement(plain, moved) == 1.0
    old = run("old", rows=None)
    assert "in another order" in refusal(plain, old, moved)


# conditions


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("resolution", 336),
        ("test_time_augmentation", "five crops"),
        ("pretraining", "weights.pth"),
        ("texts", "captions"),
        ("source", "imagefolder"),
        ("training", {"steps": 1000, "seconds": 3.25}),
        ("versions", {"hf_vlr": "0.2.0", "torch": "2.11"}),
        ("rule", PROTOCOL["rule"] | {"name": "vl-ltr"}),
    ],
)
def test_differences_in_protocol_are_flagged(run, field, value):
    same = compare_runs([f"a={run('one')}", f"b={run('two')}"], Options(resamples=999))
    assert same.flagged == []
    other = compare_runs([f"a={run('one')}", f"b={run('three', protocol={field: value})}"], Options(resamples=999))
    assert {one.field.split(" ")[0] for one in other.flagged} == {field}


def test_an_adjusted_predictor_is_the_one_that_is_compared(run):
    stated = {"posthoc": {"of": "fused", "steps": [{"method": "logit-adjustment", "tau": 1.0}]}}
    before = run("before")
    after = run("after", predictors=("fused", "fused + logit-adjustment"), protocol=stated)
    found = compare_runs([f"a={before}", f"b={after}"], Options(resamples=999))
    assert found.rows["b"].runs[0].predictor == "fused + logit-adjustment"
    assert {one.field for one in found.flagged} == {"predictor", "posthoc"}
    # what was done to another predictor says nothing of this one
    assert compare_runs([f"a={before}", f"b={after}:fused"], Options(resamples=999)).flagged == []


def test_a_run_is_one_seed_and_not_two(run, tmp_path):
    first, other = run("first", seed=0), run("other", seed=1)
    shutil.copytree(first, tmp_path / "copy")
    assert "hold the very same predictions" in refusal(f"a={first},{tmp_path / 'copy'}", f"b={other}")
    for stated in ({"seed": None}, {"seed": 7}):
        again = run("again", seed=0, protocol=stated)
        assert "hold the very same predictions" in refusal(f"a={first},{again}", f"b={other}")
    same = run("same", seed=1, protocol={"seed": 0})
    assert "are both of seed 0" in refusal(f"a={first},{same}", f"b={other}")
    (tmp_path / "link").symlink_to(first)
    assert "twice" in refusal(f"a={first},{tmp_path / 'link'}", f"b={other}")


def test_scores_and_classes_alone_make_no_row(run, tmp_path):
    first, other = run("first"), run("other", seed=1)
    known = {"labels": LABELS, "train_counts": COUNTS, "class_names": NAMES, "rows": ROWS}
    guesses = np.where(np.random.default_rng(5).random(LABELS.size) < 0.7, LABELS, 0)
    write_predictions(tmp_path / "classes" / "predictions.npz", Predictions({"fused": guesses}, **known))
    said = refusal(f"a={first},{tmp_path / 'classes'}", f"b={other}")
    assert "has scores, " in said and "only predicted classes" in said


def test_seeds_predictors_and_conventions_are_flagged(run):
    a, b = run("a", predictors=("fused", "visual")), run("b", seed=1, metrics={"mixed": {"mixed": True}})
    found = compare_runs([f"a={a}:visual", f"b={b}"], Options(resamples=999))
    assert {one.field for one in found.flagged} == {"seed", "predictor", "convention"}


def test_results_models_and_recipes_are_shown_and_not_flagged(run):
    stated = {"model": "runs/b", "device": "CPU", "training": {"steps": 500, "seconds": 9.0}}
    a = run("a", protocol={"model": "runs/a", "device": "GPU"}, recipe="optim:\n  lr: 0.1\noutput: x\n")
    b = run("b", protocol=stated, recipe="optim:\n  lr: 0.2\n  new: 1\noutput: y\n")
    found = compare_runs([f"a={a}", f"b={b}"], Options(resamples=999))
    assert found.flagged == []
    differing = {one.field: one.stated for one in found.conditions if one.differs}
    assert set(differing) == {"model", "device", "training seconds", "recipe optim.lr"}
    assert differing["recipe optim.lr"] == {"a": ("0.1",), "b": ("0.2",)}


def test_seeds_of_a_row_may_differ_in_their_seed_alone(run):
    rows = [[run(f"{name}{seed}", seed=seed) for seed in range(2)] for name in "ab"]
    words = [f"{name}={','.join(places)}" for name, places in zip("ab", rows)]
    assert compare_runs(words, Options(resamples=999)).flagged == []
    other = run("odd", seed=1, protocol={"resolution": 336})
    odd = compare_runs([words[0], f"b={rows[1][0]},{other}"], Options(resamples=999))
    assert [(one.field, one.stated["b"]) for one in odd.flagged] == [("resolution", ("224", "336"))]
    fewer = compare_runs([words[0], f"b={rows[1][0]}"], Options(resamples=999))
    assert [one.field for one in fewer.flagged] == ["seed"]


def test_what_is_not_stated_is_not_the_same(run, tmp_path):
    a, b = run("a"), run("b")
    (tmp_path / "b" / "metrics.json").unlink()
    found = compare_runs([f"a={a}", f"b={b}"], Options(resamples=999))
    assert "resolution" in [one.field for one in found.flagged]
    assert next(one for one in found.flagged if one.field == "resolution").stated["b"] == ("not stated",)


# what it prints and writes


def test_the_command_prints_the_numbers_and_the_verdicts(run, compare):
    a, b = run("a"), run("b", gain=3.0, seed=1, protocol={"resolution": 336})
    said = compare(f"before={a}", f"after={b}")
    assert "110 test images of 5 classes, paired by their identities" in said
    assert re.search(r"many \(2\) .*medium \(1\) .*few \(2\)", said)
    assert re.search(r"^all +\+\d+\.\d +\+\d+\.\d to \+\d+\.\d +0\.\d{3}  better$", said, re.M)
    assert re.search(r"^macro-F1 .* not tested$", said, re.M)
    assert "after against before: better in all" in said
    assert "McNemar's exact test" in said and "what other seeds would give is unknown" in said
    assert re.search(r"^  ! resolution: before: 224; after: 336$", said, re.M)
    assert re.search(r"^! The rows differ in resolution and seeds", said, re.M)
    assert "\x1b" not in said


def test_noise_is_printed_as_such(run, compare):
    said = compare(f"a={run('a')}", f"b={run('b', seed=1)}", "--against", "b")
    assert "a against b: no difference shown in any of the 6 tested numbers." in said
    assert "better" not in re.sub(r"Better and worse are said.*", "", said, flags=re.S)


def test_seeds_are_printed_with_their_spread(run, compare):
    words = [
        f"{name}={','.join(run(f'{name}{seed}', gain, seed) for seed in range(3))}"
        for name, gain in (("a", 0), ("b", 2))
    ]
    said = compare(*words)
    assert "p, seeds" in said and "b (3 runs)" in said and "3 of a and 3 of b" in said
    assert re.search(r"a \(3 runs\) +\d+\.\d ± \d+\.\d", said)
    assert "McNemar" not in said


def test_seeds_that_differ_too_much_leave_the_question_open(run, compare):
    a = ",".join(run(f"a{seed}", gain, seed) for seed, gain in enumerate((-0.5, 1.5)))
    b = ",".join(run(f"b{seed}", gain, 5 + seed) for seed, gain in enumerate((0.5, 2.5)))
    said = " ".join(compare(f"a={a}", f"b={b}").split())
    assert "b against a: no difference shown in any" in said
    assert "These very runs differ in all" in said and "More seeds would tell" in said


def test_the_files_are_whole_and_say_the_same(run, compare, tmp_path):
    out = tmp_path / "out"
    said = compare(f"a={run('a')}", f"b={run('b', gain=3.0, seed=1)}", "--out", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json"]
    assert f"written to {out / 'compare.json'}" in said
    document = json.loads((out / "compare.json").read_text())
    assert document["schema"] == 1 and document["against"] == "a" and document["paired_by"] == "identity"
    assert document["groups"]["few"] == {"classes": 2, "images": 20} and document["tested"] == 6
    own = document["comparisons"]["b"]["differences"]["accuracy"]
    assert own["verdict"] == "better" and own["interval"][0] < own["estimate"] < own["interval"][1]
    runs = {name: row["values"]["accuracy"] for name, row in document["rows"].items()}
    assert own["estimate"] == pytest.approx(runs["b"]["mean"] - runs["a"]["mean"]) and runs["a"]["std"] is None
    assert document["agreement"]["share"][0][1] == document["agreement"]["share"][1][0]
    found = compare_runs([f"a={run('a')}", f"b={run('b', gain=3.0, seed=1)}"], Options(resamples=999))
    assert json.loads(json.dumps(comparison_document(found))) == document


def test_a_folder_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    words = [f"a={run('a')}", f"b={run('b')}", "--resamples", "999", "--out", str(tmp_path / "file" / "out")]
    with pytest.raises(UserError, match="cannot be written"):
        CliRunner().invoke(command, words, catch_exceptions=False, standalone_mode=False)


def test_the_page_holds_every_part_and_escapes_names(run):
    words = [
        f"<i>a</i>={run('a')}",
        f"b={run('b', gain=3.0, seed=1, protocol={'resolution': 336})}",
        f"c={run('c', seed=2)}",
    ]
    html = comparison_html(compare_runs(words, Options(resamples=999)))
    for heading in ("Results", "Protocol", "Differences", "Class by class", "Agreement"):
        assert f">{heading}</h2>" in html
    assert "<i>a</i>" not in html and "&lt;i&gt;a&lt;/i&gt;" in html
    assert html.count('<svg class="plot"') == 6
    assert "⚠ resolution" in html and re.search(r'<dd class="warning">(?:(?!</dd>).)*: 336', html)
    assert "▲" in html and "no\u00a0difference\u00a0shown" in html
    assert html == comparison_html(compare_runs(words, Options(resamples=999)))
    identifiers = re.findall(r' id="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_a_page_without_scores_or_some_groups(run, tmp_path):
    for index, name in enumerate("ab"):
        guesses = np.where(np.random.default_rng(index).random(LABELS.size) < 0.7, LABELS, 0)
        known = {"labels": LABELS, "train_counts": np.full(5, 50), "class_names": NAMES}
        write_predictions(tmp_path / name / "predictions.npz", Predictions({"fused": guesses}, **known))
    found = compare_runs([f"{name}={tmp_path / name}" for name in "ab"], Options(resamples=999))
    assert found.tested == 3 and found.flagged == []
    assert "many: - " in comparison_html(found).replace("</bdi>", " ")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_a_browser(run, tmp_path, browser, width, scheme):
    names = ("w" * 200, "<script>alert(1)</script>", "שלום עולם", "🦜 " * 30, "hare")
    stated = {"resolution": 336, "pretraining": "x" * 300}
    words = [
        f"{'a' * 120}={run('a', class_names=names)}",
        f"b={run('b', gain=3.0, seed=1, class_names=names, protocol=stated)}",
        f"<script>alert(2)</script>={run('c', seed=2, class_names=names)}",
    ]
    path = tmp_path / "compare.html"
    path.write_text(comparison_html(compare_runs(words, Options(resamples=999))), encoding="utf-8")
    complaints, asked = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("svg.plot").count() == 6
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    page.close()
    assert complaints == []
