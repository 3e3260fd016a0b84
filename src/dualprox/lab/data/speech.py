"""Spoken digits: the Free Spoken Digit Dataset, raw waveforms at 8 kHz."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .arrays import read_arrays
from .split import Split, random_crop

SAMPLES = 8000
# Recordings 0 to 4 of each speaker and digit are the published test set.
TEST_RECORDINGS = 5
SHIFT = 800


def read_waveforms(path: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Waveforms (int16), labels, and which of each speaker's recordings of the digit each is.

    A pack holds `hi` and `lo`, the bytes of the 16-bit differences between successive samples of
    all recordings in a row; `off`, where each recording begins and the last ends; `label`, the
    digit; and `index`.
    """
    pack = read_arrays(path)
    return unpack(pack), pack["label"], pack["index"]


def unpack(pack: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The recordings (int16) of a pack, from its `hi`, `lo` and `off`."""
    differences = (pack["hi"].astype(np.uint16) << 8 | pack["lo"]).view(np.int16)
    # Sums of int16 wrap around as the differences did.
    samples = np.cumsum(differences, dtype=np.int16)
    return np.split(samples, pack["off"][1:-1])


def centre(waveform: np.ndarray, samples: int) -> np.ndarray:
    """The middle of a waveform, cut or filled up with zeros to a number of samples.

    Example:
        >>> centre(np.array([1, 2, 3]), 5), centre(np.array([1, 2, 3, 4]), 2)
        (array([0, 1, 2, 3, 0]), array([2, 3]))
    """
    cut = max(0, len(waveform) - samples) // 2
    waveform = waveform[cut : cut + samples]
    before = (samples - len(waveform)) // 2
    return np.pad(waveform, (before, samples - len(waveform) - before))


def normalize(kept: Tensor) -> Tensor:
    """Each waveform divided by its root mean square; silence stays silent."""
    waves = kept.float()
    return waves / waves.square().mean(-1, keepdim=True).sqrt().clamp_min(1)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """A random shift by up to a tenth of a second."""
    return random_crop(x, SHIFT, generator)


def fsdd(path: Path) -> Split:
    """2700 training and 300 test recordings of ten digits by six speakers, one second each.

    Longer recordings lose their ends, shorter ones are filled up with zeros.
    """
    waveforms, digits, recordings = read_waveforms(path)
    x = torch.from_numpy(np.stack([centre(wave, SAMPLES) for wave in waveforms])).unsqueeze(1)
    y = torch.from_numpy(digits).long()
    test = torch.from_numpy(recordings < TEST_RECORDINGS)
    return Split(x[~test], y[~test], x[test], y[test], normalize=normalize)
