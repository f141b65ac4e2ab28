"""The lecture on one page: it holds all that it shows, and what it says of the run is so."""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.commands import Command
from helpers.folders import write_captioned
from sfumato import classifiers, data, lecture, train
from sfumato import generator as generators
from sfumato.attacks import verified
from sfumato.classifiers import Classifier, match_labels, train_classifier
from sfumato.core.errors import InputError
from sfumato.defences import certified_accuracy, certify
from sfumato.lecture import Section, Sizes, Subject, robustness
from sfumato.lecture.section import Part
from sfumato.likelihood import score

SMALL = Sizes(each=2, prompted=1, guided=2, scored=12, draws=4, integrated=8, attacked=40, steps=5, resolution=9)
SMALL = replace(SMALL, copies=3, smoothed=4, certified=5, samples=120, classified=6)
NAMES = ("<b>nought</b>", "one & only", 'two "2"', *map(str, range(3, 10)))
TITLES = ["Down and up", "Text to image", "Conditioning", "How likely is an image?", "Adversarial perturbations"]
TITLES += ["The decision boundary, before and after smoothing", "A certificate", "The generator as a classifier"]
TITLES += ["What to do next"]


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.headings, self.commands, self.words = list[str](), list[str](), list[str]()
        self.kinds = {"h2": self.headings, "pre": self.commands, "style": list[str]()}
        self.here = self.words
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.here = self.kinds.get(tag, self.here)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.kinds:
            self.here = self.words

    def handle_data(self, text: str) -> None:
        self.here.append(text)

    @property
    def images(self) -> list[Image.Image]:
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources]


def pixels(image: Image.Image) -> Tensor:
    """A grey picture as (1, 1, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("L"), np.float32) / 255)[None, None]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Digits whose classes have names that are no good HTML, and two models that know them a little."""
    folder = tmp_path_factory.mktemp("lecture")
    images, test = (replace(data.load("digits", split=split), classes=NAMES) for split in ("train", "test"))
    run, clf = folder / "the <run>", folder / "clf"
    generator = train(images, run, steps=50, settings={"batch": "32"}, device="cpu")
    classifier = train_classifier(images, clf, epochs=4, device="cpu")
    return Subject(generator, classifier, test, run, clf, SMALL)


@pytest.fixture(scope="module")
def sections(subject: Subject) -> list[Section]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generators, "packaged", nothing_packaged)
        return [part(subject) for part in lecture.PARTS]


@pytest.fixture(scope="module")
def made(subject: Subject, sections: list[Section]) -> Page:
    return Page(lecture.page(subject, sections, 61.0))


def nothing_packaged() -> Path:
    raise InputError("this installation has no packaged model: name a model")


def called(sections: list[Section], title: str) -> Section:
    return next(section for section in sections if section.title == title)


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_asks_for_nothing_from_elsewhere(subject: Subject, sections: list[Section]) -> None:
    text = lecture.page(subject, sections, 61.0)
    made = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(made.tags)
    assert not [name for _, name, _ in made.attributes if name.startswith("on") or name in ("srcset", "href", "action")]
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    policy = [v for tag, name, v in made.attributes if (tag, name) == ("meta", "content")]
    assert any(value.startswith("default-src 'none'") for value in policy)
    assert len(made.images) == sum(not isinstance(p.image, str) for s in sections for p in s.pictures) >= 12
    assert all(image.size > (1, 1) for image in made.images)
    assert all(value.strip() for tag, name, value in made.attributes if (tag, name) == ("img", "alt"))
    assert made.tags.count("svg") == 1  # the loss, in the page's colours


def test_every_part_is_there_in_order(made: Page, sections: list[Section]) -> None:
    assert made.headings == TITLES
    for section in sections:
        assert section.formulas and (section.absent or (section.text and section.pictures and section.commands))


def test_names_are_escaped(subject: Subject, sections: list[Section]) -> None:
    text = lecture.page(subject, sections, 61.0)
    assert NAMES[0] not in text and "&lt;b&gt;nought&lt;/b&gt;" in text
    assert "one & only" not in text and "one &amp; only" in text
    assert "the <run>" not in text and "the &lt;run&gt;" in text


def test_the_text_quotes_the_numbers(subject: Subject, sections: list[Section], made: Page) -> None:
    text = " ".join(" ".join(made.words).split())
    likely = called(sections, TITLES[3]).numbers
    assert f"{likely['inside']['bits_per_dim']:.2f} on average" in text
    attack = called(sections, TITLES[4]).numbers
    for fooled, strayed in zip(attack["fooled"], attack["by_chance"], strict=True):
        assert f"{fooled} of {attack['images']}" in text and f"{strayed} of {attack['images']}" in text
    log = [json.loads(line) for line in (subject.run / "log.jsonl").read_text().splitlines()]
    assert f"it saw {log[-1]['images']:,} noisy images" in text or len(log) < 2


def test_its_commands_are_the_command_lines(subject: Subject, sections: list[Section]) -> None:
    """Each can be parsed: the verb is there, and so are its options."""
    import typer

    from sfumato.cli.main import app

    group = typer.main.get_command(app)
    verbs = frozenset(group.commands)  # type: ignore[attr-defined]
    known = replace(subject, verbs=verbs)
    made = Page(lecture.page(known, [*sections[:-1], lecture.PARTS[-1](known)], 1.0))
    assert len(made.commands) > 10
    for command in made.commands:
        program, verb, *words = shlex.split(command, comments=True)
        assert program == "sfumato"
        if verb != "--help":
            group.commands[verb].make_context(verb, words)  # type: ignore[attr-defined]
    assert all(str(subject.run) in shlex.split(c) for c in made.commands if " sample " in c and "--prompt" not in c)


@pytest.mark.parametrize("verbs", [{"sample"}, {"sample", "purify", "harden"}])
def test_it_names_no_command_that_is_not_there(subject: Subject, verbs: set[str]) -> None:
    known = replace(subject, verbs=frozenset(verbs))
    made = Page(lecture.page(known, [lecture.PARTS[-1](known)], 1.0))
    for verb in ("purify", "harden"):
        assert any(verb in command for command in made.commands) == (verb in verbs)
    assert ("purification" in " ".join(made.words)) == ("purify" in verbs)


# -- what the parts say -----------------------------------------------------------------------------------------------


def test_the_attack_changes_the_label(subject: Subject, sections: list[Section], made: Page) -> None:
    """Read back from the page: the first and third picture of each row are near, and of different classes."""
    section = called(sections, TITLES[4])
    shown, eps = section.numbers["shown"], section.numbers["eps"]
    assert shown and len(section.pictures) == 3 * len(shown)
    before = sum(not isinstance(p.image, str) for s in sections[:4] for p in s.pictures)
    tiles = made.images[before : before + len(section.pictures)]
    for row, each in enumerate(shown):
        clean, attacked = pixels(tiles[3 * row]), pixels(tiles[3 * row + 2])
        said, turned = (subject.classifier.logits(image).softmax(1)[0] for image in (clean, attacked))
        assert NAMES[int(said.argmax())] == each["label"] != each["becomes"] == NAMES[int(turned.argmax())]
        assert float(turned.max()) == pytest.approx(each["confidence"], abs=1e-4)
        assert 0 < float((attacked - clean).abs().max()) <= eps + 1e-6
        assert f"{each['becomes']}, {float(turned.max()):.1%}" in section.pictures[3 * row + 2].caption


def test_larger_changes_fool_more(sections: list[Section]) -> None:
    numbers = called(sections, TITLES[4]).numbers
    assert numbers["fooled"] == sorted(numbers["fooled"])
    assert numbers["fooled"][-1] > numbers["by_chance"][-1] and 2 * numbers["fooled"][-1] > numbers["images"]


def test_the_ascent_is_the_lectures() -> None:
    """On a linear classifier the loss of class 1 rises fastest against the weights: x - eps sign(w), inside the box."""
    w = torch.randn(16, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.Linear(16, 2, bias=False)
    linear.weight.data = torch.stack([torch.zeros(16), w])
    classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), linear))
    x = (torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    eps = 16 / 255
    found = robustness.ascend_images(classifier, x, torch.ones(3, dtype=torch.int64), eps, 8)
    assert torch.allclose(found, (x - eps * w.sign().reshape(1, 1, 4, 4)).clamp(0, 1), atol=1e-6)
    assert torch.allclose(found * 255, (found * 255).round(), atol=1e-4)


def test_conditioning_counts_what_the_classifier_sees(subject: Subject, sections: list[Section]) -> None:
    numbers = called(sections, "Conditioning").numbers
    labels = list(NAMES) * SMALL.guided
    drawn = subject.generator.sample(len(labels), labels, guidance=3.0, seed=0)
    right = sum(NAMES[i] == label for i, label in zip(subject.classifier.predict(drawn).tolist(), labels, strict=True))
    assert numbers["recognised"]["3.0"] == right and numbers["of"] == len(labels)
    assert numbers["recognised"]["0.0"] < right  # without guidance the class is not told


def test_likelihoods_are_the_generators(subject: Subject, sections: list[Section]) -> None:
    section = called(sections, TITLES[3])
    x, _ = subject.some(SMALL.scored)
    likelihood = score(subject.generator, x, draws=SMALL.draws, seed=0)
    numbers = section.numbers
    assert numbers["inside"]["bits_per_dim"] == pytest.approx(likelihood.mean, rel=1e-6)
    ends = float(likelihood.bits.min()), float(likelihood.bits.max())
    assert (numbers["low"], numbers["high"]) == pytest.approx(ends, rel=1e-6)
    assert "upside down" in numbers["out_of_distribution"]  # for a model of digits
    assert all(math.isfinite(bits) for bits in numbers["integration"]["bound"]["bits"])


def test_the_certificates_are_cohens(subject: Subject, sections: list[Section]) -> None:
    numbers = called(sections, "A certificate").numbers
    rows = np.random.RandomState(0).permutation(len(subject.test))[: SMALL.certified]
    y = match_labels(subject.classifier, subject.test)[torch.from_numpy(rows)].tolist()
    how = {"sigma": robustness.SIGMA, "n": SMALL.samples, "seed": 0, "ids": torch.from_numpy(rows)}
    found = certify(subject.classifier, subject.test.pixels(rows), denoise=subject.generator.denoise, **how)
    for row in numbers["table"]:
        assert row["certified"]["correct"] == certified_accuracy(found, y, row["radius"]).correct
        assert row["certified"]["count"] == SMALL.certified


def test_smoothing_is_the_mean_answer() -> None:
    """Against a loop over the copies; and its gradient against finite differences."""
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
    classifier = Classifier(torch.nn.Sequential(*layers).double())
    e = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(7)).double()
    smooth = robustness.Smoothed(classifier, lambda noisy, sigma: noisy.tanh() + sigma, e, sigma=0.3)
    x = 0.1 + 0.8 * torch.rand(2, 1, 4, 4, dtype=torch.float64)
    answers = [classifier((x + 0.3 * copy).tanh() + 0.3, bounded=False).softmax(1) for copy in e]
    assert torch.allclose(smooth(x), torch.stack(answers).mean(0).log(), atol=1e-12)
    assert not torch.allclose(smooth(x), classifier(x).log_softmax(1), atol=1e-3)
    slope = Classifier(smooth).gradient(x, lambda logits: logits[:, 3])[1]
    way = torch.randn_like(x)
    there = [smooth(x + sign * 1e-5 * way)[:, 3] for sign in (1, -1)]
    assert torch.allclose((there[0] - there[1]) / 2e-5, (slope * way).flatten(1).sum(1), rtol=1e-6)


def test_before_and_after_smoothing(subject: Subject, sections: list[Section]) -> None:
    numbers = called(sections, TITLES[5]).numbers
    x, y = subject.some(numbers["images"])
    smooth = robustness.smoothed(subject)
    right = [int((each.predict(x) == y).sum()) for each in (subject.classifier, smooth)]
    assert numbers["right"] == right and numbers["attacked"] == SMALL.smoothed
    assert all(0 <= fell <= SMALL.smoothed for fell in numbers["fooled"])
    images = [picture.image for picture in called(sections, TITLES[5]).pictures]
    sizes = {image.size for image in images if isinstance(image, Image.Image)}
    assert len(sizes) == 1  # they stand beside each other


def test_the_generator_as_a_classifier(subject: Subject, sections: list[Section]) -> None:
    section = called(sections, TITLES[7])
    x, y = subject.some(SMALL.classified)
    assert section.numbers["trained_right"] == int((subject.classifier.predict(x) == y).sum())
    wrong = [picture.caption for picture in section.pictures if "wrong" in picture.caption]
    assert len(section.pictures) == 4 and len(wrong) <= SMALL.classified - section.numbers["right"]


# -- what is not there ------------------------------------------------------------------------------------------------


def test_without_a_packaged_model_the_part_is_left_out(sections: list[Section], made: Page) -> None:
    section = called(sections, "Text to image")
    assert section.absent.startswith("Left out: this installation has no packaged model")
    assert not section.pictures and not section.numbers and section.absent in " ".join(made.words)
    assert lecture.summary([section]) == [{"title": "Text to image", "absent": section.absent}]


def test_with_a_packaged_model(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(str(write_captioned(tmp_path / "squares")), tmp_path / "run", steps=2, settings={"batch": "8"}, device="cpu")
    monkeypatch.setattr(generators, "packaged", lambda: tmp_path / "run")
    text = next(part for part in lecture.PARTS if part.title == "Text to image")
    section = text(subject)
    assert not section.absent and [p.caption.strip("“”") for p in section.pictures] == section.numbers["prompts"]

    def broken(*_: object, **__: object) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(generators.Generator, "sample", broken)
    with pytest.raises(RuntimeError, match="a bug"):  # what goes wrong is not taken for a model that is missing
        text(subject)


def test_a_classifier_that_knows_nothing(subject: Subject) -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.full((len(x),), 9), 10).float() + 0 * x.flatten(1)[:, :10]

    images = subject.test
    assert images.labels is not None
    few = np.flatnonzero(images.labels != 9)[:20]
    test = replace(images, images=images.images[few], labels=images.labels[few])
    unlucky = replace(subject, classifier=Classifier(Wrong(), labels=NAMES, size=(8, 8), channels=1), test=test)
    made = [part(unlucky) for part in lecture.PARTS if part.title in TITLES[4:6]]
    assert all("train longer" in section.absent and not section.pictures for section in made)
    assert "train longer" in lecture.page(unlucky, made, 1.0)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits, little of everything, no packaged model."""
    monkeypatch.setattr(lecture, "Sizes", lambda: SMALL)
    monkeypatch.setattr(generators, "packaged", nothing_packaged)
    monkeypatch.setattr("sfumato.cli.demo.DATA", "digits")


@pytest.mark.slow
def test_demo(sfumato: Command, inside: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = sfumato("demo", "--minutes", "0.02", "--json")
    assert told.status == 0, told.err
    assert "part 8 of 8, The generator as a classifier" in told.err
    result = json.loads(told.out)
    assert result["data"] == "digits" and [each["title"] for each in result["sections"]] == TITLES[:-1]
    assert "absent" in result["sections"][1]
    made = Page((inside / result["page"]).read_text("utf-8"))
    assert made.headings == TITLES
    assert made.images[0].tobytes() == Image.open(inside / result["film"]).tobytes()
    assert Image.open(inside / result["samples"]).size in {image.size for image in made.images}
    # A larger budget goes on with both models, and the page is made anew.
    (inside / result["page"]).unlink()
    monkeypatch.setattr(lecture, "PARTS", lecture.PARTS[:1])
    again = sfumato("demo", "--minutes", "0.03")
    assert again.status == 0 and (inside / result["page"]).exists() and result["page"] in again.out
    assert again.err.count("resumed after step") == 2
    found = classifiers.load_classifier(inside / result["classifier"])
    x = data.load("digits", split="test").pixels(slice(4))
    assert verified(found, x, x, found.predict(x)).success.sum() == 0


def test_interrupted_while_the_page_is_made(
    sfumato: Command, inside: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_: Subject) -> Section:
        raise KeyboardInterrupt

    monkeypatch.setattr(lecture, "PARTS", (Part("Ctrl-C", (), pressed),))
    told = sfumato("demo", "--minutes", "0.01")
    assert told.status == 130 and "re-run the command to resume" in told.err and told.out == ""
    assert (inside / "demo" / "digits" / "model.safetensors").exists()
    assert not (inside / "demo" / lecture.PAGE).exists()
