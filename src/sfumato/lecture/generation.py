"""The lecture's first half: the chain in both directions, images from texts, and conditions pressed harder."""

from __future__ import annotations

import shlex

import torch
from markupsafe import Markup

from sfumato import generator as generators
from sfumato.audit.figures import Axes, ticks
from sfumato.core import pictures
from sfumato.core.errors import InputError
from sfumato.film import film
from sfumato.lecture.section import Absent, Picture, Section, Subject, part

GUIDANCE = 1.5  # of the samples: a short training leaves labels weak, so they are pressed a little
STRENGTHS = (0.0, 1.0, 3.0)
PROMPTS = ("a red heart", "a cat with sunglasses", "a smiling sun", "a green apple")

CHAIN = Markup(
    "<i>z<sub>T</sub></i> = <i>x</i>, &ensp; <i>z</i><sub><i>t</i>−1</sub> = Noisy(<i>z<sub>t</sub></i>), &ensp; "
    "<i>z</i><sub>0</sub> ~ <i>N</i>(0, <i>I</i>)"
)
DECODER = Markup("<i>x̂</i> = Dec<sub><i>T</i></sub>(… Dec<sub>2</sub>(Dec<sub>1</sub>(<i>z</i><sub>0</sub>)) …)")
LOSS = Markup(
    "loss = ∑<sub><i>t</i></sub> <i>w<sub>t</sub></i> ‖ Dec<sub><i>t</i></sub>(<i>z</i><sub><i>t</i>−1</sub>, <i>c</i>) "
    "− <i>z<sub>t</sub></i> ‖<sup>2</sup>"
)
CONDITION = Markup("<i>ẑ<sub>t</sub></i> = Dec<sub><i>t</i></sub>(<i>z</i><sub><i>t</i>−1</sub>, <i>c</i>)")
LATENT = Markup("<i>c</i> = the language model’s latents of the text")
PRESSED = Markup(
    "Dec(<i>z</i>) + <i>g</i> · [ Dec(<i>z</i>, <i>c</i>) − Dec(<i>z</i>) ]"
    ' &emsp; <span class="aside">with <i>c</i> dropped 10% of the times in training</span>'
)


@part("Down and up", CHAIN, DECODER, LOSS)
def down_and_up(subject: Subject) -> Section:
    """The film of both directions, the training's loss, and samples of every class."""
    generator, classes = subject.generator, subject.generator.classes
    both = film(generator, 1, guidance=GUIDANCE, seed=subject.seed)
    each = subject.sizes.each
    labels = [name for name in classes for _ in range(each)]
    pixels = generator.sample(len(labels), labels, guidance=GUIDANCE, seed=subject.seed)
    samples = pictures.named_rows(pictures.grid(pixels, columns=each), classes)
    sizes = [f"{w}x{h}" for _, h, w in (generator.ladder.shape(k) for k in range(generator.ladder.stages))]
    parameters = sum(p.numel() for p in generator.denoiser.parameters())
    numbers = {"stages": sizes, "parameters": parameters, "drawn": len(labels)}
    said = [
        f"From left to right the film goes up: noise of {sizes[0]} pixels is denoised step by step and enlarged, until an "
        f"image of {sizes[-1]} is there. From right to left the lower row goes down: the same image is given noise and "
        "made smaller, until nothing of it is left. Both rows are the same rungs; s is the standard deviation of the noise."
    ]
    drawn = [Picture(both, "film: noise up to an image, and the image down to noise", wide=True, name="film")]
    log = subject.log
    if len(log) > 1:
        first, last = log[0], log[-1]
        numbers |= {"images": last["images"], "seconds": last["seconds"], "first_loss": first["loss"], "last_loss": last["loss"]}  # fmt: skip
        said.append(
            f"One network of {parameters / 1e6:.1f} million parameters is every Dec: it is told t and the class c. In "
            f"{_duration(last['seconds'])} it saw {last['images']:,} noisy images, and its loss fell from "
            f"{first['loss']:.2f} to {last['loss']:.2f}."
        )
        caption = "The loss, averaged over the last steps, against the images seen."
        drawn.append(Picture(_loss_curve(log), "the training's loss", caption, wide=True))
    said.append(f"Then {each} fresh draws of z₀ for each of the {len(classes)} classes give new images of that class.")
    drawn.append(Picture(samples, f"{each} samples of each class", name="samples"))
    run = shlex.quote(str(subject.run))
    return Section(
        text=tuple(said),
        pictures=tuple(drawn),
        commands=(
            f"sfumato train --data {subject.test.name} --minutes 15 --out runs/{subject.test.name}",
            f"sfumato sample {run} --film -o film.png",
        ),
        numbers=numbers,
    )


@part("Text to image", CONDITION, LATENT)
def text_to_image(subject: Subject) -> Section:
    """Emoji from texts, with the model that comes with the package."""
    try:
        model = generators.Generator.from_pretrained(generators.packaged(), str(subject.generator.device))
        model.encoder(["a"])
    except InputError as error:
        raise Absent(f"Left out: {error}.") from None
    each = subject.sizes.prompted
    told = [prompt for prompt in PROMPTS for _ in range(each)]
    pixels = model.sample(len(told), prompt=told, seed=subject.seed).split(each)
    drawn = [
        Picture(pictures.grid(part, columns=each), f"images of: {prompt}", f"“{prompt}”", pixelated=True)
        for prompt, part in zip(PROMPTS, pixels, strict=True)
    ]
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    guidance = model.default_guidance.scale
    height, width = model.ladder.size
    said = (
        f"The text takes the label’s place: a frozen language model reads it, and each Dec attends to its latents. "
        f"These are the first {each} images for each prompt, not the best ones, from the model that comes with sfumato: "
        f"{parameters / 1e6:.0f} million parameters, trained on emoji at {width}x{height} pixels, with guidance {guidance:g}."
    )
    return Section(
        text=(said,),
        pictures=tuple(drawn),
        columns=2,
        commands=(f"sfumato sample --prompt {shlex.quote(PROMPTS[0])} -n 16 -o hearts.png",),
        numbers={"prompts": list(PROMPTS), "each": each, "parameters": parameters, "guidance": guidance},
    )


@part("Conditioning", CONDITION, PRESSED)
def conditioning(subject: Subject) -> Section:
    """The same noise under guidance 0, 1 and 3, and how often a classifier sees the class that was asked for."""
    generator, classes = subject.generator, subject.generator.classes
    labels = [name for _ in range(subject.sizes.guided) for name in classes]
    wanted = torch.tensor([subject.classifier.labels.index(name) for name in labels])
    rows, hits = [], []
    for strength in STRENGTHS:
        pixels = generator.sample(len(labels), labels, guidance=strength, seed=subject.seed)
        hits.append(int((subject.classifier.predict(pixels).cpu() == wanted).sum()))
        rows.append(pixels[: len(classes)])
    names = [f"g = {strength:g}" for strength in STRENGTHS]
    sheet = pictures.named_rows(pictures.grid(torch.cat(rows), columns=len(classes)), names)
    counts = ", ".join(f"g = {s:g}: {n} of {len(labels)}" for s, n in zip(STRENGTHS, hits, strict=True))
    drop = generator.config.drop
    said = (
        f"While training, the class was dropped {drop:.0%} of the times, so the network can do with it and without. The "
        "difference of the two is a direction towards the class, and g says how far to go: with g = 0 the class is "
        "ignored, g = 1 is the plain conditional model, more exaggerates what is typical.",
        f"A column is one class and one noise. A separately trained classifier (below) sees the class that was asked for in "
        f"{counts}. Chance is 1 in {len(classes)}.",
    )
    run = shlex.quote(str(subject.run))
    return Section(
        text=said,
        pictures=(Picture(sheet, "the same noise with guidance 0, 1 and 3", f"Columns: {', '.join(classes)}.", wide=True),),
        commands=(f"sfumato sample {run} --guidance 3 -n 64 -o pressed.png",),
        numbers={"of": len(labels), "drop": drop, "recognised": dict(zip(map(str, STRENGTHS), hits, strict=True))},
    )  # fmt: skip


def _loss_curve(log: list[dict[str, float]]) -> Markup:
    """The loss against the images seen, drawn in the page's colours."""
    seen, loss = [int(line["images"]) for line in log], [line["loss"] for line in log]
    most = max(loss) * 1.05
    axes = Axes(seen[-1], most, height=240)
    step = 10 ** (len(str(seen[-1])) - 1)
    every = max(step, step * (seen[-1] // step // 5))
    axes.frame(
        {float(at): f"{at:,}" for at in range(0, seen[-1] + 1, every)},
        ticks(most, "L2"),  # plain numbers
        "images seen",
        "loss",
    )
    axes.line(seen, loss, "line")
    return Markup(axes.svg("the training's loss against the images seen"))  # built with every text escaped


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} seconds" if seconds < 10 else f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"  # fmt: skip
