"""English text as the letters that a speech synthesizer reads."""

import re
import unicodedata

import torch
from torch import Tensor

PADDING = "_"
SYMBOLS = PADDING + "-!'(),.:;? abcdefghijklmnopqrstuvwxyz"
_PLACES = {symbol: place for place, symbol in enumerate(SYMBOLS) if symbol != PADDING}
# Those that the transcripts of LJSpeech keep, with what the speaker says.
ABBREVIATIONS = {
    "capt": "captain",
    "co": "company",
    "col": "colonel",
    "dr": "doctor",
    "drs": "doctors",
    "esq": "esquire",
    "ft": "fort",
    "gen": "general",
    "hon": "honorable",
    "jr": "junior",
    "lt": "lieutenant",
    "ltd": "limited",
    "maj": "major",
    "mr": "mister",
    "mrs": "misess",
    "rev": "reverend",
    "sgt": "sergeant",
    "st": "saint",
}
_SHORT = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\.")
_PLAIN = str.maketrans({"’": "'", "‘": "'", "–": "-", "—": "-", "[": "(", "]": ")"})


def normalize_text(text: str) -> str:
    r"""The text in lower case, in the letters and marks of `SYMBOLS` alone.

    Accents go, abbreviations are written out, white space becomes one blank, and other characters
    are left out. Numbers must be written out already.

    Example:
        >>> normalize_text('Mr.  Müller said:\n"No—30!"')
        'mister muller said: no-!'
    """
    parted = unicodedata.normalize("NFKD", text.translate(_PLAIN)).lower()
    long = _SHORT.sub(lambda found: ABBREVIATIONS[found[1]], parted)
    blank = re.sub(r"\s+", " ", long).strip()
    return "".join(letter for letter in blank if letter in _PLACES)


def letters_of(text: str) -> Tensor:
    """Places in `SYMBOLS` of a normalized text, int64 (letters,); 0 is for padding.

    Example:
        >>> letters_of("A cat").tolist()
        [12, 11, 14, 12, 31]
    """
    return torch.tensor([_PLACES[letter] for letter in normalize_text(text)], dtype=torch.int64)
