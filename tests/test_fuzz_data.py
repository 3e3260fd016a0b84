"""Damaged files of data sets: loaded, or refused with a DataError; never run, never a bomb."""

import gzip
import io
import lzma
import os
import pickle
import random
import resource
import time
import warnings
import wave
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualprox.lab import data
from dualprox.lab.data import cifar_pickle, layout
from dualprox.lab.data.arrays import array_of
from dualprox.lab.data.imagenet import ImageFolders
from dualprox.lab.data.layout import DataError
from dualprox.lab.data.ljspeech import load_recordings
from dualprox.lab.data.mnist import FILES
from dualprox.lab.data.wikitext import load_corpus
from mutations import damaged

PROMISE = pytest.mark.promise(
    "input",
    "a damaged file of a data set is loaded or refused with a clear error, in bounded memory and "
    "time; nothing in it is run",
    "files",
)
RNG = np.random.default_rng(0)


def idx(array):
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def image(kind, size=(32, 32)):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (*size, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def pack():
    parts = [image("JPEG") for _ in range(3)]
    off = np.cumsum([0, *map(len, parts)])
    return npz(jpg=np.frombuffer(b"".join(parts), np.uint8), off=off, label=np.array([0, 1, 2]))


def batch(labels=b"labels"):
    pixels = RNG.integers(0, 255, (3, 3072), dtype=np.uint8)
    return pickle.dumps({b"data": pixels, labels: [0, 1, 2]}, protocol=3)


def sounds(**more):
    return npz(
        hi=np.zeros(1800, np.uint8),
        lo=np.ones(1800, np.uint8),
        off=np.array([0, 600, 1200, 1800]),
        **more,
    )


def wav():
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(22050)
        sound.writeframes(RNG.integers(-99, 99, 3000, dtype=np.int16).tobytes())
    return file.getvalue()


def pixels_and_labels(name):
    images, labels = RNG.integers(0, 255, (4, 28, 28)), np.arange(4)
    parts = [images, labels, images, labels]
    return {f"{name}/{file}": gzip.compress(idx(x)) for file, x in zip(FILES, parts, strict=True)}


def picture():
    file = io.BytesIO()
    Image.fromarray(np.zeros((150, 1024, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def array(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


TEXT = b"a b c d\n e f <unk> a\n" * 9
FILES_OF = {
    "mnist": lambda: pixels_and_labels("mnist"),
    "cifar10 batches": lambda: {
        f"cifar-10-batches-py/{name}": batch()
        for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
    },
    "cifar100": lambda: {
        f"cifar-100-python/{name}": batch(b"fine_labels") for name in ("train", "test")
    },
    "cifar10 packs": lambda: {
        f"cifar10/cifar10_{name}_jpeg.npz": pack() for name in ("train", "test")
    },
    "cifar10_first4000": lambda: {
        "cifar10/lossless4000_labels.npy": array(np.arange(600) % 10),
        **{f"cifar10/cifar10_batch_{k}.png": picture() for k in range(4)},
    },
    "imagenet": lambda: {
        f"imagenet/{part}/n{label}/{name}": image(kind, (40, 30))
        for part in ("train", "val")
        for label in range(2)
        for name, kind in (("a.JPEG", "JPEG"), ("b.png", "PNG"))
    },
    "fsdd": lambda: {"fsdd/fsdd.npz": sounds(label=np.arange(3), index=np.array([4, 5, 6]))},
    "ljspeech": lambda: {
        "LJSpeech-1.1/metadata.csv": b"".join(b"w%d|A b.|A b.\n" % k for k in range(4)),
        **{f"LJSpeech-1.1/wavs/w{k}.wav": wav() for k in range(4)},
    },
    "ljspeech pack": lambda: {
        "ljspeech32/ljspeech32.npz": sounds(text=np.array(["a b", "c", "d e"]))
    },
    "wikitext-2": lambda: {
        "wikitext-2/train.txt.xz": lzma.compress(TEXT),
        "wikitext-2/valid.txt.gz": gzip.compress(TEXT),
        "wikitext-2/test.txt": TEXT,
    },
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def load(target, folder):
    """Read a data set, and what comes of it first."""
    name = target.partition(" ")[0]
    if name == "ljspeech":
        found = load_recordings(str(folder))
        for sentences in replace(found, workers=0).batches(2, 0, 0):
            assert sentences.text.dim() == 2
    elif name == "wikitext-2":
        corpus = load_corpus(name, str(folder))
        assert int(corpus.train.max()) < len(corpus.words)
    else:
        found = data.load(name, str(folder))
        if isinstance(found, ImageFolders):
            found = replace(found, workers=0)
        for inputs, labels in (*found.batches(8, 0, 1), *found.validation()):
            assert len(inputs) == len(labels)
    data.caveat(name, str(folder))


@pytest.fixture(autouse=True)
def bounded(monkeypatch):
    """Four gigabytes more than now, which stands for a machine; and bombs of a megabyte."""
    monkeypatch.setattr(layout, "MOST_BYTES", 1 << 23)
    monkeypatch.setattr("dualprox.lab.data.arrays.MOST_BYTES", 1 << 23)
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's and numpy's, of odd files
        yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def try_file(target, folder, name, content, tries):
    """Load with one file's content changed, and put it back."""
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    began = time.perf_counter()
    with tries.one():
        try:
            load(target, folder)
        except DataError as error:
            assert str(error) and str(folder) in str(error), error
        assert time.perf_counter() - began < 20
    (folder / name).write_bytes(good)


def repacked(name, content, rng):
    """The content damaged, within its packing or the packing itself."""
    if rng.random() < 0.4:
        return damaged(content, rng)
    if name.endswith((".gz", ".xz")):
        way = gzip if name.endswith(".gz") else lzma
        return way.compress(damaged(way.decompress(content), rng))
    if name.endswith(".npz"):
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
            chosen = rng.choice(old.namelist())
            for entry in old.namelist():
                part = old.read(entry)
                new.writestr(entry, damaged(part, rng) if entry == chosen else part)
        return file.getvalue()
    return damaged(content, rng)


def fuzz(target, folder, tries, count):
    files = FILES_OF[target]()
    write(folder, files)
    load(target, folder)
    rng = random.Random(target)
    for _ in range(count):
        name = rng.choice(list(files))
        try_file(target, folder, name, repacked(name, files[name], rng), tries)


@PROMISE
@pytest.mark.parametrize("target", FILES_OF)
def test_damaged_data_are_loaded_or_refused(target, tmp_path, tries):
    fuzz(target, tmp_path, tries, 60)


@PROMISE
@pytest.mark.exhaustive
@pytest.mark.parametrize("target", FILES_OF)
def test_thousands_of_damaged_data_are_loaded_or_refused(target, tmp_path, tries):
    fuzz(target, tmp_path, tries, 3000)


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def header(shape, descr="|u1"):
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()


def stored(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def attacks(target, marker):
    """By the end of the name of the file that they replace."""
    runs = pickle.dumps(Runs(marker))
    objects = io.BytesIO()
    np.save(objects, np.array([Runs(marker)], dtype=object), allow_pickle=True)
    zeros = bytes(1 << 24)
    doubled = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (k + 1, k, k) for k in range(40))
    yield "", runs
    yield "", objects.getvalue()
    for suffix, way in ((".gz", gzip), (".xz", lzma)):
        yield suffix, way.compress(zeros)
        yield suffix, way.compress(runs)
    yield ".npz", stored(jpg=zeros, hi=zeros)
    yield ".npz", stored(**dict.fromkeys(("off", "jpg", "label", "hi"), objects.getvalue()))
    for shape in ("(99999999999,)", "(-1,)", "(2, -3)", "(10**99,)", "[3]", "(1.5,)", "(" * 5000):
        for names in (("off",), ("off", "jpg", "label", "hi", "lo", "index", "text")):
            yield ".npz", stored(**dict.fromkeys(names, header(shape)))
        yield ".npy", header(shape)
    yield ".gz", gzip.compress(b"\0\0\x08\xff" + b"\xff" * 1020)
    if "cifar" in target:
        yield "", b"\x80\x02}r\xff\xff\xff\x7f."  # a memo of 2**31 places
        yield "", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"x"  # a text of 2**63 bytes
        yield "", doubled + b"."
        yield "", b"(" * 100_000 + b"l" * 100_000 + b"."
        yield "", b"\x80\x02cos\nsystem\n(S'mkdir " + str(marker).encode() + b"'\ntR."
        yield "", b"\x80\x02cnumpy\nndarray\n}S'x'\nI1\nsb."
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"\x08\x02\0\0\0"
    yield ".png", png + bytes(99)
    yield ".wav", b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x01\0" + b"\xff" * 40


@PROMISE
@pytest.mark.parametrize("target", FILES_OF)
def test_attacks_are_refused_and_nothing_runs(target, tmp_path, tries):
    marker, folder = tmp_path / "marker", tmp_path / "data"
    files = FILES_OF[target]()
    write(folder, files)
    for suffix, content in attacks(target, marker):
        for name in files:
            if name.endswith(suffix):
                try_file(target, folder, name, content, tries)
                break
    assert not marker.exists()


def test_a_pickle_that_runs_would_be_seen(tmp_path):
    pickle.loads(pickle.dumps(Runs(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    with pytest.raises(pickle.UnpicklingError):
        (tmp_path / "batch").write_bytes(pickle.dumps(Runs(tmp_path / "other")))
        cifar_pickle.read_batch(tmp_path / "batch")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("shape", ["(99999999999,)", "(-1,)", "(3, 5)"])
def test_an_array_is_asked_for_its_size_before_there_is_room_for_it(shape):
    with pytest.raises(ValueError, match=r"an array of shape .* takes -?\d+ bytes, got 14"):
        array_of(header(shape) + bytes(14))


def test_letters_that_python_does_not_have_are_refused():
    letters = header("(1,)", "<U2") + (97).to_bytes(4, "little")
    assert array_of(letters + (0x10FFFF).to_bytes(4, "little")) == ["a\U0010ffff"]
    with pytest.raises(ValueError, match="letters must be at most 0x10ffff, got 0x110000"):
        array_of(letters + (0x110000).to_bytes(4, "little"))
