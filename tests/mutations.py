"""Damage to bytes and to JSON, at random; no damage is too stupid for a file on a disk."""

import json
import math
import random
from typing import Any

# Where formats keep lengths, and what breaks who trusts them.
_LENGTHS = (0, 1, 2**7, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three changes."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(_DAMAGES)(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    # Headers lie at the ends.
    near = min(len(content), 64)
    ends = (rng.randrange(near + 1), len(content) - rng.randrange(near + 1))
    return rng.choice((*ends, rng.randrange(len(content) + 1)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 8))):
        place = min(_place(content, rng), len(content) - 1)
        if place >= 0:
            changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: _place(content, rng)]


def _splice(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(_place(content, rng) for _ in range(2))
    part = content[first:last]
    return rng.choice((content[:first] + content[last:], content[:last] + part + content[last:]))


def _length(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(_LENGTHS) % 256**size
    field = value.to_bytes(size, rng.choice(("little", "big")))
    place = _place(content, rng)
    return content[:place] + field + content[place + size :]


def _fill(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(_place(content, rng) for _ in range(2))
    return content[:first] + bytes([rng.choice((0, 32, 255))]) * (last - first) + content[last:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = _place(content, rng)
    return content[:place] + rng.randbytes(rng.choice((1, 7, 300))) + content[place:]


def _replace(content: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0", b"\x80", b"PK\x03\x04", b"junk" * 99, rng.randbytes(400)))


_DAMAGES = (_flip, _flip, _cut, _splice, _length, _length, _fill, _insert, _replace)

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e308, math.nan,
    math.inf, -math.inf, "", "x", "x" * 5000, "\0", "\ud800", "../../etc/passwd", [], [[]], [None],
    [1, "x"], {}, {"": {}}, {"kind": "Run"}, {"kind": []}, {"format": 1}, {"change": "factorize"},
)  # fmt: skip


def damaged_json(text: str, rng: random.Random) -> str:
    """JSON with other values, without keys, with keys twice, nested too deep, or damaged bytes."""
    way = rng.randrange(10)
    if way == 0:
        return damaged(text.encode(), rng).decode("latin1")
    if way == 1:
        depth = rng.choice((50, 900, 100_000))
        return "[" * depth + rng.choice(("", "1" + "]" * depth))
    if way == 2:
        return '{"a":' * 5000 + "1" + "}" * 5000
    try:
        value = json.loads(text)
    except ValueError:
        return text[: rng.randrange(len(text) + 1)]
    if way == 3:
        return json.dumps(rng.choice(_VALUES))
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _changed(value, rng)
    new = json.dumps(value)
    if way == 4 and new.startswith("{") and len(new) > 2:
        first = json.dumps(next(iter(value)))
        return f"{new[:-1]}, {first}: {json.dumps(rng.choice(_VALUES))}}}"
    return new


def _changed(value: Any, rng: random.Random) -> Any:
    """A copy with one change somewhere."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    copy = dict(value) if isinstance(value, dict) else list(value)
    way = rng.random()
    if way < 0.15:
        del copy[key]
    elif way < 0.25 and isinstance(copy, dict):
        copy[rng.choice(("x", "kind", "", "change", "format"))] = copy.pop(key)
    elif way < 0.3 and isinstance(copy, list):
        copy.append(copy[key])
    elif way < 0.4:
        copy[key] = value[rng.choice(keys)]
    else:
        copy[key] = _changed(value[key], rng)
    return copy
