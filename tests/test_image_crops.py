"""Random boxes and batched resampling, beside one image at a time."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dualprox.lab.data.crops import random_boxes, random_resized_crop, resize_boxes


def one_by_one(x, boxes, size):
    """Torch's own antialiased resizing of every box by itself, in float64."""
    images = []
    for image, (top, left, height, width) in zip(x.double(), boxes.tolist(), strict=True):
        box = image[None, :, top : top + height, left : left + width]
        resized = nn.functional.interpolate(box, (size, size), mode="bilinear", antialias=True)
        images.append(resized[0])
    return torch.stack(images)


def boxes_in_python(count, height, width, scale, ratio, seed):
    """The published rule, a try at a time, with Python's random numbers."""
    dice, boxes = random.Random(seed), []
    for _ in range(count):
        for _ in range(10):
            area = height * width * dice.uniform(*scale)
            shape = math.exp(dice.uniform(math.log(ratio[0]), math.log(ratio[1])))
            wide, tall = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < wide <= width and 0 < tall <= height:
                place = dice.randint(0, height - tall), dice.randint(0, width - wide)
                boxes.append((*place, tall, wide))
                break
        else:
            wide, tall = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
            boxes.append(((height - tall) // 2, (width - wide) // 2, tall, wide))
    return np.array(boxes)


@pytest.mark.parametrize("size", [1, 7, 32, 50])
@pytest.mark.parametrize("shape", [(32, 32), (20, 45)])
def test_a_batch_of_boxes_is_resized_as_one_at_a_time(shape, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((40, 3, *shape), generator=generator) * 255
    boxes = random_boxes(40, shape[0], shape[1], generator)
    expected = one_by_one(x, boxes, size)
    torch.testing.assert_close(resize_boxes(x, boxes, size).double(), expected, atol=2e-3, rtol=0)
    whole = x.round().to(torch.uint8)
    resized = resize_boxes(whole, boxes, size)
    assert resized.dtype == torch.uint8
    assert (resized.double() - one_by_one(whole, boxes, size)).abs().max() < 0.51


def test_pillow_resizes_a_box_to_the_same_pixels():
    x = torch.randint(0, 256, (3, 3, 40, 30), generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 40, 30], [5, 2, 30, 25], [39, 29, 1, 1]])
    for image, box, mine in zip(x, boxes.tolist(), resize_boxes(x, boxes, 16), strict=True):
        top, left, height, width = box
        picture = Image.fromarray(image.permute(1, 2, 0).byte().numpy())
        cut = picture.crop((left, top, left + width, top + height))
        theirs = np.asarray(cut.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        # Pillow rounds after each axis.
        assert np.abs(theirs - mine.permute(1, 2, 0).numpy()).max() <= 1


def test_a_whole_box_of_the_same_size_is_the_image():
    x = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 9, 9]] * 2)
    assert torch.equal(resize_boxes(x, boxes, 9), x)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (224, 224, (0.08, 1.0), (3 / 4, 4 / 3)),
        (60, 200, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.67, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_boxes_are_spread_as_the_published_rule_spreads_them(height, width, scale, ratio):
    count = 20_000
    mine = random_boxes(count, height, width, torch.Generator().manual_seed(1), scale, ratio)
    found, expected = mine.numpy(), boxes_in_python(count, height, width, scale, ratio, seed=2)
    top, left, tall, wide = found.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + tall <= height).all() and (left + wide <= width).all()

    def features(boxes):
        top, left, tall, wide = boxes.T.astype(float)
        return np.stack(
            [tall * wide, wide / tall, top + tall / 2, left + wide / 2, tall * wide * wide]
        )

    for one, other in zip(features(found), features(expected), strict=True):
        error = math.hypot(one.std() / count**0.5, other.std() / len(other) ** 0.5)
        assert abs(one.mean() - other.mean()) < 5 * error
        assert np.abs(np.quantile(one, [0.1, 0.5, 0.9]) - np.quantile(other, [0.1, 0.5, 0.9])).max(
            initial=0
        ) < 0.05 * (one.max() - one.min())


def test_where_nothing_fits_the_box_is_central_and_within_the_ratio():
    generator = torch.Generator().manual_seed(0)
    for height, width, expected in [
        (10, 1000, (0, 493, 10, 13)),
        (1000, 10, (493, 0, 13, 10)),
    ]:
        boxes = random_boxes(50, height, width, generator, scale=(0.9, 1.0))
        assert boxes.tolist() == [list(expected)] * 50


def test_a_random_resized_crop_depends_on_its_generator_alone():
    x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)

    def crop(seed):
        return random_resized_crop(x, 24, torch.Generator().manual_seed(seed), scale=(0.3, 1))

    first = crop(0)
    assert first.shape == (8, 3, 24, 24) and first.dtype == torch.uint8
    torch.manual_seed(5)
    assert torch.equal(crop(0), first) and not torch.equal(crop(1), first)
    boxes = random_boxes(8, 32, 32, torch.Generator().manual_seed(0), (0.3, 1))
    assert torch.equal(first, resize_boxes(x, boxes, 24))
    assert len({tuple(box) for box in boxes.tolist()}) == 8


@pytest.mark.gpu
def test_every_device_sees_the_same_crops():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    here = random_resized_crop(x, 24, torch.Generator().manual_seed(0))
    there = random_resized_crop(x.cuda(), 24, torch.Generator().manual_seed(0))
    assert there.is_cuda and (here.int() - there.cpu().int()).abs().max() <= 1
