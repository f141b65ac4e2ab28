"""Audits of classifiers whose robustness is known in closed form, and of classifiers that deserve each warning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.attacks import fgsm, fooled, standard
from sfumato.attacks.ensemble import MEMBERS
from sfumato.audit import FLAGS, Audit, audit, check_all, compare, figures, read_report, summarise, write_report
from sfumato.audit.flags import AMBER, GREEN, GREY, RED
from sfumato.audit.summary import passes, samples, size
from sfumato.classifiers import BudgetExceeded, Classifier
from sfumato.classifiers.accuracy import Accuracy
from sfumato.core.errors import InputError
from sfumato.core.parts import FOLDER
from sfumato.data import ImageSet

SIDE = 8
EPS = 2 / 255
STEP = 8  # pixels are multiples of it: a perturbed image can be told from a clean one


class Linear(nn.Module):
    """``classes`` classes on images near the middle of the box, whose boundaries are all near."""

    def __init__(self, classes: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(classes)
        self.layer = nn.Linear(SIDE * SIDE, classes)
        self.layer.weight.data = scale * torch.randn(classes, SIDE * SIDE, generator=stream)
        self.layer.bias.data = -self.layer.weight.data.sum(1) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))

    def distances(self, x: Tensor) -> Tensor:
        """(B,) Linf distance to the nearest boundary: the logits' gap over the L1 norm of the weights'."""
        logits = self(x).detach()
        y = logits.argmax(1)
        gap = logits.gather(1, y[:, None]) - logits
        length = (self.layer.weight[y][:, None] - self.layer.weight[None]).abs().sum(2).detach()
        return torch.where(length > 0, gap / length.clamp_min(1e-9), torch.inf).amin(1)


def images(model: Linear, count: int, wrong: int = 0, names: tuple[str, ...] = ()) -> ImageSet:
    """Grey images with the model's own answers as labels, except for the first ``wrong``."""
    numbers = STEP * np.random.default_rng(0).integers(13, 20, (count, SIDE, SIDE, 1), dtype=np.uint8)
    x = torch.from_numpy(numbers).permute(0, 3, 1, 2).float() / 255
    classes = model.layer.out_features
    labels = model(x).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % classes
    return ImageSet(numbers, labels.numpy(), names or tuple(str(i) for i in range(classes)), "made up", "test")


def run(model: Classifier | Callable[[Tensor], Tensor], data: ImageSet, **settings: Any) -> Audit:
    classifier = model if isinstance(model, Classifier) else Classifier(model)
    return audit(classifier, data, **{"eps": EPS, "count": len(data), "protocol": "screening", **settings})


@lru_cache
def honest() -> Audit:
    return run(Linear(), images(Linear(), 70, wrong=4), protocol="standard")


def lights(found: Audit) -> dict[str, str]:
    return {check.name: check.light for check in check_all(found)}


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_a_linear_classifier_has_its_closed_form():
    found, model = honest(), Linear()
    data = images(model, 70, wrong=4)
    distance = model.distances(data.pixels(found.rows)).double()
    distance[~found.right] = -1
    assert found.clean_accuracy == Accuracy(66, 70)
    expected = distance > EPS
    assert 10 < int(expected.sum()) < 60 and (distance - EPS).abs().min() > 1e-5  # neither trivial nor on the edge
    assert found.robust.tolist() == expected.tolist()
    for name, outcome in found.outcomes.items():
        assert not (expected & outcome.fooled).any(), name  # nothing beats the closed form
        # The gradient of the cross-entropy of three classes points between the two boundaries.
        assert name in ("fgsm", "pgd") or outcome.robust.tolist() == expected.tolist(), name
    report = summarise(found, check_all(found))
    assert report["curve"]["accuracy"][0] == 66 / 70
    for eps, accuracy, low, high in zip(*(report["curve"][k] for k in ("eps", "accuracy", "low", "high")), strict=True):
        exact, easier = float((distance > eps + 3e-6).double().mean()), float((distance > eps / 1.02).double().mean())
        assert exact <= accuracy <= easier
        assert (low, high) == pytest.approx(Accuracy(round(accuracy * 70), 70).interval)
    right = distance[found.right].sort().values
    assert report["minimal_norm"]["found"] == 66
    assert report["minimal_norm"]["quantiles"]["0.5"] == pytest.approx(float(right[33]), rel=0.02)


def test_every_number_is_the_count_of_its_samples():
    found = honest()
    report, arrays = summarise(found, check_all(found)), samples(found)
    label, clean = arrays["label"], arrays["clean"]
    assert report["clean"]["correct"] == int((label == clean).sum())
    fooled_by_any = np.zeros(len(label), bool)
    rows = {row["name"]: row for row in report["attacks"]}
    for name in found.outcomes:
        fell = arrays[f"{name}.fooled"] & (label == clean)
        fooled_by_any |= arrays[f"{name}.fooled"]
        assert rows[name]["fooled"] == int(fell.sum())
        assert rows[name]["robust"]["correct"] == int(((label == clean) & ~fell).sum())
        assert (arrays[f"{name}.predicted"][fell] != label[fell]).all()
        assert (arrays[f"{name}.distance"][fell] <= EPS + 2e-6).all()
        assert ((arrays[f"{name}.margin"] > 0) == (arrays[f"{name}.predicted"] != label)).all()
    assert report["robust"]["correct"] == int((~fooled_by_any).sum())
    standing = 70 - 4
    for place, name in enumerate(MEMBERS):
        if name in rows:
            assert rows[name]["attacked"] == standing
            standing -= int((arrays["standard.fooled_by"] == 1 + place).sum())
            assert rows[name]["robust"]["correct"] == standing
    assert standing == rows["standard"]["robust"]["correct"]
    assert sum(each["robust"]["correct"] for each in report["classes"]) == report["robust"]["correct"]
    assert sum(pair["count"] for pair in report["attacked_into"]) == int((fooled_by_any & (label == clean)).sum())
    json.dumps(report, allow_nan=False)


def test_the_ensemble_in_parts_is_the_ensemble_in_one():
    found, model = honest(), Linear()
    classifier, x = Classifier(model), images(model, 70).pixels(honest().rows)
    ids = torch.from_numpy(found.rows)[found.right]
    verdict = standard(classifier, x[found.right], found.y[found.right], eps=EPS, ids=ids)
    assert verdict.robust.tolist() == found.outcomes["standard"].robust[found.right].tolist()
    once = fgsm(classifier, x, found.y, eps=EPS)
    assert fooled(classifier, once, found.y).tolist() == found.outcomes["fgsm"].fooled.tolist()


def test_passes_are_counted():
    data, classifier = images(Linear(), 20), Classifier(Linear())
    found = run(classifier, data)
    outcome = found.outcomes["fgsm"]
    assert (outcome.attacked, outcome.forward, outcome.backward) == (20, 20, 20)
    spent = sum(each.forward + each.backward for each in found.outcomes.values())
    assert spent < sum(found.passes.values()) <= classifier.forwards + classifier.backwards


THREATS = [(2, "Linf", EPS), (3, "L2", 0.04), (4, "L1", 0.12), (3, "L0", 1.0)]


@pytest.mark.parametrize(("classes", "norm", "eps"), THREATS)
def test_few_classes_and_every_norm(classes: int, norm: str, eps: float):
    model = Linear(classes)
    data = images(model, 12)
    found = run(model, data, norm=norm, eps=eps, protocol="standard" if norm == "Linf" else "screening")
    assert found.robust_accuracy.correct < 12
    assert norm == "L0" or found.robust_accuracy.correct > 0
    assert (found.distance[~found.robust] <= eps * (1 + 1e-5) + 1e-6).all()
    assert RED not in lights(found).values(), lights(found)
    assert "nan" not in json.dumps(summarise(found, check_all(found))).lower()


def test_the_images_are_drawn_by_the_seed_and_all_at_most_once():
    model = Linear()
    data = images(model, 30)
    first, second, same = (run(model, data, count=10, seed=seed).rows.tolist() for seed in (1, 2, 1))
    assert first == same != second and len(set(first)) == 10
    assert sorted(run(model, data, count=500).rows.tolist()) == list(range(30))


# -- stopped and resumed ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_budget_that_runs_out_is_no_loss(tmp_path: Path):
    model, data = Linear(), images(Linear(), 90, wrong=3)
    whole = write_report(run(model, data, protocol="standard", out=tmp_path / "a"), tmp_path / "a")
    for budget in (0, 300, 5000):
        with pytest.raises(BudgetExceeded, match="budget"):
            audit(Classifier(model, budget=budget), data, eps=EPS, count=90, out=tmp_path / "b")
    assert not (tmp_path / "b" / "report.json").exists()
    said: list[str] = []
    found = audit(Classifier(model), data, eps=EPS, count=90, out=tmp_path / "b", remark=said.append)
    assert any("parts were done before" in sentence for sentence in said)
    assert timeless(write_report(found, tmp_path / "b")) == timeless(whole)
    # Damaged and foreign parts are computed anew, and those of other audits are swept out.
    parts = sorted((tmp_path / "b" / FOLDER).iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:-7])
    again = write_report(run(model, data, protocol="standard", out=tmp_path / "b"), tmp_path / "b")
    assert timeless(again) == timeless(whole)
    other = run(model, data, out=tmp_path / "b", eps=2 * EPS)
    assert other.robust_accuracy.correct < found.robust_accuracy.correct
    names = {file.name.rsplit("-", 1)[1] for file in (tmp_path / "b" / FOLDER).iterdir()}
    assert len(names) == 1


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("seconds", "written")}


def test_another_model_is_another_audit(tmp_path: Path):
    data = images(Linear(), 20)
    first = run(Linear(), data, out=tmp_path)
    second = run(Linear(scale=2.0), data, out=tmp_path)
    assert first.classifier_hash != second.classifier_hash
    sure, surer = (found.outcomes["fgsm"].confidence.mean() for found in (first, second))
    assert surer > sure  # it was not taken from the parts of the first


# -- warnings -----------------------------------------------------------------------------------------------------------


class Seen(Linear):
    """The classifier behind a lens."""

    def __init__(self, lens: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lens = lens

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.lens(x))


class Probabilities(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return (40 * super().forward(x)).softmax(1)


class Misleading(torch.autograd.Function):
    """The identity, whose gradient points the other way at the images marked (B,)."""

    @staticmethod
    def forward(context: Any, x: Tensor, marked: Tensor) -> Tensor:
        context.save_for_backward(marked)
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (marked,) = context.saved_tensors
        return torch.where(marked.reshape(-1, 1, 1, 1), -gradients[0], gradients[0]), None


def off_grid(x: Tensor) -> Tensor:
    """(B,) how far the farthest pixel is from a multiple of STEP / 255."""
    steps = x * 255 / STEP
    return (steps - steps.round()).abs().flatten(1).amax(1) * STEP / 255


LENSES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero gradient everywhere": lambda x: (x * 32).round() / 32,
    "noise": lambda x: x + 0.1 * torch.rand_like(x),
    "the others of the batch": lambda x: 0.5 + x - x.mean(0, keepdim=True),
    "wrong gradient everywhere": lambda x: Misleading.apply(x, torch.ones(len(x), dtype=torch.bool)),
    "wrong gradient except at clean images": lambda x: Misleading.apply(x, off_grid(x) > 1e-4),
    "wrong gradient farther out than eps": lambda x: Misleading.apply(x, off_grid(x) > 1.1 * EPS),
}
FLAT = {"zero gradients": RED, "noise beats gradients": RED, "planted example missed": RED}
MASKED = {"black box beats white box": RED, "planted example missed": RED}
STUCK = {"more steps do not help": RED, "ensemble is not the strongest": RED}


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("zero gradient everywhere", {"eps": 8 / 255}, FLAT),
        ("noise", {}, {"random output": RED, "depends on the batch": GREY}),
        ("the others of the batch", {}, {"depends on the batch": RED}),
        (Probabilities(), {}, {"softmax in the output": RED}),
        ("wrong gradient everywhere", {"protocol": "standard"}, MASKED),
        ("wrong gradient everywhere", {}, {"attack without bounds fails": RED}),
        ("wrong gradient except at clean images", {}, STUCK),
        ("wrong gradient farther out than eps", {}, {"larger eps is safer": RED}),
        (Linear(), {"eps": 0.45 / 255}, {"lost in 8 bits": AMBER}),
    ],
)
def test_a_warning_comes_where_it_is_deserved(model: str | Linear, settings: dict[str, Any], expected: dict[str, str]):
    found = run(Seen(LENSES[model]) if isinstance(model, str) else model, images(Linear(), 40), **settings)
    shown = lights(found)
    assert {name: shown[name] for name in expected} == expected, {c.name: c.found for c in check_all(found)}


def test_few_images_and_bad_accuracy_are_said():
    data = images(Linear(), 12)
    shown = lights(run(Linear(), replace(data, labels=(np.asarray(data.labels) + 1) % 3)))
    assert shown["accuracy near chance"] == RED
    assert shown["zero gradients"] == shown["lost in 8 bits"] == GREY  # there was nothing to attack
    assert lights(run(Linear(), data))["few images"] == AMBER


def test_no_warning_for_honest_classifiers():
    shown = lights(honest())
    assert set(shown) == set(FLAGS)
    assert {name for name, light in shown.items() if light != GREEN} <= {"few images"}
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    data = images(Linear(), 60)
    x = data.pixels(slice(None))
    with torch.no_grad():  # so that all four classes occur
        network[-1].bias -= network(x).mean(0)
    labels = Classifier(network).predict(x)
    data = replace(data, labels=labels.numpy(), classes=("a", "b", "c", "d"))
    found = run(network, data, eps=8 / 255, protocol="standard")
    assert 0 <= found.robust_accuracy.correct < 60
    assert {name for name, light in lights(found).items() if light not in (GREEN, GREY)} <= {"few images"}


def test_a_model_without_gradients_is_attacked_without_them():
    model = Linear()

    def answer(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x)

    found = run(answer, images(model, 15))
    assert found.protocol == "black-box" and list(found.outcomes) == ["square"]
    expected = model.distances(images(model, 15).pixels(found.rows)) > EPS
    assert int(found.robust.sum()) >= int(expected.sum()) and found.robust_accuracy.correct < 15
    assert lights(found)["zero gradients"] == AMBER
    with pytest.raises(InputError, match="L0"):
        run(answer, images(model, 15), norm="L0", eps=2.0)


# -- the report ---------------------------------------------------------------------------------------------------------

HOSTILE = ("<script>alert(1)</script>", "\"'&<img src=x onerror=alert(1)>", "../../\x1b[31m\x00\ud800 a]]>b")


def test_hostile_names_are_escaped(tmp_path: Path):
    model, data = Linear(), images(Linear(), 12, names=HOSTILE)
    classifier = Classifier(model, labels=HOSTILE)
    found = run(classifier, replace(data, name="<b>data</b>"), name="<i>it</i>")
    worst = {"change": {"<q>": 1.0}, "accuracy": 0.5}
    row = {"name": "<u>", "bounds": "<s>", **Accuracy(6, 12).to_json(), "worst": worst}
    found = replace(found, invariance=[row])
    write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8", errors="surrogatepass")
    for raw in ("<script", "<img src=x", "<b>data", "<i>it", "<u>", "<s>", "<q>"):
        assert raw not in page, raw
    for escaped in ("&lt;script&gt;alert(1)&lt;/script&gt;", "&lt;b&gt;data", "&lt;i&gt;it", "&lt;u&gt;"):
        assert escaped in page
    assert "http://" not in page and "https://" not in page and 'src="data:image/png' in page  # one file, no more
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert len(suite.findall("testcase")) == len(FLAGS) == int(suite.get("tests", 0))
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["classifier"]["labels"] == list(HOSTILE)


def test_the_gate_fails_only_when_the_upper_bound_is_below(tmp_path: Path):
    robust = honest().robust_accuracy
    high = robust.interval[1]
    assert passes(robust, high) and not passes(robust, math.nextafter(high, 1))
    failed = write_report(honest(), tmp_path, min_robust_accuracy=min(1.0, high + 1e-6))
    assert failed["gate"] == {"min_robust_accuracy": high + 1e-6, "passed": False}
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    gate = suite.find("testcase[@classname='sfumato.audit.gate']")
    assert gate is not None and gate.find("failure") is not None and suite.get("failures") == "1"
    assert "Gate failed" in (tmp_path / "report.html").read_text()
    passed = write_report(honest(), tmp_path, min_robust_accuracy=high)
    assert passed["gate"]["passed"] and "Gate passed" in (tmp_path / "report.html").read_text()
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"


def test_a_baseline_is_shown_beside(tmp_path: Path):
    data = images(Linear(), 40)
    before = run(Linear(), data, out=tmp_path / "before", eps=EPS)
    old = write_report(before, tmp_path / "before")
    # The same images and threat, and a classifier that stands at half of what made the other fall.
    near = before.distance < EPS / 2
    better = replace(before, outcomes={n: replace(o, fooled=o.fooled & near) for n, o in before.outcomes.items()})
    new = write_report(better, tmp_path / "after", baseline=tmp_path / "before")
    shown = new["baseline"]
    gained = int((better.robust & ~before.robust).sum())
    assert gained > 0 and shown["gain"] == pytest.approx(gained / 40)
    assert (shown["paired"]["only_new"], shown["paired"]["only_old"]) == (gained, 0)
    assert shown["paired"]["p"] == pytest.approx(min(1.0, 2 * 0.5**gained))
    assert not shown["remarks"] and "points more" in shown["sentence"]
    assert "Against the baseline" in (tmp_path / "after" / "report.html").read_text()
    arrays = samples(better)
    elsewhere = compare({**new, "threat": {"norm": "L2", "eps": 1.0}}, arrays, old, arrays)
    assert elsewhere["paired"] is None and "does not compare" in elsewhere["remarks"][0]
    (tmp_path / "after" / "samples.npz").write_bytes(b"damaged")
    again = write_report(better, tmp_path / "c", baseline=tmp_path / "after" / "report.json")
    assert again["baseline"]["paired"] is None


SCHEMAS = [f'{{"schema": "sfumato.audit/{version}"}}' for version in (1, 2)]


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", *SCHEMAS])
def test_other_files_are_no_baseline(tmp_path: Path, text: str):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match="baseline"):
        read_report(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_report(tmp_path / "nowhere")


def test_bad_settings_are_one_sentence():
    data = images(Linear(), 4)
    bad: list[tuple[str, Any, str]] = [("eps", 0.0, "over 0"), ("eps", 2.0, "whole range"), ("eps", math.nan, "over 0")]
    bad += [("count", 0, "1 or more"), ("norm", "Linf2", "Linf"), ("protocol", "standart", "standard")]
    for name, value, words in bad:
        with pytest.raises(InputError, match=words):
            run(Linear(), data, **{name: value})
    with pytest.raises(InputError, match="no labels"):
        run(Linear(), replace(data, labels=None))


def test_sizes_and_ticks_are_round():
    assert [size(eps, "Linf") for eps in (8 / 255, 0.5 / 255, 0.1)] == ["8/255", "0.5/255", "25.5/255"]
    assert (size(0.5, "L2"), size(1 / 3, "L2"), size(0.0301, "Linf")) == ("0.5", "0.3333", "0.0301")
    assert list(figures.ticks(16 / 255, "Linf").values()) == ["0", "5/255", "10/255", "15/255"]
    assert list(figures.ticks(1.0, "L2")) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert list(figures.counted(3)) == [0, 1, 2, 3] and len(figures.counted(812)) <= 6


def test_very_many_classes_are_listed_not_drawn(tmp_path: Path):
    names = tuple(f"class {i}" for i in range(30))
    model = Linear(30)
    found = run(Classifier(model, labels=names), images(model, 40, names=names))
    report = write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "rarer pairs" in page or len(report["attacked_into"]) <= 20
    assert 'class="matrix"' not in page and report["attacked_into"][0]["into"] in page
