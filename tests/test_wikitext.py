"""Words as numbers, and the segments of a text."""

import lzma
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dualprox.lab.data import DataError, load_corpus
from dualprox.lab.data.wikitext import Corpus, segments

FOLDER = os.environ.get("DUALPROX_DATA")
TRAIN = " \n = Title = \n \n the cat saw the dog . \n the dog ran \n"
NAMES = {
    "wiki.train.tokens": TRAIN,
    "wiki.valid.tokens": "the bird <unk> \n",
    "wiki.test.tokens": "dog \n cat\n",
}


def write(folder, names, suffix=""):
    folder.mkdir(parents=True)
    for name, text in names.items():
        content = text.encode("utf8")
        path = folder / (name + suffix)
        path.write_bytes(lzma.compress(content) if suffix else content)


@pytest.mark.parametrize("suffix", ["", ".xz"])
@pytest.mark.parametrize("layout", ["wiki.{}.tokens", "{}.txt"])
@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_words_are_numbered_by_frequency_the_end_of_a_line_first(name, layout, suffix, tmp_path):
    parts = zip(("train", "valid", "test"), NAMES.values(), strict=True)
    texts = {layout.format(part): text for part, text in parts}
    texts[layout.format("train")] += "<unk>\n"
    write(tmp_path / name, texts, suffix)
    corpus = load_corpus(name, str(tmp_path))
    assert corpus.words == (
        *("<eos>", "the", "=", "dog", "Title", "cat", "saw", ".", "ran", "<unk>"),
    )
    line = [0, 2, 4, 2, 0, 0, 1, 5, 6, 1, 3, 7, 0, 1, 3, 8, 0, 9, 0]
    assert corpus.train.tolist() == line and corpus.train.dtype == torch.int32
    assert corpus.validation.tolist() == [1, 9, 9, 0]
    assert corpus.test.tolist() == [3, 0, 5, 0]


def test_only_a_line_feed_ends_a_line(tmp_path):
    texts = {"train.txt": "a\rb\u2028c\x85d\n", "valid.txt": "a\n", "test.txt": "a\n"}
    write(tmp_path / "wikitext-2", texts)
    corpus = load_corpus("wikitext-2", str(tmp_path))
    assert corpus.words == ("<eos>", "a", "b", "c", "d")
    assert corpus.train.tolist() == [1, 2, 3, 4, 0]


def test_a_word_that_training_lacks_needs_a_word_for_the_unknown(tmp_path):
    write(tmp_path / "wikitext-2", NAMES)
    with pytest.raises(DataError, match=r"wiki\.valid\.tokens has words that are not in"):
        load_corpus("wikitext-2", str(tmp_path))


def test_missing_texts_are_named(tmp_path):
    write(tmp_path / "wikitext-2", {"train.txt": TRAIN})
    with pytest.raises(DataError, match=r"wikitext-2/train\.txt and wikitext-2/valid\.txt"):
        load_corpus("wikitext-2", str(tmp_path))
    (tmp_path / "wikitext-2" / "valid.txt.xz").write_bytes(b"damaged")
    (tmp_path / "wikitext-2" / "test.txt").write_bytes(b"the")
    with pytest.raises(DataError, match="does not hold wikitext-2"):
        load_corpus("wikitext-2", str(tmp_path))


@pytest.mark.parametrize(("tokens", "batch_size", "length"), [(103, 4, 6), (100, 5, 19), (9, 3, 7)])
def test_rows_go_on_and_targets_are_the_next_words(tokens, batch_size, length):
    text = torch.randint(0, 1000, (tokens,), generator=torch.Generator().manual_seed(0)).int()
    size = tokens // batch_size
    words = [[] for _ in range(batch_size)]
    targets = [[] for _ in range(batch_size)]
    lengths = []
    for inputs, ahead in segments(text, batch_size, length):
        assert inputs.shape == ahead.shape and inputs.dtype == ahead.dtype == torch.int64
        lengths.append(inputs.shape[1])
        for row in range(batch_size):
            words[row] += inputs[row].tolist()
            targets[row] += ahead[row].tolist()
    for row in range(batch_size):
        share = text.tolist()[row * size : (row + 1) * size]
        assert words[row] == share[:-1] and targets[row] == share[1:]
    assert all(one == length for one in lengths[:-1]) and 1 <= lengths[-1] <= length


def test_training_rows_begin_anywhere_and_seed_and_epoch_decide_where():
    text = torch.arange(1000).int()
    corpus = Corpus((), text, text, text)

    def epoch(seed, number):
        batches = list(corpus.batches(4, 16, seed, number))
        return torch.cat([words for words, _ in batches], dim=1), batches[-1][1][:, -1:]

    words, last = epoch(0, 1)
    rows = torch.cat((words, last), dim=1)
    for number, row in enumerate(rows.tolist()):
        assert sorted(row) == list(range(250 * number, 250 * (number + 1)))
        steps = {(b - a) % 250 for a, b in pairwise(row)}
        assert steps == {1}, "a row is its share of the text, begun elsewhere"
    starts = [row[0] % 250 for row in rows.tolist()]
    assert len(set(starts)) > 1
    torch.manual_seed(7)
    assert torch.equal(epoch(0, 1)[0], words)
    assert not torch.equal(epoch(0, 2)[0], words) and not torch.equal(epoch(1, 1)[0], words)


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="batch_size must leave two words to a row, got 6 rows"):
        next(segments(torch.arange(11), 6, 3))


@pytest.mark.data
@pytest.mark.skipif(FOLDER is None, reason="DUALPROX_DATA names no data folder")
def test_wikitext_2_has_the_published_words():
    corpus = load_corpus("wikitext-2", FOLDER)
    sizes = [len(part) for part in (corpus.train, corpus.validation, corpus.test)]
    assert sizes == [2_088_628, 217_646, 245_569] and len(corpus.words) == 33_278
    path = Path(FOLDER or "") / "wikitext-2" / "train.txt.xz"
    text = lzma.decompress(path.read_bytes()).decode().replace("\n", " <eos> ").split()
    ranks = Counter(text)
    assert list(corpus.words[1:]) == [w for w, _ in ranks.most_common() if w != "<eos>"]
    assert [corpus.words[k] for k in corpus.train[:5000].tolist()] == text[:5000]
