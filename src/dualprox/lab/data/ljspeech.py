"""LJSpeech: one speaker's sentences as letters and mel spectrograms, read as training goes."""

import os
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import layout
from .arrays import read_arrays
from .layout import DataError, Layout, open_unpacked
from .letters import letters_of
from .mel import RATE, log_mel
from .speech import unpack
from .split import generator_of
from .workers import default_workers, read_batches

# Of 13100 sentences; other numbers of them are parted alike. No setting of a run changes which.
SENTENCES, VALIDATION, TEST = 13_100, 100, 500
PART_SEED = 20_170_705
# What lies before the first frame is mirrored, so that much there must be.
SHORTEST = 512


class Utterances(NamedTuple):
    """A batch of sentences, the longest text first, padded with zeros.

    Args:
        text: int64 (sentences, letters), places in `letters.SYMBOLS`.
        text_lengths: int64 (sentences,), falling.
        mel: float32 (sentences, 80, frames), `mel.log_mel` of the recordings.
        mel_lengths: int64 (sentences,).
    """

    text: Tensor
    text_lengths: Tensor
    mel: Tensor
    mel_lengths: Tensor


class Sentences(Dataset[tuple[Tensor, Tensor]]):
    """Sentences as letters and spectrograms, made when asked for.

    Args:
        texts: what is said.
        sounds: the recordings, as samples (int16) or as WAV files.
    """

    def __init__(self, texts: Sequence[str], sounds: Sequence[Path | np.ndarray]) -> None:
        self.texts, self.sounds = texts, sounds

    def __len__(self) -> int:
        """How many sentences there are."""
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The letters, (letters,), and the spectrogram, (80, frames), of one sentence."""
        sound = self.sounds[index]
        samples = read_wav(sound) if isinstance(sound, Path) else sound
        waveform = torch.from_numpy(samples.astype(np.float32)) / 32768
        return letters_of(self.texts[index]), log_mel(waveform)


@dataclass(frozen=True, eq=False)
class Recordings:
    """Sentences in three parts, the same at every call: 12500, 100 and 500 of LJSpeech's 13100.

    Args:
        sentences: all of them.
        train, val, test: the places of each part's.
        workers: processes that read; how many makes no difference to the batches.
    """

    sentences: Sentences
    train: Tensor
    val: Tensor
    test: Tensor
    workers: int = field(default_factory=default_workers)

    def __len__(self) -> int:
        """How many training sentences there are."""
        return len(self.train)

    def batches(
        self, batch_size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[Utterances]:
        """The batches of an epoch; seed and epoch alone determine their bits.

        Args:
            batch_size: sentences per batch; the last batch may have fewer.
            seed: of the run.
            epoch: which epoch.
            first: how many batches to leave out, without reading them.
        """
        order = torch.randperm(len(self), generator=generator_of(seed, epoch))
        return self.in_order(self.train[order], batch_size, first)

    def validation(self, batch_size: int = 50) -> Iterator[Utterances]:
        """The validation set in batches."""
        return self.in_order(self.val, batch_size)

    def in_order(self, places: Tensor, batch_size: int, first: int = 0) -> Iterator[Utterances]:
        """Batches of some of the sentences; within a batch the longest text comes first."""
        batches = places.split(batch_size)[first:]
        return read_batches(self.sentences, batches, self.workers, pad)


def pad(sentences: Sequence[tuple[Tensor, Tensor]]) -> Utterances:
    """Letters and spectrograms of sentences as a batch.

    Example:
        >>> short, long = torch.tensor([5]), torch.tensor([6, 7])
        >>> batch = pad([(short, torch.ones(80, 3)), (long, torch.ones(80, 2))])
        >>> batch.text.tolist(), batch.text_lengths.tolist(), batch.mel_lengths.tolist()
        ([[6, 7], [5, 0]], [2, 1], [2, 3])
    """
    falling = sorted(sentences, key=lambda sentence: -len(sentence[0]))
    texts, mels = [text for text, _ in falling], [mel.T for _, mel in falling]
    return Utterances(
        nn.utils.rnn.pad_sequence(texts, batch_first=True),
        torch.tensor([len(text) for text in texts]),
        nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2).contiguous(),
        torch.tensor([len(mel) for mel in mels]),
    )


def read_wav(path: Path) -> np.ndarray:
    """The samples (int16) of a WAV file.

    Raises:
        DataError: it is damaged, or not one channel of 16 bits at 22050 Hz.
    """
    try:
        with open_unpacked(path) as file, wave.open(file, "rb") as sound:
            kind = (sound.getnchannels(), sound.getsampwidth(), sound.getframerate())
            samples = sound.readframes(sound.getnframes())
    except Exception as error:  # of a damaged file, wave raises whatever comes
        raise DataError(f"{path} is no WAV file: {error}") from None
    if kind != (1, 2, RATE):
        channels, width, rate = kind
        raise DataError(
            f"{path} must be one channel of 2 bytes at {RATE} Hz, got {channels} of {width} "
            f"at {rate}"
        )
    if len(samples) % 2 or len(samples) <= 2 * SHORTEST:
        raise DataError(
            f"{path} must have more than {SHORTEST} samples of 2 bytes, got {len(samples)} bytes"
        )
    return np.frombuffer(samples, "<i2")


def part(sentences: Sentences) -> Recordings:
    """The sentences in three parts.

    Raises:
        ValueError: there are fewer than three.
    """
    count = len(sentences)
    if count < 3:
        raise ValueError(f"it takes three sentences to have three parts, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(PART_SEED))
    val, test = (max(1, round(count * size / SENTENCES)) for size in (VALIDATION, TEST))
    held, train = order[: val + test], order[val + test :]
    return Recordings(sentences, train.sort().values, held[:val], held[val:])


def read_folder(metadata: Path, wavs: Path) -> Recordings:
    """The published folder: lines `name|text|text with numbers written out`, and WAV files.

    Raises:
        ValueError: a line has not three fields, or a recording is missing.
    """
    with open_unpacked(metadata) as file:
        rows = [line.split("|") for line in file.read().decode().splitlines()]
    there = set(os.listdir(wavs))
    for number, row in enumerate(rows, start=1):
        if len(row) != 3:
            raise ValueError(f"line {number} of {metadata} has {len(row)} fields, not 3")
        if f"{row[0]}.wav" not in there:
            raise ValueError(f"{wavs} has no {row[0]}.wav")
    return part(Sentences([row[2] for row in rows], [wavs / f"{row[0]}.wav" for row in rows]))


def read_pack(path: Path) -> Recordings:
    """A pack: `hi`, `lo` and `off` as in `speech.read_waveforms`, and `text`."""
    pack = read_arrays(path)
    texts, sounds = pack["text"].tolist(), unpack(pack)
    if len(texts) != len(sounds):
        raise ValueError(f"{path} has {len(texts)} texts for {len(sounds)} recordings")
    short = min(map(len, sounds), default=0)
    if short <= SHORTEST:
        raise ValueError(f"recordings must have more than {SHORTEST} samples, got {short}")
    return part(Sentences(texts, sounds))


LJSPEECH: tuple[Layout[Recordings], ...] = (
    Layout(("LJSpeech-1.1/metadata.csv", "LJSpeech-1.1/wavs/"), read_folder),
    Layout(
        ("ljspeech32/ljspeech32.npz",),
        read_pack,
        caveat="32 sentences of LJSpeech: losses are not comparable with published ones",
    ),
)


def load_recordings(data_dir: str | None) -> Recordings:
    """LJSpeech, from the user's data folder.

    Raises:
        DataError: its files are missing or damaged.
    """
    return layout.read("ljspeech", LJSPEECH, data_dir)
