"""The maker of Hugging Face's vision transformer for masked images."""

import sys
from typing import Any

import pytest
import torch

import dualprox as dp
from dualprox.lab.models import vit_mim

pytestmark = pytest.mark.filterwarnings("ignore")  # of another package


def test_the_paper_trains_two_million_weights():
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = vit_mim()
    width, inner, pixels, patches = 192, 768, 3 * 16 * 16, (224 // 16) ** 2
    tokens = 2 * width + (patches + 1) * width  # of the class and of what is hidden; positions
    layer = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    convolutions = (pixels + 1) * width + (width + 1) * pixels
    count = tokens + 4 * layer + 2 * width + convolutions
    assert sum(p.numel() for p in model.parameters()) == count == 2_113_920


def test_it_learns_the_pixels_of_hidden_patches_of_small_images():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model: Any = vit_mim(channels=1, image=8, patch=4, width=6, layers=1, heads=2, inner=10).eval()
    x, hidden = torch.randn(3, 1, 8, 8), torch.rand(3, 4) < 0.5
    out = model(x, bool_masked_pos=hidden)
    assert out.reconstruction.shape == x.shape
    errors = [
        (out.reconstruction - x)[b, 0, 4 * (p // 2) :, 4 * (p % 2) :][:4, :4].abs().mean()
        for b in range(3)
        for p in range(4)
        if hidden[b, p]
    ]
    torch.testing.assert_close(out.loss, torch.stack(errors).mean())


def test_all_linear_layers_are_penalized_and_convolutions_can_stay_free():
    pytest.importorskip("transformers")
    model = vit_mim(image=8, patch=4, width=6, layers=2, heads=2, inner=10)
    groups = dp.param_groups(model, dp.NuclearNorm(1e-4), exclude=[torch.nn.Conv2d])
    penalized = [row.shape for row in groups.rows if row.penalty is not None]
    assert sorted(penalized) == sorted(2 * ([(6, 6)] * 4 + [(10, 6), (6, 10)]))
    free = [row.shape for row in groups.rows if row.penalty is None and len(row.shape) == 2]
    assert not free


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "dualprox\[vit\]"'):
        vit_mim()
