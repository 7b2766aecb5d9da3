"""Post-hoc methods on predictions: chains, what they are told by, what may be tuned on, and the command."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hf_vlr.errors import UserError
from hf_vlr.evaluation.adjustment import Material, Step, adjust
from hf_vlr.evaluation.apart import check_apart
from hf_vlr.evaluation.learnt_shares import stated_by
from hf_vlr.evaluation.main_predictor import main_of, main_predictor, steps_done
from hf_vlr.posthoc import em_prior, ensembling, label_bias, logit_adjustment, prior_correction, tau_norm, temperature


def _neighbour(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = _neighbour("adjusted_toys")
COUNTS = toys.COUNTS
SHARES = toys.SHARES
ROOTS = toys.ROOTS
TEST = toys.TEST
VALIDATION = toys.VALIDATION
BOTH = toys.BOTH
predictions = toys.predictions
zero_shot = toys.zero_shot
steps_of = toys.steps_of
applied = toys.applied
last = toys.last


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
        "em learnt=sqrt": prior_correction.to_prior(z, ROOTS, em_prior.estimate(z, ROOTS).prior),
        "prior-correction prior=train learnt=uniform": prior_correction.to_prior(z, np.ones(5), SHARES),
        "em": prior_correction.to_prior(z, SHARES, shares),
        "temperature t=2.5": temperature.scaled(z, 2.5),
        "temperature": temperature.scaled(z, temperature.fit(held, VALIDATION.labels)),
        "temperature criterion=balanced-nll": temperature.scaled(z, temperature.fit(held, VALIDATION.labels, True)),
        "ensemble weight=0.3": ensembling.mixed(z, other, 0.3),
        "ensemble weight=0.3 space=logit": ensembling.mixed(z, other, 0.3, "logit"),
        "gla": ensembling.generalised_logit_adjustment(z, other, SHARES, bias),
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
    # ten of each class are few, too
    ten = replace(TEST.with_scores({"visual": TEST.scores["visual"][:50]}), labels=TEST.labels[:50])
    assert adjust(Material(ten), steps_of("em")).warnings == ("em estimated 5 shares from 50 images: they are noisy",)


@pytest.mark.parametrize(
    ("stated", "power"),
    [
        ({"sampler": "instance"}, 1.0),
        ({"sampler": "sqrt", "logit_adjustment": 0.0, "reweight": "none"}, 0.5),
        ({"sampler": "class-balanced"}, 0.0),
        ({"sampler": "over"}, 0.0),
        ({"sampler": "instance", "logit_adjustment": 1.0}, 0.0),
        ({"sampler": "sqrt", "logit_adjustment": 1.0}, -0.5),
        ({"sampler": "instance", "reweight": "inverse"}, 0.0),
    ],
)
def test_the_shares_that_scores_have_learnt_follow_from_the_training(stated, power):
    """The best scores of a known world, trained as stated, are freed of what they have learnt by π^power."""
    assert stated_by(stated).doubt is None
    assert stated_by(stated).power == power
    drawn = {"instance": SHARES, "sqrt": ROOTS}.get(stated["sampler"], np.full(5, 0.2))
    drawn = drawn / (SHARES if stated.get("reweight") == "inverse" else 1.0)
    likelihood = np.random.default_rng(0).normal(size=(120, 5))
    trained = likelihood + np.log(drawn) - stated.get("logit_adjustment", 0.0) * np.log(SHARES)
    made = replace(TEST.with_scores({"visual": trained}), protocol=TEST.protocol | stated)
    found = adjust(Material(made), steps_of("prior-correction prior=uniform"))
    np.testing.assert_allclose(last(found), temperature.scaled(likelihood, 1.0), atol=1e-12)
    assert found.warnings == ()
    told = found.predictions.protocol["posthoc"]["steps"][0]["learnt"]
    again = adjust(Material(made), steps_of(f"prior-correction prior=uniform learnt={told}"))
    np.testing.assert_array_equal(last(again), last(found))


@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"sampler": None},
        {"sampler": "progressive"},
        {"sampler": "sqrt", "reweight": "class-balanced"},
        {"sampler": "sqrt", "task": "rebalance"},
    ],
)
@pytest.mark.parametrize("text", ["em", "prior-correction prior=uniform", "gla"])
def test_shares_that_are_not_known_are_said_to_be_guessed(stated, text):
    made = replace(TEST, protocol={"split": "test"} | stated)
    material = Material(made, BOTH[0].zero_shot)
    found = adjust(material, steps_of(text), BOTH[1])
    assert len(found.warnings) == 1
    assert "say learnt=train, sqrt or uniform" in found.warnings[0]
    np.testing.assert_array_equal(last(found), last(applied(text)))
    assert adjust(material, steps_of(f"{text} learnt=train"), BOTH[1]).warnings == ()


def test_a_tau_given_by_hand_stays_and_is_doubted_where_training_has_balanced():
    made = Material(replace(TEST, protocol=TEST.protocol | {"sampler": "sqrt"}))
    found = adjust(made, steps_of("logit-adjustment tau=1"))
    np.testing.assert_array_equal(last(found), logit_adjustment.adjusted(TEST.scores["visual"], COUNTS, 1.0))
    (warning,) = found.warnings
    assert "tau=0.5" in warning
    assert adjust(made, steps_of("logit-adjustment tau=0.5")).warnings == ()
    assert applied("logit-adjustment tau=1", tuned=False).warnings == ()


def test_a_trained_branch_is_not_zero_shot():
    made = [
        Material(one.with_scores(dict.fromkeys(("fused", "visual", "language"), one.scores["visual"])))
        for one in (TEST, VALIDATION)
    ]
    found = adjust(made[0], steps_of("gla with=language"), made[1])
    assert "language is a trained branch, not a zero-shot model" in found.warnings[0]
    other = [Material(BOTH[i].predictions, made[i].predictions) for i in range(2)]
    assert "trained branch" in adjust(other[0], steps_of("gla with=language"), other[1]).warnings[0]
    assert applied("gla").warnings == ()


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


def test_what_an_earlier_call_has_taken_out_is_known():
    once = applied("logit-adjustment tau=1", tuned=False).predictions
    name = "visual + logit-adjustment"
    for text, said in (
        ("logit-adjustment tau=1", "which logit-adjustment has taken out of the scores: keep one"),
        ("em", "say which they have, as in learnt=uniform"),
        ("tau-norm tau=1", "comes first"),
    ):
        with pytest.raises(UserError, match=said):
            adjust(Material(once), steps_of(text))
    # the untouched predictor has not been adjusted
    again = adjust(Material(once), steps_of("logit-adjustment tau=1"), predictor="visual")
    np.testing.assert_array_equal(last(again), once.scores[name])
    # nor does a step between hide it
    cooler = adjust(Material(once), steps_of("temperature t=2")).predictions
    with pytest.raises(UserError, match="keep one"):
        adjust(Material(cooler), steps_of("logit-adjustment tau=1"))
    assert [step["method"] for step in steps_done(cooler.protocol, f"{name} + temperature")] == [
        "logit-adjustment",
        "temperature",
    ]


def test_the_main_predictor_is_the_last_step_else_the_fused_one():
    once = applied("logit-adjustment tau=1 temperature t=2", tuned=False).predictions
    assert main_predictor(once) == "visual + logit-adjustment + temperature"
    assert main_predictor(replace(once, protocol={})) == "visual"
    assert main_of(["visual", "language"], {}) == "language"
    assert main_of(["visual", "fused"], {}) == "fused"
    assert main_of(["mine", "other"], {}) == "mine"
    assert main_of(["visual"], once.protocol) == "visual"
    assert main_of(["visual", "fused"], {"posthoc": "damaged"}) == "fused"
    assert steps_done(once.protocol, "visual") == []
    with pytest.raises(UserError, match=r"has no predictor visual \+ logit-adjustment .*--predictor"):
        adjust(Material(once), steps_of("temperature"), Material(VALIDATION))


@pytest.mark.parametrize("text", ["temperature t=1e-300", "temperature t=1e9", "temperature t=0", "temperature t=-1"])
def test_temperatures_that_numbers_cannot_hold(text):
    with pytest.raises(UserError, match=r"between 0\.001 and 1000"):
        applied(text)


@pytest.mark.parametrize("text", ["logit-adjustment tau=1e308", "logit-adjustment tau=0,-1e308"])
def test_powers_that_numbers_cannot_hold(text):
    with pytest.raises(UserError, match="at most 100"):
        applied(text)


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


def test_the_same_images_in_another_precision_are_found():
    there = {"protocol": {}, "scores": {"visual": TEST.scores["visual"].astype(np.float16)}}
    with pytest.raises(UserError, match="120 of the 120 tuning images are among the reported ones"):
        adjust(Material(TEST), steps_of("temperature"), Material(replace(TEST, **there)))


def test_equal_labels_are_warned_of():
    others = predictions(9, split="validation")
    (warning,) = adjust(Material(TEST), steps_of("temperature"), Material(others)).warnings
    assert "the same labels in the same order" in warning
    known = replace(TEST, rows=named(120)), replace(others, rows=named(120, 120))
    assert adjust(Material(known[0]), steps_of("temperature"), Material(known[1])).warnings == ()


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
    with pytest.raises(UserError, match="there is no predictor"):
        main_predictor(TEST.with_scores({}))
