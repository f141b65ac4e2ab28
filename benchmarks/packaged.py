"""The packaged model: what its card says of it.

Measures R-precision on training captions and on held-out ones, Frechet distance in effnet-lite0 and the copies of training
images (as ``sfumato evaluate`` does), the time to the first picture from a cold start and for each one after that at batch 16,
and draws two pictures: captions of the training set, and combinations that no caption of it tells.

    .venv/bin/python -m benchmarks.packaged --data ../shared/data/emoji_noto64
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, records
from benchmarks.guidance import fingerprint
from sfumato.core.pictures import grid, named_rows, save
from sfumato.data import ImageSet, load
from sfumato.generator import Generator, packaged
from sfumato.metrics import evaluate

NAME = "packaged"
FEATURES = ("effnet-lite0",)
KNOWN = (
    "red heart", "smiling face with sunglasses", "cat face", "red apple", "rocket", "house", "snowman", "sunflower",
    "pizza", "guitar", "crescent moon", "tropical fish",
)  # fmt: skip
NEW = (
    "a blue cat", "purple apple", "smiling moon with sunglasses", "green car", "yellow fish", "orange rabbit",
    "a red guitar", "black sun", "pink bus", "cat with heart eyes and a hat", "a purple house", "rainbow heart",
)  # fmt: skip
EACH = 8  # pictures of each prompt
BATCH = 16
REPEATS = 3


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower())) - {"a", "and", "with", "the", "of"}


def unseen(prompts: tuple[str, ...], train: ImageSet) -> list[str]:
    """Those of some prompts that no training image is told by: no image's texts hold all of the words."""
    assert train.captions is not None
    told = [words(" ".join(texts)) for texts in train.captions]
    return [prompt for prompt in prompts if not any(words(prompt) <= each for each in told)]


def first_picture() -> float:
    """Seconds of the fastest of some fresh processes from the command to the file, with whatever the machine has cached."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            began = time.perf_counter()
            command = [sys.executable, "-c", "import sys; from sfumato.cli import main; sys.exit(main(sys.argv[1:]))"]
            subprocess.run(
                [*command, "sample", "--prompt", "a red heart", "-n", "1", "-o", str(Path(folder) / "one.png")],
                check=True,
            )
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def each_picture(model: Generator) -> float:
    """Milliseconds for an image at batch 16, texts read already, the fastest of some."""
    seconds = []
    for seed in range(REPEATS + 1):
        began = time.perf_counter()
        model.sample(BATCH, prompt="a red heart", seed=seed)
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds[1:]) / BATCH


def draw(model: Generator, prompts: list[str], file: Path) -> None:
    """A row of pictures for each prompt."""
    pixels = model.sample(EACH * len(prompts), prompt=[prompt for prompt in prompts for _ in range(EACH)])
    save(named_rows(grid(pixels, columns=EACH), prompts), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/emoji_noto64", help="the captioned set it was trained on")
    parser.add_argument("--model", type=Path, help="another model than the packaged one")
    parser.add_argument("-n", type=int, default=1000, help="images for the measures")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    chosen = parser.parse_args()
    machine.set_threads(chosen.threads)
    where = chosen.model or packaged()
    model = Generator.from_pretrained(where, "cpu")
    train, test = (load(chosen.data, size=model.ladder.size, split=split) for split in ("train", "test"))
    missing = set(NEW) - set(unseen(NEW, train))
    assert not missing, f"told by training captions: {missing}"
    result: dict[str, Any] = {"model": fingerprint(where)}
    if chosen.model is None:
        result["first_picture_seconds"] = round(first_picture(), 2)
    result["milliseconds"] = round(each_picture(model), 1)
    print(result, flush=True)
    draw(model, list(KNOWN), records.RESULTS / "packaged-known.png")
    draw(model, list(NEW), records.RESULTS / "packaged-new.png")
    result["measures"] = evaluate(model, test, train, n=chosen.n, features=FEATURES)
    records.append(NAME, {**result, "machine": machine.describe()})
    print(result["measures"]["retrieval"])


if __name__ == "__main__":
    main()
