"""Where the files of a data set are looked for, and what is made of them."""

import gzip
import hashlib
import lzma
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualprox.lab.console import print_caveat
from dualprox.lab.data import CATALOGUE, DataError, caveat, load_split, require_files
from dualprox.lab.data import layout as layouts
from dualprox.lab.data.cifar_pickle import read_batch
from dualprox.lab.data.layout import Layout, find, md5, open_unpacked
from dualprox.lab.data.pixels import SCALES
from dualprox.lab.recipes import RECIPES
from python2_pickles import python2_pickle, write_batch


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder, images, labels, suffix=""):
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, content in (("images-idx3", idx(images)), ("labels-idx1", idx(labels))):
            packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](content)
            (folder / f"{part}-{kind}-ubyte{suffix}").write_bytes(packed)


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def write_cifar10(data_dir, images):
    for number, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        write_batch(data_dir / "cifar-10-batches-py" / name, images + np.uint8(number), [number])


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_are_found_packed_or_not_where_people_have_them(name, folder, suffix, tmp_path):
    images, labels = random_images(3)[:, :28, :28, 0], np.array([3, 1, 4])
    write_mnist(tmp_path / folder, images, labels, suffix)
    split = load_split(name, str(tmp_path))
    np.testing.assert_array_equal(split.val_x.numpy(), images.reshape(3, -1))
    assert split.y.tolist() == [3, 1, 4]
    assert caveat(name, str(tmp_path)) == f"these are not the published files of {name}"


def test_the_first_layout_that_is_whole_is_read(tmp_path):
    images = random_images(2)[:, :28, :28, 0]
    write_mnist(tmp_path / "MNIST/raw", images, np.array([1, 2]))
    write_mnist(tmp_path / "mnist", images, np.array([3, 4]))
    assert load_split("mnist", str(tmp_path)).y.tolist() == [3, 4]
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    assert load_split("mnist", str(tmp_path)).y.tolist() == [1, 2]


def test_what_lies_in_the_folder_is_said_beside_what_should(tmp_path):
    with pytest.raises(DataError, match=r"got '.*', which is empty$"):
        require_files("mnist", str(tmp_path))
    with pytest.raises(DataError, match=r"which is no folder$"):
        require_files("mnist", str(tmp_path / "absent"))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError) as error:
        require_files("mnist", str(tmp_path))
    assert str(error.value).endswith("which holds mnist/, notes.txt")
    assert "mnist/train-images-idx3-ubyte.gz" in str(error.value)
    assert ", or MNIST/raw/train-images-idx3-ubyte.gz" in str(error.value)
    for number in range(20):
        (tmp_path / f"z{number:02}").write_text("")
    with pytest.raises(DataError, match=r"z09 and 10 more$"):
        require_files("mnist", str(tmp_path))


def test_files_that_are_the_published_ones_have_no_caveat(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"content"))
    known = hashlib.md5(b"content").hexdigest()
    assert md5(tmp_path / "a.gz") == known
    layout = Layout(("a.gz",), str, (known,))
    assert find((layout,), str(tmp_path)) == (layout, (tmp_path / "a.gz",))
    assert layouts.caveat("it", (layout,), str(tmp_path)) == ""
    note = layouts.caveat("it", (replace(layout, md5=("0" * 32,)),), str(tmp_path))
    assert note == "these are not the published files of it"


def test_a_folder_is_found_only_if_it_is_one(tmp_path):
    layout = Layout(("wavs/",), str)
    (tmp_path / "wavs").write_text("")
    with pytest.raises(DataError, match="wavs/"):
        find((layout,), str(tmp_path))
    (tmp_path / "wavs").unlink()
    (tmp_path / "wavs").mkdir()
    assert find((layout,), str(tmp_path))[1] == (tmp_path / "wavs",)


def test_a_run_whose_files_are_gone_says_so_in_place_of_its_caveat(tmp_path, capsys):
    run = replace(RECIPES["cifar_resnet_dense"](), data_dir=str(tmp_path))
    print_caveat(run)
    assert "data_dir must be a folder that holds cifar-10-batches-py" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_packed_files_are_unpacked_as_they_are_read(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(b"content") if suffix else b"content")
    with open_unpacked(path) as file:
        assert file.read() == b"content"


def test_cifar10_batches_come_back_exactly_and_scaled_as_in_the_papers(tmp_path):
    images = random_images(1)
    write_cifar10(tmp_path, images)
    split = load_split("cifar10", str(tmp_path))
    assert split.y.tolist() == [0, 1, 2, 3, 4] and split.val_y.tolist() == [5]
    for number, kept in enumerate(split.x):
        np.testing.assert_array_equal(kept.permute(1, 2, 0), images[0] + np.uint8(number))
    red = (images[0, 7, 9, 0] / 255 - 0.4914) / 0.2023
    blue = (images[0, 7, 9, 2] / 255 - 0.4465) / 0.2010
    inputs = split.normalize(split.x)
    assert inputs[0, 0, 7, 9].item() == pytest.approx(red, abs=1e-5)
    assert inputs[0, 2, 7, 9].item() == pytest.approx(blue, abs=1e-5)
    assert inputs.is_contiguous(memory_format=torch.channels_last)


def test_exact_images_are_preferred_to_a_lossy_pack(tmp_path):
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        (tmp_path / "cifar10" / f"cifar10_{part}_jpeg.npz").write_bytes(b"")
    assert "lossy" in caveat("cifar10", str(tmp_path))
    write_cifar10(tmp_path, random_images(1))
    assert "not the published" in caveat("cifar10", str(tmp_path))
    assert len(load_split("cifar10", str(tmp_path))) == 5


def test_cifar100_has_its_fine_labels(tmp_path):
    for name, labels in (("train", [99, 7]), ("test", [42, 0])):
        path = tmp_path / "cifar-100-python" / name
        write_batch(path, random_images(2), labels, fine=True)
    split = load_split("cifar100", str(tmp_path))
    assert split.y.tolist() == [99, 7] and split.val_y.tolist() == [42, 0]
    scaled = (random_images(2)[1, 0, 0, 1] / 255 - 0.4865) / 0.2564
    assert split.normalize(split.x)[1, 1, 0, 0].item() == pytest.approx(scaled, abs=1e-5)


def test_pixels_are_scaled_by_the_constants_of_the_papers_experiments():
    assert SCALES == {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }


class Malicious:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("call", [os.mkdir, eval, np.empty, Malicious, getattr])
def test_a_pickle_that_calls_anything_is_refused_before_it_does(call, protocol, tmp_path):
    target = tmp_path / "made"
    arguments = {os.mkdir: str(target), eval: f"__import__('os').mkdir({str(target)!r})"}
    evil = {b"data": Malicious(call, arguments.get(call, (2,))), b"labels": [1]}
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(evil, protocol))
    with pytest.raises(DataError, match="a CIFAR batch has no use for"):
        load_split("cifar100", str(tmp_path))
    assert not target.exists()
    # The same file does harm to whoever reads it with pickle itself.
    if call is os.mkdir:
        pickle.loads((folder / "train").read_bytes())
        assert target.exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "no CIFAR batch"),
        ({b"labels": [1]}, "no CIFAR batch"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "no CIFAR batch"),
        ({b"data": np.zeros((1, 3072), np.float32), b"labels": [1]}, "unsigned bytes"),
        ({b"data": np.zeros((1, 3000), np.uint8), b"labels": [1]}, "no CIFAR batch"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}, "not one label"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"a"]}, "whole numbers"),
        ({b"data": b"bytes", b"labels": [1]}, "no CIFAR batch"),
        ({b"data": np.zeros((2, 3072), np.uint8, "F"), b"labels": [1, 2]}, "is not whole"),
    ],
)
def test_a_pickle_of_something_else_is_refused(batch, message, tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(python2_pickle(batch))
    with pytest.raises(pickle.UnpicklingError, match=message):
        read_batch(path)


@pytest.mark.parametrize("length", [0, 1, 30, 200, 3000])
def test_a_cut_pickle_is_refused(length, tmp_path):
    path = tmp_path / "batch"
    write_batch(path, random_images(1), [1])
    assert read_batch(path)[1].tolist() == [1]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(pickle.UnpicklingError, match="no CIFAR batch"):
        read_batch(path)


def test_the_first_4000_images_are_kept_exactly_the_last_500_for_validation(tmp_path):
    images = random_images(520)
    (tmp_path / "cifar10").mkdir()
    for k in range(4):
        rows = images[130 * k : 130 * (k + 1)].reshape(130, 3072)
        Image.fromarray(rows).save(tmp_path / "cifar10" / f"cifar10_batch_{k}.png")
    labels = np.arange(520) % 10
    np.save(tmp_path / "cifar10" / "lossless4000_labels.npy", labels.astype(np.uint8))
    split = load_split("cifar10_first4000", str(tmp_path))
    assert (len(split.x), len(split.val_x)) == (20, 500)
    kept = torch.cat((split.x, split.val_x)).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(kept, images)
    assert torch.cat((split.y, split.val_y)).tolist() == labels.tolist()
    torch.testing.assert_close(split.normalize(split.x).mean((0, 2, 3)), torch.zeros(3))


@pytest.mark.data
@pytest.mark.skipif("DUALPROX_DATA" not in os.environ, reason="DUALPROX_DATA names no data folder")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_are_the_published_ones(name):
    folder = os.environ["DUALPROX_DATA"]
    assert caveat(name, folder) == ""
    paths = find(CATALOGUE[name].layouts, folder)[1]
    assert {path.parent for path in paths} == {Path(folder) / name.replace("_", "-")}
