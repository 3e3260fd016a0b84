"""Images in one folder per class: what is decoded, in which order, by however many workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dualprox.lab.data import CATALOGUE, DataError, load, load_split, require_files
from dualprox.lab.data.imagenet import Decoded, ImageFolders, centre_crop
from dualprox.lab.data.split import random_flip

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# Processes that fork while other threads run are warned of from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def ramp(width, height, blue):
    """Red and green say where a pixel is, blue which image it is in."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = np.round(np.arange(width) * 255 / (width - 1))
    image[:, :, 1] = np.round(np.arange(height) * 255 / (height - 1))[:, None]
    image[:, :, 2] = blue
    return Image.fromarray(image)


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")  # whatever the name says: the content decides


@pytest.fixture
def folders(tmp_path) -> ImageFolders:
    """Two classes of five and two of training, one each of validation."""
    for number in range(5):
        path = tmp_path / f"imagenet/train/n1/{number}.JPEG"
        save(ramp(300 + 40 * number, 260, 10 * number), path)
    for number in range(2):
        save(ramp(250, 400, 100 + 10 * number), tmp_path / f"imagenet/train/n2/{number}.png")
    (tmp_path / "imagenet/train/n2/notes.txt").write_text("no image")
    save(ramp(500, 300, 7), tmp_path / "imagenet/val/n1/a.JPEG")
    save(ramp(300, 301, 9), tmp_path / "imagenet/val/n2/b.JPEG")
    split = load("imagenet", str(tmp_path))
    assert isinstance(split, ImageFolders)
    return replace(split, workers=0)


def pixels(inputs):
    """Inputs as they were before they were scaled, (images, 224, 224, 3) from 0 to 255."""
    assert inputs.shape[1:] == (3, 224, 224) and inputs.dtype == torch.float32
    return (inputs.permute(0, 2, 3, 1).double().numpy() * STD + MEAN) * 255


def epoch(split, *arguments):
    inputs, labels = zip(*split.batches(3, *arguments), strict=True)
    assert [len(part) for part in labels] == [3, 3, 1]
    return torch.cat(inputs), torch.cat(labels)


def test_classes_are_folders_in_order(folders):
    assert len(folders) == 7 and folders.labels.tolist() == [0] * 5 + [1] * 2
    names = [name.decode() for name in folders.names]
    assert names == [*(f"n1/{number}.JPEG" for number in range(5)), "n2/0.png", "n2/1.png"]
    assert folders.val_labels.tolist() == [0, 1]
    assert CATALOGUE["imagenet"].shape == (3, 224, 224) and CATALOGUE["imagenet"].needs_files


def test_validation_images_are_resized_and_cut_in_the_middle(folders):
    [(inputs, labels)] = folders.validation()
    assert labels.tolist() == [0, 1]
    found = pixels(inputs)
    assert np.abs(found - found.round()).max() < 1e-3
    np.testing.assert_allclose(found[:, :, :, 2].mean((1, 2)), [7, 9], atol=0.01)
    # 500x300 becomes 426x256, of which columns 101 to 325 and rows 16 to 240 are left.
    columns = ((np.arange(224) + 101 + 0.5) * 500 / 426 - 0.5) * 255 / 499
    rows = ((np.arange(224) + 16 + 0.5) * 300 / 256 - 0.5) * 255 / 299
    assert np.abs(found[0, :, :, 0] - columns).max() < 1.6
    assert np.abs(found[0, :, :, 1] - rows[:, None]).max() < 1.6


def test_a_centre_crop_is_torchs_resizing_of_the_middle():
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, (310, 270, 3), np.uint8)
    found = np.asarray(centre_crop(Image.fromarray(content), 0)).astype(float)
    resized = nn.functional.interpolate(
        torch.from_numpy(content).permute(2, 0, 1)[None].double(),
        (256 * 310 // 270, 256),
        mode="bilinear",
        antialias=True,
    )[0].permute(1, 2, 0)
    top, left = round((256 * 310 // 270 - 224) / 2), 16
    expected = resized[top : top + 224, left : left + 224].numpy()
    assert np.abs(found - expected).max() < 1.6


def test_training_images_are_random_boxes_of_the_right_image(folders):
    sides = {10 * k: (300 + 40 * k, 260) for k in range(5)} | {100: (250, 400), 110: (250, 400)}
    shares = []
    for number in range(1, 6):
        inputs, labels = epoch(folders, 0, number, random_flip)
        found = pixels(inputs)
        blues = found[:, :, :, 2].mean((1, 2)).round().astype(int)
        assert sorted(blues) == sorted(sides)
        assert [blue >= 100 for blue in blues] == [label == 1 for label in labels.tolist()]
        for image, blue in zip(found, blues, strict=True):
            # Pixels of a resized ramp lie on a line; its slope is the side of the box.
            width, height = sides[blue]
            across, down = image[:, :, 0].mean(0), image[:, :, 1].mean(1)
            wide = abs(np.polyfit(np.arange(224), across, 1)[0]) * 224 / 255 * (width - 1)
            tall = np.polyfit(np.arange(224), down, 1)[0] * 224 / 255 * (height - 1)
            assert 0.7 < wide / tall < 1.4
            shares.append(wide * tall / (width * height))
    assert 0.07 < min(shares) < 0.3 and 0.8 < max(shares) < 1.01


def test_without_random_changes_training_images_are_cut_like_validation_images(folders):
    inputs, labels = epoch(folders, 3, 1)
    same = replace(folders, val=folders.train, val_names=folders.names, val_labels=folders.labels)
    [(all_inputs, all_labels)] = same.validation()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3 * 1_000_003 + 1))
    assert torch.equal(inputs, all_inputs[order]) and torch.equal(labels, all_labels[order])


def test_seed_and_epoch_alone_decide_the_bits_of_a_batch(folders):
    inputs, labels = epoch(folders, 0, 1, random_flip)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again, same = epoch(folders, 0, 1, random_flip)
    assert torch.equal(inputs, again) and torch.equal(labels, same)
    assert torch.equal(torch.get_rng_state(), state), "dropout has its random numbers for itself"
    with_workers, _ = epoch(replace(folders, workers=2), 0, 1, random_flip)
    assert torch.equal(inputs, with_workers)
    others = [epoch(folders, 0, 2, random_flip)[0], epoch(folders, 1, 1, random_flip)[0]]
    assert all(not torch.equal(inputs, other) for other in others)


def test_batches_that_were_taken_are_left_out_without_reading_them(folders, monkeypatch):
    read, decode = [], Decoded.__getitem__
    monkeypatch.setattr(
        Decoded, "__getitem__", lambda self, index: (read.append(index), decode(self, index))[1]
    )
    whole = list(folders.batches(3, 0, 1, random_flip))
    for first in range(4):
        read.clear()
        left = list(folders.batches(3, 0, 1, random_flip, first))
        assert len(left) == 3 - first and len(read) == max(0, 7 - 3 * first)
        for ours, theirs in zip(left, whole[first:], strict=True):
            assert all(map(torch.equal, ours, theirs))


def test_two_epochs_cut_an_image_differently(folders):
    one = replace(folders, names=folders.names[:1], labels=folders.labels[:1])
    first, second = (next(one.batches(1, 0, number, random_flip))[0] for number in (1, 2))
    assert not torch.equal(first, second) and not torch.equal(first, second.flip(-1))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "1"])
def test_images_of_every_kind_become_rgb(mode, folders):
    path = folders.train / "n1" / "0.JPEG"
    image = Image.new("RGB", (300, 300), (255, 255, 255)).convert(mode)
    image.save(path, format="TIFF")
    one = replace(folders, val=folders.train, val_names=folders.names[:1])
    [(inputs, _)] = replace(one, val_labels=folders.labels[:1]).validation()
    assert np.abs(pixels(inputs) - 255).max() < 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(workers, folders):
    path = folders.train / "n2" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"^/.*n2/1\.png is no image: [^\n]*$"):
        epoch(replace(folders, workers=workers), 0, 1)


def test_folders_that_do_not_match_are_refused(folders, tmp_path):
    with pytest.raises(TypeError, match="imagenet does not fit in memory"):
        load_split("imagenet", str(tmp_path))
    (tmp_path / "imagenet/train/n3").mkdir()
    with pytest.raises(DataError, match=r"must hold the same folders.* got 3 and 2"):
        load("imagenet", str(tmp_path))
    (tmp_path / "imagenet/val/n3").mkdir()
    with pytest.raises(DataError, match="n3 holds no image"):
        load("imagenet", str(tmp_path))


def test_missing_folders_are_named(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/train").write_text("")
    with pytest.raises(DataError, match="imagenet/train/ and imagenet/val/"):
        require_files("imagenet", str(tmp_path))
