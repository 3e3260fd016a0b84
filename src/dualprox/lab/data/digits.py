"""scikit-learn's bundled handwritten digits: the data that every installation has."""

import torch

from .split import Split


def digits() -> Split:
    """1797 images of 8x8, a fixed 80/20 split.

    Pixels are scaled to [0, 1]. The split is stratified and the same for every seed of a run.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x, val_x, y, val_y = train_test_split(
        images / 16.0, labels, test_size=0.2, stratify=labels, random_state=0
    )
    x, val_x = (torch.from_numpy(part).float() for part in (x, val_x))
    y, val_y = (torch.from_numpy(part).long() for part in (y, val_y))
    return Split(x, y, val_x, val_y, image=(8, 8))
