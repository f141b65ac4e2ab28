"""The lecture's first half: the diffusion chain in both directions, text to image, and classifier-free guidance."""

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

GUIDANCE = 1.5  # of the samples: after a short training the condition alone is weak
SCALES = (0.0, 1.0, 3.0)  # of guidance, side by side
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
CFG = Markup(
    "Dec(<i>z</i>) + <i>g</i> · [ Dec(<i>z</i>, <i>c</i>) − Dec(<i>z</i>) ]"
    ' &emsp; <span class="aside"><i>c</i> is dropped in 10% of the training images</span>'
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
    text = [
        "The upper row, from left to right, is the reverse process: it starts with Gaussian noise of "
        f"{sizes[0]} pixels, removes a little of it in each step, and raises the resolution until an image of {sizes[-1]} "
        "is left. The lower row, from right to left, is the forward process: the same image gets noise and loses "
        "resolution until only noise is left. s is the standard deviation of the noise; a column has the same s in both rows."
    ]
    shown = [Picture(both, "film: noise up to an image, and the image down to noise", wide=True, name="film")]
    log = subject.log
    if len(log) > 1:
        first, last = log[0], log[-1]
        numbers |= {"images": last["images"], "seconds": last["seconds"]}
        numbers |= {"first_loss": first["loss"], "last_loss": last["loss"]}
        text.append(
            f"One network of {parameters / 1e6:.1f} million parameters serves as Dec at every step: it gets the noise level "
            f"and the class c as inputs. In {_duration(last['seconds'])} of training it saw {last['images']:,} noisy images, "
            f"and its loss fell from {first['loss']:.2f} to {last['loss']:.2f}."
        )
        caption = "Training loss (running average) against the number of training images seen."
        shown.append(Picture(_loss_curve(log), "the training loss", caption, wide=True))
    text.append(
        f"Samples conditioned on each of the {len(classes)} classes, {each} a class, not selected. Each starts with its own "
        f"noise z₀; the guidance scale is {GUIDANCE:g}."
    )
    caption = f"Rows, from the top: {', '.join(classes)}."
    shown.append(Picture(samples, f"{each} samples of each class", caption, name="samples"))
    _, run, name = subject.names
    commands = (f"sfumato train --data {name} --minutes 15 --out runs/{name}", f"sfumato film {run} -o film.png")
    return Section(text=tuple(text), pictures=tuple(shown), commands=commands, numbers=numbers)


@part("Text to image", CONDITION, LATENT)
def text_to_image(subject: Subject) -> Section:
    """Emoji from texts, with the model that comes with the package."""
    try:
        model = generators.Generator.from_pretrained(generators.packaged(), str(subject.generator.device))
        model.encoder(["a"])
    except InputError as error:
        raise Absent(f"Left out: {error}.") from None
    each = subject.sizes.prompted
    prompts = [prompt for prompt in PROMPTS for _ in range(each)]
    pixels = model.sample(len(prompts), prompt=prompts, seed=subject.seed).split(each)
    shown = [
        Picture(pictures.grid(part, columns=each), f"images of: {prompt}", f"“{prompt}”", pixelated=True)
        for prompt, part in zip(PROMPTS, pixels, strict=True)
    ]
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    guidance = model.default_guidance.scale
    height, width = model.ladder.size
    text = (
        "The condition c can be a text: a frozen language model encodes it, and Dec reads the token embeddings by "
        f"cross-attention. Below are the first {each} samples for each prompt, not selected, from the model that comes with "
        f"sfumato: {parameters / 1e6:.0f} million parameters, trained on emoji of {width}x{height} pixels, guidance scale "
        f"{guidance:g}."
    )
    return Section(
        text=(text,),
        pictures=tuple(shown),
        columns=2,
        commands=(f"sfumato sample --prompt {shlex.quote(PROMPTS[0])} -n 16 -o hearts.png",),
        numbers={"prompts": list(PROMPTS), "each": each, "parameters": parameters, "guidance": guidance},
    )


@part("Conditioning", CONDITION, CFG)
def conditioning(subject: Subject) -> Section:
    """The same noise under guidance scales 0, 1 and 3, and how often a classifier recognises the requested class."""
    generator, classes = subject.generator, subject.generator.classes
    labels = [name for _ in range(subject.sizes.guided) for name in classes]
    wanted = torch.tensor([subject.classifier.labels.index(name) for name in labels])
    rows, hits = [], []
    for scale in SCALES:
        pixels = generator.sample(len(labels), labels, guidance=scale, seed=subject.seed)
        hits.append(int((subject.classifier.predict(pixels).cpu() == wanted).sum()))
        rows.append(pixels[: len(classes)])
    names = [f"g = {scale:g}" for scale in SCALES]
    sheet = pictures.named_rows(pictures.grid(torch.cat(rows), columns=len(classes)), names)
    counts = ", ".join(f"{n} of {len(labels)} for g = {s:g}" for s, n in zip(SCALES, hits, strict=True))
    drop = generator.config.drop
    text = (
        f"Classifier-free guidance: in training the class is dropped for {drop:.0%} of the images, so one network is both "
        "the conditional and the unconditional model. Their difference points towards the class, and the guidance scale g "
        "says how far to follow it. g = 0 ignores the class, g = 1 is the conditional model, and a larger g exaggerates "
        "what is typical of the class, at the price of variety.",
        f"Each column is one class and one noise. A classifier that was trained separately (below) recognises the requested "
        f"class in {counts}. Chance is 1 in {len(classes)}.",
    )
    caption = f"Columns: {', '.join(classes)}."
    shown = Picture(sheet, "the same noise with guidance scales 0, 1 and 3", caption, wide=True)
    recognised = dict(zip(map(str, SCALES), hits, strict=True))
    return Section(
        text=text,
        pictures=(shown,),
        commands=(f"sfumato sample {subject.names[1]} --guidance 3 -n 64 -o guided.png",),
        numbers={"of": len(labels), "drop": drop, "recognised": recognised},
    )


def _loss_curve(log: list[dict[str, float]]) -> Markup:
    """The loss against the images seen, drawn in the page's colours."""
    seen, loss = [int(line["images"]) for line in log], [line["loss"] for line in log]
    most = max(loss) * 1.05
    axes = Axes(seen[-1], most, height=240)
    step = 10 ** (len(str(seen[-1])) - 1)
    every = step * -(-seen[-1] // (5 * step))
    across = {float(at): f"{at:,}" for at in range(0, seen[-1] + 1, every)}
    axes.frame(across, ticks(most, "L2"), "images seen", "loss")  # L2: plain numbers
    axes.line(seen, loss, "line")
    return Markup(axes.svg("the training's loss against the images seen"))  # built with every text escaped


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes"
