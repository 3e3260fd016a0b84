"""Mel spectrograms: what a speech synthesizer learns to write."""

import math
from functools import cache

import torch
from torch import Tensor

RATE = 22_050
WINDOW, HOP = 1024, 256
MELS, HIGHEST = 80, 8000.0
FLOOR = 1e-5

_LINEAR = 3 / 200  # mels per hertz up to 1000 Hz
_KNEE = 1000.0
_LOG = 27 / math.log(6.4)  # mels per factor of e above


def mels_of(hertz: Tensor) -> Tensor:
    """Frequencies on Slaney's mel scale: linear up to 1000 Hz, then logarithmic.

    Source: Slaney, Auditory Toolbox, Interval Research technical report 1998-010.

    Example:
        >>> mels_of(torch.tensor([500.0, 1000.0, 6400.0]))
        tensor([ 7.5000, 15.0000, 42.0000])
    """
    above = _KNEE * _LINEAR + _LOG * (hertz.clamp_min(_KNEE) / _KNEE).log()
    return torch.where(hertz < _KNEE, hertz * _LINEAR, above)


def hertz_of(mels: Tensor) -> Tensor:
    """The inverse of `mels_of`."""
    knee = _KNEE * _LINEAR
    above = _KNEE * ((mels.clamp_min(knee) - knee) / _LOG).exp()
    return torch.where(mels < knee, mels / _LINEAR, above)


@cache
def mel_filters() -> Tensor:
    """Triangles over the frequencies of a spectrum, (80, 513), float32.

    Their corners are evenly spaced in mels between 0 and 8000 Hz, each corner the next one's peak;
    the area of each is 1 (in Hz), so their height falls as they get wider.
    """
    highest = mels_of(torch.tensor([HIGHEST], dtype=torch.float64)).item()
    corners = hertz_of(torch.linspace(0, highest, MELS + 2, dtype=torch.float64)).unsqueeze(1)
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    frequencies = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * RATE / WINDOW
    rise, fall = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    return (torch.minimum(rise, fall).clamp_min(0) * 2 / (high - low)).float()


def log_mel(waveform: Tensor) -> Tensor:
    """The logarithm of a waveform's mel spectrogram.

        log max(filters |STFT|, 1e-5)

    Frames are 1024 samples under Hann's window, 256 samples apart, the first centred on the first
    sample; the waveform is mirrored at its ends.

    Args:
        waveform: (samples,), float32 between -1 and 1 at 22050 Hz, more than 512 samples.

    Returns:
        (80, 1 + samples // 256), float32.

    Source: Shen et al., arXiv:1712.05884, section 2.1, with the settings of arXiv:2403.14398.

    Example:
        >>> log_mel(torch.zeros(1000)).shape
        torch.Size([80, 4])
    """
    window = torch.hann_window(WINDOW, device=waveform.device)
    spectrum = torch.stft(waveform, WINDOW, HOP, window=window, return_complex=True)
    return (mel_filters().to(waveform.device) @ spectrum.abs()).clamp_min(FLOOR).log()
