"""Data sets that come in files: packs made here, and the real ones where they are."""

import gzip
import io
import json
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dualprox as dp
from dualprox.lab import train
from dualprox.lab.cli import main
from dualprox.lab.data import CATALOGUE, DataError, Split, caveat, load, load_split, require_files
from dualprox.lab.data.cifar import read_pack
from dualprox.lab.data.mnist import read_idx
from dualprox.lab.data.speech import SAMPLES
from dualprox.lab.data.split import random_crop, random_flip
from dualprox.lab.settings import Run
from dualprox.lab.specs import Conv1dSpec, RamdaSpec, ResnetSpec

FOLDER = os.environ.get("DUALPROX_DATA")
real_data = [
    pytest.mark.data,
    pytest.mark.skipif(FOLDER is None, reason="DUALPROX_DATA names no data folder"),
]


IN_FILES = [name for name, known in CATALOGUE.items() if known.needs_files]
AT_HAND = [name for name in IN_FILES if name not in ("cifar100", "imagenet")]
READ_WHOLE = [name for name in IN_FILES if name != "imagenet"]

pytestmark = pytest.mark.usefixtures("torch_as_before")


def write_idx(path, array):
    path.parent.mkdir(exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_images(path, images, labels):
    path.parent.mkdir(exist_ok=True)
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=95)
        files.append(file.getvalue())
    np.savez(
        path,
        jpg=np.frombuffer(b"".join(files), np.uint8),
        off=np.cumsum([0, *map(len, files)]),
        label=np.array(labels, np.uint8),
    )


def write_waveforms(path, waveforms, labels, index):
    """A pack of PCM bytes as the standard library writes them, differences taken in Python."""
    path.parent.mkdir(exist_ok=True)
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setparams((1, 2, 8000, 0, "NONE", ""))
        for waveform in waveforms:
            recording.writeframes(struct.pack(f"<{len(waveform)}h", *waveform))
    file.seek(0)
    with wave.open(file) as recording:
        frames = recording.readframes(recording.getnframes())
    samples = [value for (value,) in struct.iter_unpack("<h", frames)]
    steps = [(b - a) % 65536 for a, b in zip([0, *samples], samples, strict=False)]
    np.savez(
        path,
        hi=np.array([step // 256 for step in steps], np.uint8),
        lo=np.array([step % 256 for step in steps], np.uint8),
        off=np.cumsum([0, *map(len, waveforms)]),
        label=np.array(labels, np.uint8),
        index=np.array(index, np.uint8),
    )


def test_idx_files_come_back(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 28, 28), np.uint8)
    labels = rng.integers(0, 10, 7, np.uint8)
    folder = tmp_path / "fashion-mnist"
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    split = load_split("fashion_mnist", str(tmp_path))
    assert split.x.dtype == torch.uint8 and split.y.tolist() == labels.tolist()
    np.testing.assert_array_equal(split.x.numpy(), images.reshape(7, -1))
    assert torch.equal(split.normalize(split.x), torch.from_numpy(images).flatten(1) / 255)
    assert split.image == (28, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\0\0\x0d\1\0\0\0\1x", "no.* an idx file of bytes"), (b"\0\0\x08\1\0\0\0\5abc", "cut off")],
)
def test_a_damaged_idx_file_is_named(content, message, tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=f"x.gz.*{message}"):
        read_idx(path)


def test_jpeg_packs_come_back_as_images_of_mean_0_and_variance_1(tmp_path):
    rng = np.random.default_rng(0)
    # Smooth images, which JPEG keeps to a few grey levels.
    corners = rng.integers(0, 256, (6, 2, 2, 3), np.uint8)
    images = [
        np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BILINEAR)) for c in corners
    ]
    for part in ("train", "test"):
        write_images(tmp_path / "cifar10" / f"cifar10_{part}_jpeg.npz", images, range(6))
    pixels, labels = read_pack(tmp_path / "cifar10" / "cifar10_test_jpeg.npz")
    assert pixels.dtype == torch.uint8 and pixels.shape == (6, 3, 32, 32)
    assert labels.tolist() == list(range(6))
    errors = pixels.permute(0, 2, 3, 1).numpy().astype(int) - np.stack(images)
    assert np.abs(errors).mean() < 2
    split = load_split("cifar10", str(tmp_path))
    inputs = split.normalize(split.x)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.var((0, 2, 3), correction=0), torch.ones(3))
    assert "lossy" in caveat("cifar10", str(tmp_path))


def test_waveforms_come_back_centred_and_split_by_recording(tmp_path):
    short, long = [32767, -32768, 5], [*range(1000), *[1] * SAMPLES, *range(1000)]
    path = tmp_path / "fsdd" / "fsdd.npz"
    write_waveforms(path, [short, long, short, [0]], labels=[3, 1, 4, 1], index=[4, 5, 49, 0])
    split = load_split("fsdd", str(tmp_path))
    assert split.y.tolist() == [1, 4] and split.val_y.tolist() == [3, 1]
    assert split.x.dtype == torch.int16 and split.x.shape == (2, 1, SAMPLES)
    assert split.x[0].eq(1).all()
    middle = split.val_x[0, 0]
    place = middle.nonzero().flatten()
    assert middle[place].tolist() == short and abs(int(place[1]) - SAMPLES // 2) <= 1
    inputs = split.normalize(split.val_x)
    assert float(inputs[0].square().mean()) == pytest.approx(1, rel=1e-5)
    assert not inputs[1].any()


@pytest.mark.parametrize("name", IN_FILES)
def test_missing_files_are_named_with_their_folder(name, tmp_path, capsys):
    for data_dir in (None, str(tmp_path)):
        with pytest.raises(DataError, match="data_dir must be a folder that holds") as error:
            require_files(name, data_dir)
        for layout in CATALOGUE[name].layouts:
            assert all(file in str(error.value) for file in layout.files)


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\3\4 cut off", b"\x1f\x8b\x08 cut off"]
)
@pytest.mark.parametrize("name", READ_WHOLE)
def test_damaged_files_are_named(name, content, tmp_path):
    for number, layout in enumerate(CATALOGUE[name].layouts):
        data_dir = tmp_path / str(number)
        for path in (data_dir / file for file in layout.files):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        folder = (data_dir / layout.files[0]).parent
        with pytest.raises(DataError, match=f"{folder} does not hold {name}"):
            load(name, str(data_dir))


def test_damaged_files_cost_one_line_and_leave_nothing(tmp_path, capsys):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file in CATALOGUE["mnist"].layouts[0].files:
        (tmp_path / file).write_bytes(b"junk")
    settings = ["data=mnist", f"data_dir={tmp_path}", "epochs=1", "milestones=", "baseline=none"]
    command = ["train", "--out", str(tmp_path / "run"), "--set", *settings]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"{folder} does not hold mnist" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (20, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(20) % 10)
    assert main(command) == 0
    assert (tmp_path / "run" / "pixels.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "model", "layer"),
    [
        ("fsdd", Conv1dSpec((4, 6)), "conv2"),
        ("cifar10", ResnetSpec((4, 6), blocks=1), "stage2block1.shortcut.conv"),
    ],
)
def test_a_run_on_a_pack_says_what_died_and_what_its_data_lacks(
    data, model, layer, tmp_path, capsys
):
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (12, 32, 32, 3), np.uint8))
    for part in ("train", "test"):
        write_images(tmp_path / "cifar10" / f"cifar10_{part}_jpeg.npz", images, np.arange(12) % 10)
    waveforms = [rng.integers(-9999, 9999, 2000).tolist() for _ in range(12)]
    write_waveforms(tmp_path / "fsdd" / "fsdd.npz", waveforms, np.arange(12) % 10, np.arange(12))
    run = Run(
        recipe="digits_mlp_ramda",
        data=data,
        data_dir=str(tmp_path),
        augment=True,
        model=model,
        optimizer=RamdaSpec(),
        penalty=dp.GroupLasso(1.0),
        epochs=2,
        batch_size=4,
        baseline="digits_mlp_dense",
    )
    train.check(run)
    folder = tmp_path / "run"
    train.start(run, folder)
    assert main(["train", "--resume", str(folder)]) == 0
    note = caveat(data, str(tmp_path))
    assert capsys.readouterr().out.count("not comparable") == (2 if note else 0)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["caveat"] == note
    assert summary["inputs"][layer] == 4 and summary["dead_inputs"][layer] == [0, 1, 2, 3]
    assert summary["weighted_group_sparsity"] == 1.0
    assert (
        json.loads((folder / "dense" / "config.json").read_text())["model"]["kind"]
        == type(model).__name__
    )
    assert not (folder / "pixels.png").exists()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(40, 2, 9), (40, 3, 6, 5)])
def test_a_crop_is_a_shift_and_every_shift_occurs(shape, dtype):
    x = torch.arange(1, 1 + torch.Size(shape).numel()).remainder(250).add(1).view(shape).to(dtype)
    cropped = random_crop(x, 1, torch.Generator().manual_seed(0))
    assert cropped.shape == x.shape and cropped.dtype == dtype
    seen = set()
    for before, after in zip(x, cropped, strict=True):
        matches = []
        for shift in np.ndindex(*(3,) * (len(shape) - 2)):
            padded = np.pad(before.numpy(), [(0, 0), *[(1, 1)] * len(shift)])
            window = padded[
                (slice(None), *(slice(s, s + n) for s, n in zip(shift, shape[2:], strict=True)))
            ]
            if np.array_equal(window, after.numpy()):
                matches.append(shift)
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 3 ** (len(shape) - 2)


def test_a_flip_mirrors_about_half_of_the_examples():
    x = torch.arange(400 * 3 * 2 * 5).view(400, 3, 2, 5)
    flipped = random_flip(x, torch.Generator().manual_seed(0))
    mirrored = torch.from_numpy(np.flip(x.numpy(), axis=3).copy())
    is_same = (flipped == x).flatten(1).all(1)
    is_mirrored = (flipped == mirrored).flatten(1).all(1)
    assert (is_same ^ is_mirrored).all()
    assert 150 < int(is_mirrored.sum()) < 250


def test_batches_are_a_permutation_that_seed_and_epoch_decide():
    x = torch.arange(1, 1 + 23 * 8, dtype=torch.int16).view(23, 1, 8)
    split = Split(x, torch.arange(23), x, torch.arange(23))

    def epoch(seed, number, augment=None):
        inputs, labels = zip(*split.batches(5, seed, number, augment), strict=True)
        return torch.cat(inputs), torch.cat(labels)

    inputs, labels = epoch(0, 1)
    assert sorted(labels.tolist()) == list(range(23))
    assert torch.equal(inputs, x[labels].float())
    assert torch.equal(labels, epoch(0, 1)[1])
    assert not torch.equal(labels, epoch(0, 2)[1]) and not torch.equal(labels, epoch(1, 1)[1])

    def augment(kept, generator):
        return random_crop(kept, 2, generator)

    torch.manual_seed(1)
    first = epoch(0, 1, augment)
    torch.manual_seed(2)
    again = epoch(0, 1, augment)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], inputs)
    assert torch.equal(first[1], labels)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("digits"),
        *(pytest.param(n, marks=real_data) for n in AT_HAND),
    ],
)
def test_a_data_set_is_what_the_catalogue_says(name):
    known, split = CATALOGUE[name], load_split(name, FOLDER)
    sizes = {
        "digits": (1437, 360),
        "mnist": (60000, 10000),
        "fashion_mnist": (60000, 10000),
        "cifar10": (50000, 10000),
        "cifar10_first4000": (3500, 500),
        "fsdd": (2700, 300),
    }
    assert (len(split.x), len(split.val_x)) == sizes[name]
    assert len(split.y) == len(split.x) and len(split.val_y) == len(split.val_x)
    inputs, _ = next(split.batches(4, 0, 1, known.augment))
    assert inputs.shape == (4, *known.shape) and inputs.dtype == torch.float32
    assert set(split.y.tolist()) == set(split.val_y.tolist()) == set(range(known.classes))


@pytest.mark.data
@pytest.mark.skipif(FOLDER is None, reason="DUALPROX_DATA names no data folder")
def test_jpeg_training_images_are_near_the_exact_ones():
    """Exact pixels of 100 training images, kept as PNG in another order: 30 dB is 8 levels."""
    folder = Path(FOLDER or "") / "cifar10"
    exact = np.asarray(Image.open(folder / "cifar10_batch_0.png")).reshape(-1, 32, 32, 3)[:100]
    pixels, labels = read_pack(folder / "cifar10_train_jpeg.npz")
    exact = torch.from_numpy(exact.copy()).permute(0, 3, 1, 2).float()
    coarse = torch.nn.functional.avg_pool2d(pixels.float(), 8).flatten(1)
    wanted = torch.nn.functional.avg_pool2d(exact, 8).flatten(1)
    nearest = torch.cdist(wanted, coarse).argmin(1)
    assert len(nearest.unique()) == len(exact)
    assert (pixels[nearest].float() - exact).square().mean().sqrt() < 10
    known = np.load(folder / "lossless4000_labels.npy")[: len(exact)]
    np.testing.assert_array_equal(labels[nearest].numpy(), known)
