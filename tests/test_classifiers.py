"""Classifiers: what goes in and out, what is left as it was, what is counted, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.classifiers import pictures, small_network
from sfumato.classifiers import BudgetExceeded, Classifier, TwoLogits
from sfumato.core.errors import InputError


def cross_entropy(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: F.cross_entropy(logits, y, reduction="none")


# -- logits and gradients -------------------------------------------------------------------------------------------------


def test_logits_are_the_models_in_evaluation_mode_of_normalised_pixels():
    model, x = small_network(), pictures()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    classifier = Classifier(model, mean=mean, std=std)
    found = classifier(x)
    expected = model.eval()((x - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(found, expected)
    assert torch.equal(classifier.predict(x), expected.argmax(1)) and classifier.predict(x).dtype == torch.int64
    torch.testing.assert_close(Classifier(model, mean=mean, std=std, batch_size=4).logits(x), expected)
    assert classifier.classes == 5 and classifier.labels == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_that_of_finite_differences(channels: int):
    model = small_network(torch.float64)
    x = 0.1 + 0.8 * pictures(3, channels, kind=torch.float64)
    y = torch.tensor([0, 3, 4])
    classifier = Classifier(model, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    logits, gradient = classifier.gradient(x, cross_entropy(y))
    assert logits.dtype == torch.float64 and gradient.shape == x.shape and not gradient.requires_grad
    for place in [(0, 0, 1, 2), (1, channels - 1, 7, 7), (2, 0, 4, 4)]:
        step = torch.zeros_like(x)
        step[place] = 1e-5
        up, down = (cross_entropy(y)(classifier(x + s)).sum() for s in (step, -step))
        assert float(gradient[place]) == pytest.approx(float((up - down) / 2e-5), rel=1e-6, abs=1e-9)


def test_float32_pixels_go_through_a_float64_model_and_back():
    logits, gradient = Classifier(small_network(torch.float64)).gradient(pictures(2), lambda z: z[:, 0])
    assert logits.dtype == torch.float64 and gradient.dtype == torch.float32
    half = Classifier(small_network(torch.bfloat16))
    assert half(pictures(2)).dtype == torch.float32


def test_vectors_are_classified_too():
    linear = nn.Linear(7, 3)
    x = torch.rand(4, 7)
    _, gradient = Classifier(linear).gradient(x, lambda z: z[:, 1])
    torch.testing.assert_close(gradient, linear.weight[1].detach().expand(4, 7))
    means = torch.linspace(0, 1, 7)
    torch.testing.assert_close(Classifier(linear, mean=means, std=0.5)(x), linear((x - means) / 0.5))


def test_a_call_is_differentiable_and_leaves_the_parameters_alone():
    model, x = small_network(), pictures().requires_grad_()
    Classifier(model)(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_images_are_no_passes():
    classifier = Classifier(small_network(), labels=list("abcde"))
    empty = pictures(0)
    assert classifier(empty).shape == (0, 5) and classifier.predict(empty).shape == (0,)
    logits, gradient = classifier.gradient(empty, lambda z: z[:, 0])
    assert logits.shape == (0, 5) and gradient.shape == empty.shape and classifier.forwards == 0


# -- what is left as it was ---------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> list[Any]:
    return [
        [part.training for part in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [tensor.clone() for tensor in model.state_dict().values()],
    ]


@pytest.mark.parametrize("call", ["__call__", "logits", "predict", "gradient", "failing loss", "failing model"])
def test_the_model_is_left_as_it_was_found(call: str):
    model, x = small_network().train(), pictures()
    model.get_submodule("0.1").eval()  # parts in different modes
    model.get_parameter("2.weight").requires_grad_(False)
    first = model.get_parameter("0.0.weight")
    first.grad = torch.ones_like(first)
    before = state_of(model)
    classifier = Classifier(model)
    if call == "gradient":
        classifier.gradient(x, lambda z: z[:, 0])
    elif call == "failing loss":
        with pytest.raises(ZeroDivisionError):
            classifier.gradient(x, lambda z: z / 0 if 1 // 0 else z)
    elif call == "failing model":
        with pytest.raises(RuntimeError):
            classifier(pictures(channels=4))
    else:
        getattr(classifier, call)(x)
    after = state_of(model)
    assert before[:2] == after[:2]
    assert all(a is b for a, b in zip(before[2], after[2], strict=True))  # the very same .grad
    assert all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))
    with classifier.ready():
        assert not any(part.training for part in model.modules())
        classifier.predict(x)
        assert not any(part.training for part in model.modules())  # still held
    assert state_of(model)[:2] == before[:2]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).sub_(1)
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("normalised", [False, True])
def test_a_model_that_writes_to_its_input_cannot_reach_the_callers(normalised: bool):
    model, x = InPlace(), pictures(side=2)
    kept = x.clone()
    classifier = Classifier(model, mean=0.5, std=0.5) if normalised else Classifier(model)
    first, gradient = classifier.gradient(x, lambda z: z[:, 0])
    assert torch.equal(x, kept) and torch.equal(classifier(x), first) and torch.equal(x, kept)
    slope = (4 if normalised else 2) * model.linear.weight[0].detach()
    torch.testing.assert_close(gradient.flatten(1), slope.expand(len(x), -1))


def test_gradients_are_taken_under_no_grad_and_inference_mode():
    classifier, x = Classifier(small_network()), pictures()
    _, expected = classifier.gradient(x, lambda z: z[:, 0])
    with torch.no_grad():
        assert torch.equal(classifier.gradient(x, lambda z: z[:, 0])[1], expected)
    with torch.inference_mode():
        assert torch.equal(classifier.gradient(x.clone(), lambda z: z[:, 0])[1], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_and_images_on_different_devices():
    model, x = small_network(), pictures()
    expected = Classifier(model)(x)
    classifier = Classifier(model, device="cuda")
    assert classifier(x).device.type == "cpu" and next(model.parameters()).device.type == "cpu"
    torch.testing.assert_close(classifier(x), expected, rtol=1e-3, atol=1e-3)
    _, gradient = Classifier(model.cuda()).gradient(x, lambda z: z[:, 0])
    assert gradient.device.type == "cpu"


# -- counts and budget --------------------------------------------------------------------------------------------------


def test_passes_are_counted_in_images():
    classifier, x = Classifier(small_network(), batch_size=4), pictures(6)
    classifier(x)
    assert (classifier.forwards, classifier.backwards) == (6, 0)
    classifier.gradient(x, lambda z: z[:, 0])
    assert (classifier.forwards, classifier.backwards) == (12, 6)
    classifier.predict(x)
    assert (classifier.forwards, classifier.backwards) == (18, 6)
    leaf = x.clone().requires_grad_()
    logits = classifier(leaf)
    for k in range(3):  # as DeepFool does: a gradient for each class
        torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)
    assert (classifier.forwards, classifier.backwards) == (24, 24)
    classifier.reset_counts()
    assert (classifier.forwards, classifier.backwards) == (0, 0)


def test_the_budget_is_exact():
    seen: list[int] = []

    def model(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1)[:, :3]

    classifier, x = Classifier(model, budget=18), pictures(6)
    classifier.gradient(x, lambda z: z[:, 0])
    classifier(x)
    with pytest.raises(BudgetExceeded, match=r"budget of 18 passes.*18 made"):
        classifier(x[:1])
    assert seen == [6, 6] and isinstance(BudgetExceeded("x"), InputError)
    classifier.reset_counts()
    classifier(x)
    classifier(x)
    with pytest.raises(BudgetExceeded):  # the forward pass alone would still fit
        classifier.gradient(x, lambda z: z[:, 0])
    assert classifier.forwards == 12 and seen == [6, 6, 6, 6]


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1e-4, 1.0001, float("nan"), float("inf"), 255.0])
def test_pixels_outside_0_and_1_are_refused(value: float):
    x = pictures()
    x[2, 1, 3, 3] = value
    classifier = Classifier(small_network())
    gradient = partial(classifier.gradient, loss=lambda z: z[:, 0])
    for call in (classifier, classifier.predict, classifier.logits, gradient):
        with pytest.raises(InputError, match="between 0 and 1"):
            call(x)
    assert classifier.forwards == 0


def test_rounding_is_no_reason_to_refuse():
    x = pictures()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -2.98e-8, 1 + 1.2e-7
    assert Classifier(small_network())(x).shape == (6, 5)


def test_other_than_float_images_are_refused():
    classifier = Classifier(small_network())
    with pytest.raises(InputError, match=r"torch\.uint8.*divide 8-bit images by 255"):
        classifier(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="give a batch"):
        classifier(torch.zeros(8))


def test_nan_logits_name_the_number_of_images():
    def model(x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :4].clone()
        z[1, 2], z[4, 0], z[5, 3] = float("nan"), float("inf"), -float("inf")
        return z

    with pytest.raises(InputError, match="not finite for 2 of 6 images"):  # -inf rules out a class, and may stand
        Classifier(model)(pictures())


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_one_number_an_image_is_explained(shape: tuple[int, ...]):
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1).mean(1) - 0.5).view(shape)

    with pytest.raises(InputError, match=r"TwoLogits\(model\)"):
        Classifier(One())(pictures())
    x = pictures()
    logits = Classifier(TwoLogits(One()))(x)
    number = x.flatten(1).mean(1) - 0.5
    torch.testing.assert_close(logits.softmax(1)[:, 1], torch.sigmoid(number))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x, r"\(6, 3, 8, 8\) for 6 images"),
        (lambda x: x.flatten(1)[:2], "for 6 images"),
        (lambda x: [1, 2], "a list, without logits"),
        (lambda x: None, "a NoneType, without logits"),
    ],
)
def test_other_outputs_are_refused(output: Callable[[Tensor], Any], message: str):
    with pytest.raises(InputError, match=message):
        Classifier(output)(pictures())


def test_a_wrong_number_of_labels_is_refused():
    with pytest.raises(InputError, match="gives 5 logits, but 3 labels were given"):
        Classifier(small_network(), labels=("a", "b", "c"))(pictures())
    with pytest.raises(InputError, match="twice"):
        Classifier(small_network(), labels=("a", "a"))


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)},
        {"mean": 0.5, "std": 0.0},
        {"mean": 0.5, "std": -1.0},
        {"mean": (0.5, float("nan")), "std": 0.5},
        {"mean": (0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        {"mean": "half", "std": 0.5},
        {"mean": (0.5, 0.5, 0.5), "std": 0.5, "channels": 1},
    ],
)
def test_preprocessing_that_cannot_be_meant_is_refused(settings: dict[str, Any]):
    with pytest.raises(InputError, match=r"mean|std"):
        Classifier(small_network(), **settings)


def test_what_has_no_gradient_is_explained():
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :3]

    with pytest.raises(InputError, match="does not depend differentiably"):
        Classifier(Detached()).gradient(pictures(), lambda z: z[:, 0])
    with pytest.raises(InputError, match="one number an image"):
        Classifier(small_network()).gradient(pictures(), lambda z: z.sum())


def test_sizes_and_channels_are_checked():
    classifier = Classifier(small_network(), size=(8, 8), channels=3)
    assert classifier.classes == 5 and classifier.forwards == 0
    with pytest.raises(InputError, match="--size 8x8"):
        classifier(pictures(side=10))
    with pytest.raises(InputError, match="3 channels"):
        classifier(pictures(channels=4))
    grey = pictures(channels=1)
    assert torch.equal(classifier(grey), classifier(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(InputError, match="before its first call"):
        _ = Classifier(small_network()).classes
    with pytest.raises(InputError, match="can be called"):
        Classifier(nn.Linear)  # type: ignore[arg-type]  (the class, not a model)
