"""Checks of the evaluation itself: signs that an attack failed although the classifier would have been easy to fool.

Each check is one function from an audit to a light and a sentence. None is a proof: that all are green does not show that no
stronger attack exists (see arXiv 2206.01705), but a red one shows that the robust accuracy cannot be believed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps

from sfumato.audit.results import Audit
from sfumato.core.registry import Registry

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


FLAGS: Registry[Callable[[Audit], Check]] = Registry("check")
"""The checks by name, in the order of the report."""

Finding = tuple[str, str]  # light and sentence
NOTHING: Finding = (GREY, "Not measured: it does not apply here.")


def flag(name: str, needs: str = "", *, meaning: str, advice: str) -> Callable[[Callable[[Audit], Finding]], object]:
    """Enter a function as a check of this name; it is not asked where the audit has no probe or attack called ``needs``."""

    def enter(judge: Callable[[Audit], Finding]) -> Callable[[Audit], Check]:
        @wraps(judge)
        def check(audit: Audit) -> Check:
            measured = not needs or needs in audit.probes or needs in audit.outcomes
            return Check(name, *(judge(audit) if measured else NOTHING), meaning, advice)

        return FLAGS.add(name)(check)

    return enter


def check_all(audit: Audit) -> list[Check]:
    """Every check, in order."""
    return [check(audit) for check in FLAGS.values()]


def _light(red: object, amber: object = False) -> str:
    return RED if red else AMBER if amber else GREEN


@flag(
    "accuracy near chance",
    meaning="A classifier that is hardly better than guessing has no robustness to measure.",
    advice="Check the order of the labels, the size of the images, and the mean and std of the preprocessing.",
)
def near_chance(audit: Audit) -> Finding:
    clean, total = audit.clean_accuracy, len(audit.y)
    chance = float(audit.y.bincount().max()) / total  # always predicting the commonest class
    at_chance = clean.interval[0] <= chance
    few = total < CROWD and clean.value > chance  # then the interval is wide, whatever the classifier
    always = f"always predicting the commonest class gives {chance:.1%}"
    return _light(at_chance and not few, at_chance), f"The clean accuracy is {clean.value:.1%}; {always}."


@flag(
    "few images",
    meaning="With few images the true accuracy may be far from the one that was measured.",
    advice="Audit more images.",
)
def few_images(audit: Audit) -> Finding:
    low, high = audit.robust_accuracy.interval
    found = f"The interval of the robust accuracy on {len(audit.y):,} images is {low:.1%} to {high:.1%}."
    return _light(False, high - low > 0.2), found


@flag(
    "random output",
    "repeated",
    meaning="A randomized classifier needs expectation over transformation (EOT): single passes give no robust accuracy.",
    advice="Make the model deterministic (evaluation mode, fixed noise), or average many passes inside it (EOT).",
)
def random_output(audit: Audit) -> Finding:
    found = audit.probes["repeated"]
    labels = f"{found['changed']} of {audit.probes['count']} labels change"
    sentence = f"Two passes over the same images differ by {found['difference']:.1g} of the largest logit; {labels}."
    return _light(found["changed"] or found["difference"] > SAME), sentence


@flag(
    "depends on the batch",
    "alone",
    meaning="Where the answer for an image depends on the images beside it, an attack on a batch does not hold for each alone.",
    advice="Use stored statistics in normalisation layers, and no operation across the batch.",
)
def depends_on_batch(audit: Audit) -> Finding:
    found, random = audit.probes["alone"], audit.probes["repeated"]["difference"] > SAME
    light = GREY if random else _light(found["changed"] or found["difference"] > 10 * SAME)  # random: it cannot be told
    return light, f"Alone and in a batch, logits differ by {found['difference']:.1g} of the largest."


@flag(
    "softmax in the output",
    "softmax",
    meaning="Attacks expect logits: the gradient of probabilities vanishes where the model is confident (gradient masking).",
    advice="Remove the softmax layer from the model that is attacked; the predicted classes stay the same.",
)
def softmax_output(audit: Audit) -> Finding:
    found, count = audit.probes["softmax"], audit.probes["count"]
    return _light(found == count), f"{found} of {count} outputs lie in [0, 1] and sum to 1."


@flag(
    "zero gradients",
    meaning="Gradient masking: where the gradient is zero or not a number, attacks that follow it have no direction to go.",
    advice="Replace rounding and other flat operations by differentiable ones when attacking (BPDA); trust black-box attacks.",
)
def zero_gradients(audit: Audit) -> Finding:
    if audit.protocol == "black-box":
        only = "only a black-box attack was run; a model in PyTorch allows stronger ones"
        return AMBER, f"No gradient can be taken through the model: {only}."
    if "gradients" not in audit.probes:
        return NOTHING
    found, count = audit.probes["gradients"], audit.probes["count"]
    losses = f"{found['cross-entropy']} have no gradient of the cross-entropy, {found['margin']} none of the margin"
    return _light(found["margin"] > FEW * count, found["cross-entropy"] > FEW * count), f"Of {count} images {losses}."


@flag(
    "attack without bounds fails",
    "unbounded",
    meaning="With unbounded perturbations a sound attack has a success rate of 100%; a lower one is a sign of gradient masking.",
    advice="Look for flat or saturated outputs and vanishing gradients before believing the robust accuracy.",
)
def unbounded(audit: Audit) -> Finding:
    robust, count = audit.probes["unbounded"]["robust"], audit.probes["count"]
    found = f"With eps over the whole range of pixels, {robust} of {count} images are still not fooled."
    return _light(robust > 0.05 * count, robust), found


@flag(
    "planted example missed",
    "planted",
    meaning="The threshold was lowered until known noise within eps fools the classifier: an attack that misses it misses real ones.",
    advice="The attack does not fit this model: check its gradients, or use an adaptive attack.",
)
def planted(audit: Audit) -> Finding:
    count, found = (audit.probes["planted"][key] for key in ("count", "found"))
    sentence = f"PGD finds {found} of {count} planted adversarial examples."
    return (_light(count - found > 0.1 * count, found < count), sentence) if count else NOTHING


@flag(
    "noise beats gradients",
    "noise",
    meaning="Random noise of the same size fools the classifier where PGD does not: a sign of gradient masking.",
    advice="Look for randomness and flat operations in the model, and use an adaptive attack.",
)
def noise_wins(audit: Audit) -> Finding:
    found, count = audit.probes["noise"], audit.probes["count"]
    alone = found["fooled by noise alone"]
    fooled = f"{found['draws']} random perturbations fool {found['fooled']} of {count} images"
    return _light(alone > max(1, FEW * count), alone), f"{fooled}; {alone} of these PGD does not fool."


@flag(
    "black box beats white box",
    "standard",
    meaning="Black-box attacks should not succeed where white-box attacks fail: a sign of gradient masking.",
    advice="The true robust accuracy is likely lower still: use an adaptive attack.",
)
def black_box_wins(audit: Audit) -> Finding:
    alone = int((audit.outcomes["standard"].fooled_by_member("square") & audit.right).sum())
    found = f"Square fools {alone} of {len(audit.y):,} images that no attack with gradients fooled."
    return _light(alone > max(2, 0.002 * len(audit.y)), alone), found


@flag(
    "more steps do not help",
    "fgsm",
    meaning="Iterative attacks should be stronger than one-step attacks, or at least reach a higher loss: else gradient masking.",
    advice="Try smaller steps and more restarts, and look at the loss along the gradient's direction.",
)
def more_steps(audit: Audit) -> Finding:
    one, many = audit.outcomes["fgsm"], audit.outcomes["pgd"]
    alone, both = int((one.fooled & ~many.fooled).sum()), one.robust & many.robust
    risen, rose = many.margin[both] - audit.clean_margin[both], one.margin[both] - audit.clean_margin[both]
    lower, count = int((risen < CLEARLY * rose).sum()), int(both.sum())
    stuck = count >= ENOUGH and lower > count / 2
    lost = f"where both fail, forty steps end with a clearly lower loss on {lower} of {count}"
    found = f"One step fools {alone} images that forty steps do not; {lost}."
    return _light(stuck or alone > max(2, FEW * len(audit.y)), alone), found


@flag(
    "larger eps is safer",
    "larger eps",
    meaning="A larger ball contains the smaller one, so a larger eps can only raise the attack's success rate.",
    advice="The attack does not converge: try more steps, smaller ones, and another loss.",
)
def larger_eps(audit: Audit) -> Finding:
    (near, far), count = (
        (audit.probes["larger eps"][key] for key in ("robust", "robust at twice")),
        audit.probes["count"],
    )
    found = f"Against PGD {near} of {count} images are robust at eps, {far} at twice eps."
    return _light(far - near > max(1, FEW * count), far > near), found


@flag(
    "ensemble is not the strongest",
    meaning="A simpler attack finds what the strongest of the protocol misses: that one does not suit this model.",
    advice="Believe the worst case, and expect that a still stronger attack exists.",
)
def not_the_strongest(audit: Audit) -> Finding:
    main, bound = audit.outcomes[audit.main], max(2, 0.01 * len(audit.y))
    alone = int((main.robust & audit.right).sum()) - audit.robust_accuracy.correct
    return _light(
        alone > 5 * bound, alone > bound
    ), f"Other attacks fool {alone} images that the {main.title} does not."


@flag(
    "lost in 8 bits",
    meaning="Stored as image files, adversarial images are rounded to 256 values a channel; some no longer fool then.",
    advice="Count these as fooled only if the classifier is given float pixels; for files, attack the rounded pixels.",
)
def eight_bit(audit: Audit) -> Finding:
    main = audit.outcomes[audit.main]
    fooled = main.fooled & audit.right
    count, lost = int(fooled.sum()), int((fooled & ~main.fooled_8bit).sum())
    sentence = f"Of {count} adversarial images {lost} no longer fool after rounding to 8 bits."
    return (_light(False, lost > 0.05 * count), sentence) if count else NOTHING
