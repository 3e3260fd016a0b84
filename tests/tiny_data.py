"""Data sets of a few examples in the layouts of the real ones, for runs that take a second."""

import io
import wave
from pathlib import Path

import numpy as np
from PIL import Image

TEXT = "the cat saw the dog . the dog ran to the cat and the cat ran to the old dog"


def write_text(folder: Path, name: str = "wikitext-2") -> None:
    """A text of ten words in no order: 1500 for training, 300 for validation."""
    (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 1500), ("valid", 300), ("test", 100)):
        words = " ".join(rng.choice(TEXT.split(), count))
        (folder / name / f"{part}.txt").write_text(f"{words}\n", encoding="utf8")


def write_speech(folder: Path, sentences: int = 14) -> None:
    """Sentences of growing length, a few frames each."""
    rng, lines = np.random.default_rng(0), []
    (folder / "LJSpeech-1.1" / "wavs").mkdir(parents=True)
    for number in range(sentences):
        name = f"LJ001-{number:04}"
        lines.append(f"{name}|-|it is {'so ' * (number % 5)}good\n")
        samples = rng.integers(-20000, 20000, 1000 + 300 * number).astype("<i2")
        with wave.open(str(folder / "LJSpeech-1.1" / "wavs" / f"{name}.wav"), "wb") as sound:
            sound.setparams((1, 2, 22050, 0, "NONE", ""))
            sound.writeframes(samples.tobytes())
    metadata = folder / "LJSpeech-1.1" / "metadata.csv"
    metadata.write_text("".join(lines), encoding="utf8")


def write_images(folder: Path, train: int = 40, test: int = 8) -> None:
    """A pack of small images in the layout of CIFAR-10."""
    rng = np.random.default_rng(0)
    (folder / "cifar10").mkdir(parents=True)
    for part, count in (("train", train), ("test", test)):
        files = []
        for pixels in rng.integers(0, 256, (count, 32, 32, 3), np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="JPEG")
            files.append(file.getvalue())
        np.savez(
            folder / "cifar10" / f"cifar10_{part}_jpeg.npz",
            jpg=np.frombuffer(b"".join(files), np.uint8),
            off=np.cumsum([0, *map(len, files)]),
            label=np.arange(count, dtype=np.uint8) % 10,
        )
