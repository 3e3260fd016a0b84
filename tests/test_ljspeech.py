"""Sentences as letters and spectrograms: each step beside an independent one."""

import os
import struct
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch

from dualprox.lab.data import DataError, caveat, load_recordings, require_files
from dualprox.lab.data.letters import SYMBOLS, letters_of, normalize_text
from dualprox.lab.data.ljspeech import Sentences, pad, part, read_wav
from dualprox.lab.data.mel import hertz_of, log_mel, mel_filters, mels_of

FOLDER = os.environ.get("DUALPROX_DATA")
# Processes that fork while other threads run are warned of from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def write_wav(path, samples, rate=22050, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, 2, rate, 0, "NONE", ""))
        sound.writeframes(struct.pack(f"<{len(samples)}h", *samples))


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(-20000, 20000, count).astype(np.int16)


@pytest.fixture
def folder(tmp_path):
    """Twelve sentences of growing length; the second field is not the one to read."""
    lines = []
    for number in range(12):
        name = f"LJ001-{number:04}"
        lines.append(f"{name}|{number}|It's {'very ' * (number % 5)}good, {number * 'a'}.\n")
        path = tmp_path / "LJSpeech-1.1" / "wavs" / f"{name}.wav"
        write_wav(path, noise(1000 + 300 * number, number).tolist())
    (tmp_path / "LJSpeech-1.1" / "metadata.csv").write_text("".join(lines), encoding="utf8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Printing, in the only sense", "printing, in the only sense"),
        ("  Dr. No\tand Mrs. St. Clair,\nEsq. ", "doctor no and misess saint clair, esquire"),
        ("the most. costly", "the most. costly"),
        ("Café — “naïve” ‘sic’ [x] & co", "cafe - naive 'sic' (x)  co"),
        ("under_score 42", "underscore "),
        ("", ""),
    ],
)
def test_text_is_lower_case_letters_and_marks(text, expected):
    assert normalize_text(text) == expected
    letters = letters_of(text)
    assert letters.dtype == torch.int64
    assert "".join(SYMBOLS[place] for place in letters.tolist()) == expected
    assert 0 not in letters.tolist()


def test_the_scale_is_slaneys_at_values_by_hand():
    hertz = torch.tensor([0, 200 / 3, 500, 1000, 6400, 1000 * 6.4**0.5, 40960], dtype=torch.float64)
    mels = torch.tensor([0, 1, 7.5, 15, 42, 28.5, 69], dtype=torch.float64)
    torch.testing.assert_close(mels_of(hertz), mels)
    torch.testing.assert_close(hertz_of(mels), hertz)


def test_filters_are_those_of_another_package():
    audio = pytest.importorskip("transformers.audio_utils")
    theirs = audio.mel_filter_bank(513, 80, 0.0, 8000.0, 22050, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters().numpy(), theirs.T, atol=1e-8, rtol=1e-5)


def test_filters_have_area_1_and_peaks_where_a_straight_computation_puts_them():
    filters, step = mel_filters().double().numpy(), 22050 / 1024
    assert filters.shape == (80, 513) and (filters >= 0).all()
    # 8000 Hz is 15 + 27 ln(8)/ln(6.4) = 45.2464 mels, so corners are 0.55860 mels apart.
    spacing = (15 + 27 * np.log(8) / np.log(6.4)) / 81
    assert spacing == pytest.approx(0.558597, abs=1e-5)
    corner = [k * spacing * 200 / 3 for k in range(27)]
    assert filters[0, 1] == pytest.approx(step / corner[1] * 2 / corner[2], rel=1e-6)
    assert filters[9, round(corner[10] / step)] == filters[9].max()
    np.testing.assert_allclose(filters[40:].sum(1) * step, 1, rtol=0.02)
    assert not filters[:, 373:].any() and filters[79, 370] > 0, "8000 Hz is bin 371.5"


def test_a_spectrogram_is_that_of_a_plain_fourier_sum():
    waveform = noise(3000) / 32768
    padded = np.pad(waveform, 512, mode="reflect")
    n = np.arange(1024)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 1024)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(513), n) / 1024)
    frames = [padded[256 * k : 256 * k + 1024] * window for k in range(1 + 3000 // 256)]
    spectrum = np.abs(np.stack([fourier @ frame for frame in frames], axis=1))
    expected = np.log(np.maximum(mel_filters().double().numpy() @ spectrum, 1e-5))
    found = log_mel(torch.from_numpy(waveform).float())
    assert found.shape == (80, 12)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_silence_is_the_floor_and_a_tone_is_in_its_channel():
    assert torch.allclose(log_mel(torch.zeros(2000)), torch.tensor(1e-5).log())
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(22050) / 22050)
    spectrum = log_mel(tone)[:, 20:60]
    # 440 Hz is 6.6 mels: the triangle with its peak at corner 12, which is channel 11.
    assert set(spectrum.argmax(0).tolist()) == {11}


def test_wav_files_come_back_and_others_are_refused(tmp_path):
    samples = noise(700)
    write_wav(tmp_path / "a.wav", samples.tolist())
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav"), samples)
    write_wav(tmp_path / "fast.wav", samples.tolist(), rate=44100)
    with pytest.raises(ValueError, match=r"fast\.wav must be one channel .* got 1 of 2 at 44100"):
        read_wav(tmp_path / "fast.wav")
    write_wav(tmp_path / "stereo.wav", samples.tolist(), channels=2)
    with pytest.raises(ValueError, match="got 2 of 2 at 22050"):
        read_wav(tmp_path / "stereo.wav")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_recording_is_named_in_one_line(workers, folder):
    for path in (folder / "LJSpeech-1.1" / "wavs").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    recordings = replace(load_recordings(str(folder)), workers=workers)
    with pytest.raises(DataError, match=r"^/.*LJ001-\d+\.wav is no WAV file:[^\n]*$"):
        next(recordings.validation())


def test_a_folder_gives_every_sentence_with_its_recording(folder):
    recordings = load_recordings(str(folder))
    sentences = recordings.sentences
    assert len(sentences) == 12
    text, mel = sentences[7]
    assert "".join(SYMBOLS[k] for k in text.tolist()) == "it's very very good, aaaaaaa."
    waveform = torch.from_numpy(noise(1000 + 2100, 7).astype(np.float32)) / 32768
    assert torch.equal(mel, log_mel(waveform)) and mel.shape == (80, 1 + 3100 // 256)


def test_parts_are_disjoint_whole_and_always_the_same(folder):
    one, other = load_recordings(str(folder)), load_recordings(str(folder))
    places = torch.cat((one.train, one.val, one.test))
    assert sorted(places.tolist()) == list(range(12))
    assert (len(one), len(one.val), len(one.test)) == (10, 1, 1)
    assert torch.equal(one.val, other.val) and torch.equal(one.train, other.train)
    whole = part(Sentences(["a"] * 13_100, [noise(1000)] * 13_100))
    assert (len(whole), len(whole.val), len(whole.test)) == (12_500, 100, 500)


def test_batches_are_padded_and_sorted_by_the_length_of_the_text(folder):
    recordings = replace(load_recordings(str(folder)), workers=0)
    seen = []
    sizes = []
    for batch in recordings.batches(4, seed=0, epoch=1):
        sizes.append(len(batch.text))
        lengths = batch.text_lengths.tolist()
        assert lengths == sorted(lengths, reverse=True)
        assert batch.text.shape[1] == lengths[0]
        assert batch.mel.shape == (len(lengths), 80, int(batch.mel_lengths.max()))
        for text, size, mel, frames in zip(*batch, strict=True):
            assert not text[size:].any() and not mel[:, frames:].any()
            letters = text[:size].tolist()
            [place] = [
                k
                for k in range(12)
                if letters_of(recordings.sentences.texts[k]).tolist() == letters
            ]
            assert torch.equal(recordings.sentences[place][1], mel[:, :frames])
            seen.append(place)
    assert sizes == [4, 4, 2] and sorted(seen) == recordings.train.tolist()
    [held] = recordings.validation()
    assert len(held.text) == 1 and held.mel.dtype == torch.float32


def test_seed_and_epoch_alone_decide_the_bits_of_a_batch(folder):
    recordings = replace(load_recordings(str(folder)), workers=0)

    def epoch(split, seed, number):
        return [tensor for batch in split.batches(4, seed, number) for tensor in batch]

    first = epoch(recordings, 0, 1)
    state = torch.get_rng_state()
    with_workers = epoch(replace(recordings, workers=2), 0, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first, with_workers))
    for seed, number in ((0, 2), (1, 1)):
        others = epoch(recordings, seed, number)
        assert [len(t) for t in others] == [len(t) for t in first]
        assert not all(map(torch.equal, first, others))


def test_equal_texts_keep_their_order():
    sentences = [(torch.tensor([1, 2]), torch.full((80, k + 1), float(k))) for k in range(3)]
    assert pad(sentences).mel_lengths.tolist() == [1, 2, 3]


def test_what_is_wrong_with_a_folder_is_said(folder):
    metadata = folder / "LJSpeech-1.1" / "metadata.csv"
    good = metadata.read_text()
    metadata.write_text(good + "LJ009-0001|a|b\n")
    with pytest.raises(DataError, match=r"has no LJ009-0001\.wav"):
        load_recordings(str(folder))
    metadata.write_text(good + "LJ009-0001|a\n")
    with pytest.raises(DataError, match=r"line 13 of .*metadata\.csv has 2 fields, not 3"):
        load_recordings(str(folder))
    metadata.write_text(good.splitlines()[0])
    with pytest.raises(DataError, match="it takes three sentences"):
        load_recordings(str(folder))
    metadata.unlink()
    with pytest.raises(DataError, match=r"LJSpeech-1\.1/metadata\.csv and LJSpeech-1\.1/wavs/"):
        require_files("ljspeech", str(folder))


@pytest.mark.data
@pytest.mark.skipif(FOLDER is None, reason="DUALPROX_DATA names no data folder")
def test_the_pack_of_32_sentences_is_speech():
    recordings = replace(load_recordings(FOLDER), workers=0)
    assert "32 sentences" in caveat("ljspeech", FOLDER)
    assert len(recordings) == 30 and len(recordings.sentences) == 32
    text, mel = recordings.sentences[1]
    assert "".join(SYMBOLS[k] for k in text.tolist()) == "in being comparatively modern."
    assert mel.shape == (80, 1 + (254778 - 212893) // 256)
    # Speech is loudest between 100 and 1000 Hz, and far above the floor somewhere.
    assert 2 <= int(mel.mean(1).argmax()) <= 27 and mel.max() > 0 and mel.min() < -6
    batch = next(recordings.batches(8, 0, 1))
    assert batch.text.shape[0] == 8 and batch.mel.isfinite().all()
