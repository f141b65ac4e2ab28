"""Checks of the evaluation itself: signs that an attack failed although the classifier would have been easy to fool.

Each check is one function from an audit to a ``Check``. None is a proof: that all are green does not show that no stronger
attack exists (see arXiv 2206.01705), but a red one shows that the robust accuracy cannot be believed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from sfumato.audit.results import Audit
from sfumato.core.registry import Registry

FLAGS: Registry[Callable[[Audit], Check]] = Registry("check")
"""The checks by name, in the order of the report."""

GREEN, AMBER, RED, GREY = "green", "amber", "red", "grey"
SAME = 1e-4  # logits of two passes that agree to this share of the largest
FEW = 0.02  # a share of images that chance explains
CROWD = 30  # images that tell a classifier from guessing
CLEARLY = 0.8  # of another attack's progress
ENOUGH = 5  # images below which a comparison says nothing


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        name: of the check.
        light: green (nothing found), amber (look at it), red (the robust accuracy cannot be believed), grey (not measured).
        found: what was measured, in one sentence.
        meaning: what the sign means, in one sentence.
        advice: what to do.
    """

    name: str
    light: str
    found: str
    meaning: str
    advice: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def check_all(audit: Audit) -> list[Check]:
    """Every check, in order."""
    return [check(audit) for check in FLAGS.values()]


@FLAGS.add("accuracy near chance")
def near_chance(audit: Audit) -> Check:
    clean = audit.clean_accuracy
    chance = float(audit.y.bincount().max()) / len(audit.y)  # always saying the commonest class
    at_chance = clean.interval[0] <= chance
    few = len(audit.y) < CROWD and clean.value > chance  # then the interval is wide, whatever the classifier
    return Check(
        "accuracy near chance",
        (AMBER if few else RED) if at_chance else GREEN,
        f"{clean.value:.1%} of the clean images are classified rightly; always naming the commonest class gives {chance:.1%}.",
        "A classifier that is hardly better than guessing has no robustness to measure.",
        "Check the order of the labels, the size of the images, and the mean and std of the preprocessing.",
    )


@FLAGS.add("few images")
def few_images(audit: Audit) -> Check:
    low, high = audit.robust_accuracy.interval
    wide = high - low > 0.2
    return Check(
        "few images",
        AMBER if wide else GREEN,
        f"The interval of the robust accuracy on {len(audit.y):,} images is {low:.1%} to {high:.1%}.",
        "With few images the true accuracy may be far from the one that was measured.",
        "Audit more images.",
    )


@FLAGS.add("random output")
def random_output(audit: Audit) -> Check:
    found = audit.probes.get("repeated")
    meaning = "Against a random model an attack that looks once keeps lucky hits and loses real ones, so no number here is one."
    advice = "Make the model deterministic (evaluation mode, fixed noise), or average many passes inside it."
    if found is None:
        return _unmeasured("random output", meaning, advice)
    return Check(
        "random output",
        RED if found["changed"] or found["difference"] > SAME else GREEN,
        f"Two passes over the same images differ by {found['difference']:.1g} of the largest logit; "
        f"{found['changed']} of {audit.probes['count']} labels change.",
        meaning,
        advice,
    )


@FLAGS.add("depends on the batch")
def depends_on_batch(audit: Audit) -> Check:
    found = audit.probes.get("alone")
    meaning = "Where the answer for an image depends on the images beside it, an attack on a batch does not hold for each alone."
    advice = "Use stored statistics in normalisation layers, and no operation across the batch."
    if found is None:
        return _unmeasured("depends on the batch", meaning, advice)
    random = audit.probes["repeated"]["difference"] > SAME  # then this cannot be told
    bad = not random and (found["changed"] > 0 or found["difference"] > 10 * SAME)
    return Check(
        "depends on the batch",
        GREY if random else RED if bad else GREEN,
        f"Alone and in a batch, logits differ by {found['difference']:.1g} of the largest.",
        meaning,
        advice,
    )


@FLAGS.add("softmax in the output")
def softmax_output(audit: Audit) -> Check:
    found = audit.probes.get("softmax")
    meaning = "Attacks expect logits: on probabilities the gradient vanishes where the model is sure, and the attack stands still."
    advice = "Take the softmax layer off the model that is attacked; the classes it names stay the same."
    if found is None:
        return _unmeasured("softmax in the output", meaning, advice)
    return Check(
        "softmax in the output",
        RED if found == audit.probes["count"] else GREEN,
        f"{found} of {audit.probes['count']} outputs lie in [0, 1] and sum to 1.",
        meaning,
        advice,
    )


@FLAGS.add("zero gradients")
def zero_gradients(audit: Audit) -> Check:
    found = audit.probes.get("gradients")
    meaning = "Where the gradient is zero or not a number, attacks that follow it have no direction to go."
    advice = (
        "Replace rounding, thresholds and other flat operations by a smooth stand-in when attacking (BPDA), "
        "and trust the attacks that need no gradient."
    )
    if audit.protocol == "black-box":
        sentence = "No gradient can be taken through the model: only an attack without gradients was run."
        return Check("zero gradients", AMBER, sentence, meaning, "Give the model in PyTorch, for stronger attacks.")
    if found is None:
        return _unmeasured("zero gradients", meaning, advice)
    count = audit.probes["count"]
    light = RED if found["margin"] > FEW * count else AMBER if found["cross-entropy"] > FEW * count else GREEN
    return Check(
        "zero gradients",
        light,
        f"Of {count} images {found['cross-entropy']} have no gradient of the cross-entropy, {found['margin']} none of the margin.",
        meaning,
        advice,
    )


@FLAGS.add("attack without bounds fails")
def unbounded(audit: Audit) -> Check:
    found = audit.probes.get("unbounded")
    meaning = (
        "With any image allowed, a sound attack fools every classifier; where it does not, it fails at small sizes too."
    )
    advice = "Look for flat or saturated outputs and vanishing gradients before believing the robust accuracy."
    if found is None:
        return _unmeasured("attack without bounds fails", meaning, advice)
    count = audit.probes["count"]
    light = RED if found["robust"] > 0.05 * count else AMBER if found["robust"] else GREEN
    return Check(
        "attack without bounds fails",
        light,
        f"With eps over the whole range of pixels, {found['robust']} of {count} images are still not fooled.",
        meaning,
        advice,
    )


@FLAGS.add("planted example missed")
def planted(audit: Audit) -> Check:
    found = audit.probes.get("planted")
    meaning = (
        "The classifier's threshold was lowered until a known random perturbation within eps fools it: "
        "an attack that does not find any such example would not find real ones."
    )
    advice = "The attack does not fit this model: look at its gradients, or adapt the attack to what the model does."
    if found is None or not found["count"]:
        return _unmeasured("planted example missed", meaning, advice)
    missed = found["count"] - found["found"]
    light = RED if missed > 0.1 * found["count"] else AMBER if missed else GREEN
    return Check(
        "planted example missed",
        light,
        f"PGD finds {found['found']} of {found['count']} planted adversarial examples.",
        meaning,
        advice,
    )


@FLAGS.add("noise beats gradients")
def noise_wins(audit: Audit) -> Check:
    found = audit.probes.get("noise")
    meaning = "Random noise of the same size fools the classifier where following its gradient does not: the gradient misleads."
    advice = "Look for randomness and flat operations in the model, and adapt the attack to them."
    if found is None:
        return _unmeasured("noise beats gradients", meaning, advice)
    alone = found["fooled by noise alone"]
    return Check(
        "noise beats gradients",
        RED if alone > max(1, FEW * audit.probes["count"]) else AMBER if alone else GREEN,
        f"{found['draws']} random perturbations fool {found['fooled']} of {audit.probes['count']} images; "
        f"{alone} of these PGD does not fool.",
        meaning,
        advice,
    )


@FLAGS.add("black box beats white box")
def black_box_wins(audit: Audit) -> Check:
    meaning = "An attack that sees only the outputs should find nothing that those which see the gradients have missed."
    advice = "The gradients are masked: the true robustness is likely lower still, so adapt the attack to the model."
    if "standard" not in audit.outcomes:
        return _unmeasured("black box beats white box", meaning, advice)
    alone = int((audit.outcomes["standard"].fooled_by_member("square") & audit.right).sum())
    bound = max(2, 0.002 * len(audit.y))
    return Check(
        "black box beats white box",
        RED if alone > bound else AMBER if alone else GREEN,
        f"Square fools {alone} of {len(audit.y):,} images that no attack with gradients fooled.",
        meaning,
        advice,
    )


@FLAGS.add("more steps do not help")
def more_steps(audit: Audit) -> Check:
    meaning = (
        "Forty steps should fool all that one step fools, and climb higher where both fail; else they follow no slope."
    )
    advice = "Try smaller steps and more restarts, and look at the loss along the gradient's direction."
    if not {"fgsm", "pgd"} <= set(audit.outcomes):
        return _unmeasured("more steps do not help", meaning, advice)
    one, many = audit.outcomes["fgsm"], audit.outcomes["pgd"]
    alone = int((one.fooled & ~many.fooled).sum())
    both = one.robust & many.robust
    risen, rose = many.margin[both] - audit.clean_margin[both], one.margin[both] - audit.clean_margin[both]
    lower = int((risen < CLEARLY * rose).sum())
    stuck = int(both.sum()) >= ENOUGH and lower > both.sum() / 2
    return Check(
        "more steps do not help",
        RED if stuck or alone > max(2, FEW * len(audit.y)) else AMBER if alone else GREEN,
        f"One step fools {alone} images that forty steps do not; where both fail, forty steps end with "
        f"a clearly lower loss on {lower} of {int(both.sum())}.",
        meaning,
        advice,
    )


@FLAGS.add("larger eps is safer")
def larger_eps(audit: Audit) -> Check:
    found = audit.probes.get("larger eps")
    meaning = "A larger ball contains the smaller one, so an attack on it can only do better."
    advice = "The attack gets lost: try more steps, smaller ones, and another loss."
    if found is None:
        return _unmeasured("larger eps is safer", meaning, advice)
    more = found["robust at twice"] - found["robust"]
    return Check(
        "larger eps is safer",
        RED if more > max(1, FEW * audit.probes["count"]) else AMBER if more > 0 else GREEN,
        f"Against PGD {found['robust']} of {audit.probes['count']} images are robust at eps, "
        f"{found['robust at twice']} at twice eps.",
        meaning,
        advice,
    )


@FLAGS.add("ensemble is not the strongest")
def not_the_strongest(audit: Audit) -> Check:
    meaning = "A simpler attack finds what the strongest of the protocol misses: that one does not suit this model."
    advice = "Believe the worst case, and expect that a still stronger attack exists."
    main = audit.outcomes[audit.main]
    alone = int((main.robust & audit.right).sum()) - audit.robust_accuracy.correct
    bound = max(2, 0.01 * len(audit.y))
    light = RED if alone > 5 * bound else AMBER if alone > bound else GREEN
    sentence = f"Other attacks fool {alone} images that the {main.title} does not."
    return Check("ensemble is not the strongest", light, sentence, meaning, advice)


@FLAGS.add("lost in 8 bits")
def eight_bit(audit: Audit) -> Check:
    meaning = "Stored as image files, adversarial images are rounded to 256 values a channel; some no longer fool then."
    advice = "Count these as fooled only if the classifier is given float pixels; for files, attack the rounded pixels."
    main = audit.outcomes[audit.main]
    fooled = main.fooled & audit.right
    if not fooled.any():
        return _unmeasured("lost in 8 bits", meaning, advice)
    lost = int((fooled & ~main.fooled_8bit).sum())
    return Check(
        "lost in 8 bits",
        AMBER if lost > 0.05 * int(fooled.sum()) else GREEN,
        f"Of {int(fooled.sum())} adversarial images {lost} no longer fool after rounding to 8 bits.",
        meaning,
        advice,
    )


def _unmeasured(name: str, meaning: str, advice: str) -> Check:
    return Check(name, GREY, "Not measured: it does not apply here.", meaning, advice)
