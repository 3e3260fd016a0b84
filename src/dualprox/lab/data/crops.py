"""Random boxes of images, and a batch of images resampled to one size within them."""

import math

import torch
from torch import Tensor

TRIES = 10
Range = tuple[float, float]
SCALE: Range = (0.08, 1.0)
RATIO: Range = (3 / 4, 4 / 3)


def random_boxes(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    scale: Range = SCALE,
    ratio: Range = RATIO,
) -> Tensor:
    """Boxes of random area and aspect ratio, each anywhere in an image.

    The share of the area is uniform, the ratio of width to height log-uniform. Of ten boxes the
    first that fits is taken; if none does, the largest central one with a ratio in the range.

    Args:
        count: how many boxes, >= 1.
        height: of the images, in pixels, >= 1.
        width: of the images, in pixels, >= 1.
        generator: on the CPU.
        scale: the least and the greatest share of the area, in (0, 1].
        ratio: the least and the greatest ratio of width to height, > 0.

    Returns:
        int64 (count, 4), on the CPU: top, left, height, width.

    Source: Szegedy et al., arXiv:1409.4842, section 6.
    """
    draws = torch.rand((4, TRIES, count), generator=generator, dtype=torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = map(math.log, ratio)
    shape = (low + (high - low) * draws[1]).exp()
    widths, heights = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    tops = (draws[2] * (height - heights + 1)).floor()
    lefts = (draws[3] * (width - widths + 1)).floor()
    boxes = torch.stack((tops, lefts, heights, widths), dim=-1)
    places = torch.arange(TRIES).unsqueeze(1)
    first = torch.where(fits, places, TRIES).amin(0)
    boxes = torch.cat((boxes, _central_box(height, width, ratio).expand(1, count, 4)))
    return boxes[first, torch.arange(count)].long()


def _central_box(height: int, width: int, ratio: Range) -> Tensor:
    """The largest box in the middle of an image whose ratio is in the range, float64 (4,)."""
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return torch.tensor((top, left, box_height, box_width), dtype=torch.float64)


def resize_boxes(x: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Resample one box of each image to `size` x `size` pixels, with antialiasing.

    A pixel of the result is the mean of the box's pixels around its place, weighted by a triangle
    that is as wide as two pixels of the result, or of the image where these are larger. Both axes
    are a matrix product, whole batches at a time.

    Args:
        x: (images, channels, height, width), any dtype; whole numbers are rounded at the end.
        boxes: (images, 4), whole numbers: top, left, height, width, within the images.
        size: >= 1.

    Returns:
        New (images, channels, size, size) of the same dtype and device.

    Example:
        >>> x = torch.tensor([[[[0.0, 1, 2, 9], [4, 5, 6, 9]]]])
        >>> resize_boxes(x, torch.tensor([[0, 0, 2, 3]]), 1).tolist()
        [[[[3.0]]]]
    """
    top, left, height, width = boxes.to(x.device, torch.float32, non_blocking=True).T
    rows = _weights(top, height, x.shape[2], size)
    columns = _weights(left, width, x.shape[3], size)
    # Channels and rows as one axis: one product for each image in place of one for each channel.
    narrowed = torch.bmm(x.float().flatten(1, 2), columns.transpose(1, 2))
    resized = rows.unsqueeze(1) @ narrowed.view(*x.shape[:3], size)
    return (resized if x.dtype.is_floating_point else resized.round()).to(x.dtype)


def _weights(start: Tensor, length: Tensor, size_in: int, size_out: int) -> Tensor:
    """The weights of old pixels in new ones, (images, size_out, size_in), rows adding up to 1."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    old = torch.arange(size_in, device=start.device) + 0.5
    new = torch.arange(size_out, device=start.device).view(-1, 1) + 0.5
    scale = length / size_out
    distance = (old - start - new * scale).abs() / scale.clamp_min(1)
    inside = (old > start) & (old < start + length)
    weights = torch.where(inside, (1 - distance).clamp_min(0), 0)
    return weights / weights.sum(-1, keepdim=True)


def random_resized_crop(
    x: Tensor,
    size: int,
    generator: torch.Generator,
    scale: Range = SCALE,
    ratio: Range = RATIO,
) -> Tensor:
    """A random box of each image, resampled to `size` x `size` pixels.

    Args:
        x: (images, channels, height, width), any dtype.
        size: >= 1.
        generator: on the CPU, so that every device sees the same boxes.
        scale: the least and the greatest share of the area in a box.
        ratio: the least and the greatest ratio of width to height.

    Returns:
        New (images, channels, size, size) of the same dtype and device.

    Example:
        >>> x = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
        >>> random_resized_crop(x, 2, torch.Generator().manual_seed(0)).tolist()
        [[[[17, 20], [43, 46]]]]
    """
    boxes = random_boxes(len(x), x.shape[2], x.shape[3], generator, scale, ratio)
    return resize_boxes(x, boxes, size)
