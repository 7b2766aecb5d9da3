"""Post-hoc methods on predictions: chains, what they are told by, what may be tuned on, and the command."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from hf_vlr.cli.posthoc import command
from hf_vlr.errors import UserError
from hf_vlr.evaluation.adjustment import Material, Step, adjust, check_apart, main_predictor, parse_steps
from hf_vlr.evaluation.predictions import Predictions, read_predictions, write_predictions
from hf_vlr.posthoc import em_prior, ensembling, label_bias, logit_adjustment, prior_correction, tau_norm, temperature

COUNTS = np.array([200, 60, 12, 3, 0])
SHARES = np.maximum(COUNTS, 1) / np.maximum(COUNTS, 1).sum()


def predictions(seed: int = 0, rows: int = 120, split: str = "test", name: str = "visual", **changes) -> Predictions:
    """A model that has learnt `COUNTS`, on about balanced images."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 5
    logits = 2.0 * (generator.normal(size=(rows, 5)) + 2.5 * np.eye(5)[labels] + np.log(SHARES))
    protocol = {"split": split, "source": "toys"}
    known = Predictions({name: logits}, labels, COUNTS, tuple("abcde"), protocol)
    return replace(known, **changes)


def zero_shot(seed: int, labels: np.ndarray) -> Predictions:
    logits = np.random.default_rng(seed).normal(size=(len(labels), 5)) + 2 * np.eye(5)[labels] + [1, 0, 0, 0, -1]
    return Predictions({"all texts": logits}, labels, COUNTS, tuple("abcde"), {"split": "test"})


TEST, VALIDATION = predictions(0), predictions(1, rows=80, split="validation")
BOTH = Material(TEST, zero_shot(2, TEST.labels)), Material(VALIDATION, zero_shot(3, VALIDATION.labels))


def steps_of(text: str) -> list[Step]:
    return parse_steps(text.split())


def applied(text: str, tuned: bool = True, **how):
    return adjust(BOTH[0], steps_of(text), BOTH[1] if tuned else None, **how)


def last(adjusted) -> np.ndarray:
    return list(adjusted.predictions.scores.values())[-1]


def test_words_become_steps():
    assert steps_of("logit-adjustment tau=1 temperature") == [
        Step("logit-adjustment", {"tau": "1"}),
        Step("temperature", {}),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no method is named; there are logit-adjustment, "),
        ("tau=1 em", "tau=1 stands before any method"),
        ("temprature", "unknown method temprature; did you mean temperature?"),
        ("temperature tau=1", "temperature has no key tau; it takes t, criterion"),
        ("ensemble wieght=1", "ensemble has no key wieght; did you mean weight?"),
    ],
)
def test_words_that_mean_nothing(text, said):
    with pytest.raises(UserError) as caught:
        steps_of(text)
    assert str(caught.value).startswith(said)


def test_every_method_is_the_one_of_its_module():
    z, other = TEST.scores["visual"], BOTH[0].zero_shot.scores["all texts"]
    held, other_held = VALIDATION.scores["visual"], BOTH[1].zero_shot.scores["all texts"]
    bias = label_bias.estimate(other_held, VALIDATION.labels).prior
    shares = em_prior.estimate(z, SHARES).prior
    backward = np.array([1, 10**0.25, 10**0.5, 10**0.75, 10]) / 10
    expected = {
        "logit-adjustment tau=0.5": logit_adjustment.adjusted(z, COUNTS, 0.5),
        "prior-correction prior=backward-10": prior_correction.to_prior(z, SHARES, backward),
        "prior-correction prior=train learnt=uniform": prior_correction.to_prior(z, np.ones(5), SHARES),
        "em": prior_correction.to_prior(z, SHARES, shares),
        "temperature t=2.5": temperature.scaled(z, 2.5),
        "temperature": temperature.scaled(z, temperature.fit(held, VALIDATION.labels)),
        "temperature criterion=balanced-nll": temperature.scaled(z, temperature.fit(held, VALIDATION.labels, True)),
        "ensemble weight=0.3": ensembling.mixed(z, other, 0.3),
        "ensemble weight=0.3 space=logit": ensembling.mixed(z, other, 0.3, "logit"),
        "gla": ensembling.generalised_logit_adjustment(z, other, COUNTS, bias),
    }
    for text, scores in expected.items():
        adjusted = applied(text)
        np.testing.assert_array_equal(adjusted.predictions.scores["visual"], z)
        np.testing.assert_allclose(last(adjusted), scores, atol=1e-12, err_msg=text)


def test_what_is_chosen_is_best_on_the_tuning_images():
    adjusted = applied("logit-adjustment")
    tuned = adjusted.predictions.protocol["posthoc"]["steps"][0]["tuned"]
    taus = np.round(np.arange(0, 3.05, 0.1), 1)

    def loss(tau: float) -> float:
        likelihoods = logit_adjustment.adjusted(VALIDATION.scores["visual"], COUNTS, tau)
        own = -likelihoods[np.arange(80), VALIDATION.labels]
        return float(np.mean([own[VALIDATION.labels == label].mean() for label in range(5)]))

    best = taus[int(np.argmin([loss(tau) for tau in taus]))]
    assert (tuned["value"], tuned["split"], tuned["images"]) == (best, "validation", 80)
    assert tuned["score"] == pytest.approx(loss(best))
    np.testing.assert_allclose(last(adjusted), logit_adjustment.adjusted(TEST.scores["visual"], COUNTS, best))
    assert adjusted.lines == (
        f"logit-adjustment: tau={best:g}, best balanced-nll of 31 values from 0 to 3 on validation (80 images)",
    )


def test_several_values_are_those_that_are_tried():
    adjusted = applied("logit-adjustment tau=0.1,0.2 criterion=accuracy")
    tuned = adjusted.predictions.protocol["posthoc"]["steps"][0]["tuned"]
    assert tuned["grid"] == {"low": 0.1, "high": 0.2, "values": 2}
    assert tuned["criterion"] == "accuracy"
    assert adjusted.warnings == (f"tau={tuned['value']:g} is the {'lowest' if tuned['value'] == 0.1 else 'highest'} "
                                 "value tried on validation: try further ones",)  # fmt: skip


def test_a_chain_goes_from_left_to_right():
    adjusted = applied("logit-adjustment tau=1 temperature")
    moved = logit_adjustment.adjusted(TEST.scores["visual"], COUNTS, 1.0)
    held = logit_adjustment.adjusted(VALIDATION.scores["visual"], COUNTS, 1.0)
    value = temperature.fit(held, VALIDATION.labels)
    names = ["visual", "visual + logit-adjustment", "visual + logit-adjustment + temperature"]
    assert list(adjusted.predictions.scores) == names
    np.testing.assert_allclose(adjusted.predictions.scores[names[1]], moved, atol=1e-12)
    np.testing.assert_allclose(adjusted.predictions.scores[names[2]], temperature.scaled(moved, value), atol=1e-12)
    posthoc = adjusted.predictions.protocol["posthoc"]
    assert posthoc["of"] == "visual"
    assert [step["method"] for step in posthoc["steps"]] == ["logit-adjustment", "temperature"]
    assert posthoc["steps"][0] == {"method": "logit-adjustment", "tau": 1.0}
    again = adjust(Material(adjusted.predictions), steps_of("temperature t=2"), predictor=names[2])
    assert again.predictions.protocol["posthoc"]["before"] == posthoc


def test_em_takes_each_split_as_it_is():
    """What a step after EM learns, it learns on tuning images corrected for their own shares."""
    held = VALIDATION.scores["visual"]
    own = prior_correction.to_prior(held, SHARES, em_prior.estimate(held, SHARES).prior)
    adjusted = applied("em temperature")
    assert adjusted.predictions.protocol["posthoc"]["steps"][1]["t"] == temperature.fit(own, VALIDATION.labels)
    np.testing.assert_allclose(adjusted.priors["visual + em"], em_prior.estimate(TEST.scores["visual"], SHARES).prior)


def test_em_on_few_images_is_warned_of():
    few = replace(TEST.with_scores({"visual": TEST.scores["visual"][:40]}), labels=TEST.labels[:40])
    assert adjust(Material(few), steps_of("em")).warnings == ("em estimated 5 shares from 40 images: they are noisy",)
    assert applied("em").warnings == ()


def test_em_needs_no_labels():
    unknown = adjust(Material(replace(TEST, labels=np.zeros_like(TEST.labels))), steps_of("em"))
    np.testing.assert_array_equal(last(unknown), last(applied("em", tuned=False)))


def test_tau_norm_takes_features_and_comes_first():
    generator = np.random.default_rng(0)
    weights, features, held = (generator.normal(size=shape) for shape in ((5, 7), (120, 7), (80, 7)))
    reported, tuning = Material(TEST, features=features), Material(VALIDATION, features=held)
    adjusted = adjust(reported, steps_of("tau-norm tau=1"), classifier=weights)
    np.testing.assert_array_equal(last(adjusted), tau_norm.logits(features, tau_norm.normalised(weights, 1.0)))
    chosen = adjust(reported, steps_of("tau-norm criterion=nll"), tuning, classifier=weights)
    assert chosen.predictions.protocol["posthoc"]["steps"][0]["tuned"]["images"] == 80
    for text, materials, said in (
        ("temperature t=2 tau-norm tau=1", (reported,), "comes first"),
        ("tau-norm", (reported, Material(VALIDATION)), "give --tune-features"),
        ("tau-norm tau=1", (Material(TEST),), "give --features and --classifier"),
        ("tau-norm tau=1", (Material(TEST, features=held),), "80 features for 120 images"),
    ):
        with pytest.raises(UserError, match=said):
            adjust(materials[0], steps_of(text), *materials[1:], classifier=weights)


def test_without_a_second_model_the_other_predictors_are_mixed_in():
    two = TEST.with_scores({"visual": TEST.scores["visual"], "language": BOTH[0].zero_shot.scores["all texts"]})
    adjusted = adjust(Material(two), steps_of("ensemble weight=0.3"), predictor="visual")
    np.testing.assert_allclose(last(adjusted), last(applied("ensemble weight=0.3")))
    assert adjusted.predictions.protocol["posthoc"]["steps"][0]["with"] == "language"
    three = two.with_scores({"fused": TEST.scores["visual"], **two.scores})
    assert main_predictor(three) == "fused"
    with pytest.raises(UserError, match="can mix with visual, language: say which, as in with=visual"):
        adjust(Material(three), steps_of("ensemble weight=0.3"))
    assert "fused + ensemble" in adjust(Material(three), steps_of("ensemble weight=1 with=language")).predictions.scores


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("logit-adjustment", "give --tune ANOTHER-SPLIT, or tau=NUMBER"),
        ("logit-adjustment tau=0,1", "give --tune ANOTHER-SPLIT, or tau=NUMBER"),
        ("temperature", "give --tune ANOTHER-SPLIT, or t=NUMBER"),
        ("gla", "give --tune ANOTHER-SPLIT"),
        ("ensemble", "give --tune ANOTHER-SPLIT, or weight=NUMBER"),
        ("logit-adjustment tau=one", "tau=one: give a number, or several"),
        ("logit-adjustment tau=inf", "give finite numbers"),
        ("logit-adjustment tau=1 criterion=nll", "tau is given, so nothing is chosen"),
        ("temperature t=1 criterion=nll", "t is given, so nothing is chosen"),
        ("temperature t=1,2", "t= is one number"),
        ("prior-correction", "needs the class shares of the test images"),
        ("prior-correction prior=backwards-10", "did you mean backward-10?"),
        ("prior-correction prior=shares.npy", "there is no such file"),
        ("ensemble weight=0.5 space=log", "space=log is not one of probability, logit"),
        ("ensemble weight=0.5 with=visual", "with=visual is not one of all texts"),
        ("logit-adjustment tau=1 em", "say which they have, as in learnt=uniform"),
        ("em logit-adjustment tau=1", "which em has taken out of the scores: keep one"),
    ],
)
def test_a_step_that_lacks_something_says_what(text, said):
    with pytest.raises(UserError) as caught:
        applied(text, tuned=False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_shares_that_are_named_may_follow():
    both = applied("logit-adjustment tau=1 prior-correction prior=train learnt=uniform", tuned=False)
    plain = logit_adjustment.adjusted(TEST.scores["visual"], COUNTS, 0.0)
    np.testing.assert_allclose(last(both), plain, atol=1e-12)


def named(count: int, first: int = 0) -> np.ndarray:
    return np.array([f"set:{row}" for row in range(first, first + count)])


def test_nothing_is_tuned_on_what_is_reported():
    steps = steps_of("logit-adjustment")
    for tuning in (
        TEST,
        replace(TEST, protocol={}),
        # some of them, in another order, among others
        predictions(0, labels=TEST.labels[::-1], scores={"visual": TEST.scores["visual"][::-1]}, protocol={}),
        replace(TEST.with_scores({"visual": TEST.scores["visual"][:60]}), labels=TEST.labels[:60]),
        # the same split by another model
        predictions(9),
    ):
        with pytest.raises(UserError, match="are among the reported ones: nothing is tuned on what is reported"):
            adjust(Material(TEST), steps, Material(tuning))


def test_images_that_have_names_are_told_apart_by_them():
    here = replace(TEST, rows=named(120))
    check_apart(here, replace(VALIDATION, rows=named(80, 120)), "visual")
    with pytest.raises(UserError, match="1 of the 80 tuning images"):
        check_apart(here, replace(VALIDATION, rows=named(80, 119), labels=np.roll(VALIDATION.labels, 1)), "visual")
    # numbers that are only positions: the images of one name have different classes
    check_apart(here, replace(VALIDATION, rows=named(80), labels=VALIDATION.labels[::-1]), "visual")
    check_apart(TEST, VALIDATION, "visual")


def test_a_second_model_has_to_have_seen_the_same_images():
    steps = steps_of("ensemble weight=0.5")
    with pytest.raises(UserError, match="of other images than those they are mixed with"):
        adjust(Material(TEST, zero_shot(2, TEST.labels[::-1])), steps)
    here, there = replace(TEST, rows=named(120)), replace(zero_shot(2, TEST.labels), rows=named(120, 1))
    with pytest.raises(UserError, match="of other images"):
        adjust(Material(here, there), steps)


def test_arrays_that_do_not_fit():
    with pytest.raises(UserError, match="test has no predictor fused, only visual"):
        adjust(Material(TEST), steps_of("em"), predictor="fused")
    with pytest.raises(UserError, match=r"shape \(120,\)"):
        adjust(Material(TEST.with_scores({"visual": TEST.labels})), steps_of("em"))
    with pytest.raises(UserError, match="5 columns for 4 classes"):
        adjust(Material(replace(TEST, train_counts=COUNTS[:4])), steps_of("em"))
    other = replace(VALIDATION, train_counts=COUNTS[:4], labels=np.zeros(80, dtype=int))
    other = other.with_scores({"visual": VALIDATION.scores["visual"][:, :4]})
    with pytest.raises(UserError, match="the tuning images have 4 classes, the reported ones 5"):
        adjust(Material(TEST), steps_of("temperature"), Material(other))
    with pytest.raises(UserError, match="no predictor to adjust"):
        main_predictor(TEST.with_scores({}))


@pytest.fixture
def folders(tmp_path):
    """An evaluation each of test and validation images, of a model and of a zero-shot one."""
    for name, of in (("a", (TEST, VALIDATION)), ("z", tuple(one.zero_shot for one in BOTH))):
        for split, made in zip(("test", "validation"), of):
            write_predictions(tmp_path / name / split / "predictions.npz", made)
            (tmp_path / name / split / "metrics.json").write_text(json.dumps({"protocol": {"split": split}}))
    return tmp_path


def invoke(*words) -> str:
    result = CliRunner().invoke(command, [*map(str, words), "eval.resamples=0"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_and_writes(folders):
    out = folders / "out"
    said = invoke(
        folders / "a/test", "--tune", folders / "a/validation", "logit-adjustment", "em", "learnt=uniform",
        "--out", out, "eval.report=false", "eval.rule=custom:50,10",
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[0].startswith("logit-adjustment: tau=")
    assert "on validation (80 images)" in lines[0]
    assert lines[1].startswith("em: learnt=uniform, iterations=")
    # a narrow terminal shows the table in pieces
    starts = list(dict.fromkeys(line.split("  ")[0].strip() for line in lines if line.startswith(" visual")))
    assert starts == ["visual", "visual + logit-adjustment", "visual + logit-adjustment + em"]
    assert lines[-1] == f"written to {out}"
    document = json.loads((out / "metrics.json").read_text())
    assert list(document["predictors"]) == starts
    assert document["protocol"]["posthoc"]["steps"][0]["tuned"]["split"] == "validation"
    assert document["protocol"]["rule"]["name"] == "custom:50,10"
    written = read_predictions(out)
    expected = adjust(Material(TEST), steps_of("logit-adjustment em learnt=uniform"), Material(VALIDATION))
    for name, scores in expected.predictions.scores.items():
        np.testing.assert_array_equal(written.scores[name], scores)
    rows = list(csv.DictReader((out / "em_prior.csv").open()))
    assert [row["class_name"] for row in rows] == list("abcde")
    np.testing.assert_allclose([float(row["train_share"]) for row in rows], SHARES)
    np.testing.assert_allclose([float(row["estimated_share"]) for row in rows], expected.priors[starts[2]])


def test_the_command_mixes_two_models(folders):
    invoke(
        folders / "a/test", "--with", folders / "z/test", "--tune", folders / "a/validation",
        "--tune-with", folders / "z/validation", "gla", "--out", folders / "out", "eval.report=false",
    )  # fmt: skip
    np.testing.assert_array_equal(read_predictions(folders / "out").scores["visual + gla"], last(applied("gla")))


def test_the_command_takes_arrays(folders):
    files = {
        "z": TEST.scores["visual"], "y": TEST.labels, "n": COUNTS, "other": BOTH[0].zero_shot.scores["all texts"],
        "val": VALIDATION.scores["visual"], "valy": VALIDATION.labels,
    }  # fmt: skip
    for name, array in files.items():
        np.save(folders / f"{name}.npy", array)
    place = {name: folders / f"{name}.npy" for name in files}
    given = ["--logits", place["z"], "--labels", place["y"], "--train-counts", place["n"]]
    tuned = ["--tune-logits", place["val"], "--tune-labels", place["valy"]]
    said = invoke(*given, *tuned, "temperature", "--out", folders / "one", "eval.report=false")
    assert "best nll on val (80 images)" in said
    scaled = read_predictions(folders / "one").scores["logits + temperature"]
    np.testing.assert_array_equal(scaled, last(applied("temperature")))
    invoke(*given, "--with", place["other"], "ensemble", "weight=0.3", "--out", folders / "two", "eval.report=false")
    mixed = read_predictions(folders / "two").scores["logits + ensemble"]
    np.testing.assert_array_equal(mixed, last(applied("ensemble weight=0.3")))
    np.save(folders / "shares.npy", [1.0, 1, 1, 1, 6])
    said = invoke(*given, "prior-correction", f"prior={folders / 'shares.npy'}")
    assert said.startswith(f"prior-correction: prior={folders / 'shares.npy'}, learnt=train\n")


def test_the_command_takes_features_and_a_classifier(folders):
    generator = np.random.default_rng(0)
    arrays = {"x": generator.normal(size=(30, 4)), "w": generator.normal(size=(5, 4)), "b": generator.normal(size=5)}
    for name, array in {**arrays, "y": np.arange(30) % 5, "n": COUNTS}.items():
        np.save(folders / f"{name}.npy", array)
    words = ["--features", "x", "--classifier", "w", "--bias", "b", "--labels", "y", "--train-counts", "n"]
    words = [word if word.startswith("-") else folders / f"{word}.npy" for word in words]
    invoke(*words, "tau-norm", "tau=1", "--out", folders / "out", "eval.report=false")
    written = read_predictions(folders / "out").scores
    np.testing.assert_array_equal(written["logits"], tau_norm.logits(*arrays.values()))
    unit = arrays["w"] / np.linalg.norm(arrays["w"], axis=1, keepdims=True)
    assert (written["logits + tau-norm"].argmax(1) == (arrays["x"] @ unit.T).argmax(1)).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to adjust: name PREDICTIONS"),
        (["em"], "em is a method: name PREDICTIONS before it"),
        (["nowhere", "em"], "nowhere holds no predictions.npz"),
        (["TEST"], "no method is named"),
        (["TEST", "--tune", "TEST", "temperature"], "120 of the 120 tuning images are among the reported ones"),
        (["TEST", "em", "--out", "TEST"], "holds the predictions that are read"),
        (["TEST", "--tune", "VALIDATION", "temperature", "--out", "VALIDATION"], "holds the predictions that are read"),
        (["TEST", "--tune-with", "VALIDATION", "em"], "--tune-with needs the labels of its images"),
        (["TEST", "--train-counts", "n.npy", "em"], "--train-counts goes with --logits"),
        (["TEST", "--labels", "n.npy", "em"], "--labels goes in place of"),
        (["--logits", "n.npy", "em"], "give --labels FILE"),
        (["--logits", "n.npy", "--labels", "n.npy", "em"], "give --train-counts FILE"),
        (["TEST", "--bias", "n.npy", "em"], "--bias goes with --classifier"),
        (["TEST", "em", "eval.ruel=oltr"], "unknown key eval.ruel"),
    ],
)
def test_the_command_says_what_is_wrong(folders, words, said):
    np.save(folders / "n.npy", COUNTS)
    places = {"TEST": folders / "a/test", "VALIDATION": folders / "a/validation", "n.npy": folders / "n.npy"}
    before = {path: path.read_bytes() for path in folders.rglob("*.*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        invoke(*(places.get(word, word) for word in words))
    assert said in str(caught.value)
    assert {path: path.read_bytes() for path in folders.rglob("*.*") if path.is_file()} == before


@pytest.mark.slow
def test_a_process_of_its_own(folders):
    words = [folders / "a/test", "--tune", folders / "a/validation", "logit-adjustment", "--out", folders / "out"]
    program = "import sys; from hf_vlr.cli.posthoc import command; command(sys.argv[1:], prog_name='hf-vlr posthoc')"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program, *map(str, words)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folders / "out" / "report.html").read_text(encoding="utf-8").count("visual + logit-adjustment") > 1
