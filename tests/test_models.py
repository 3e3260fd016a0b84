"""Networks of the recipes: sizes against counts made by hand, and what they read."""

import pytest
import torch

from dualprox.lab import models
from dualprox.lab.models.resnet import BasicBlock, Bottleneck


def size(model):
    return sum(p.numel() for p in model.parameters())


def outputs(model, x, kind):
    """Shapes of what each layer of a kind writes, on the way through the model."""
    shapes = []
    handles = [
        module.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[1:])))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return shapes


def require_normal(weight, std):
    """Of this standard deviation, and with tails that a uniform distribution does not have."""
    weight = weight.detach()
    few = 4 * std / weight.numel() ** 0.5
    assert abs(float(weight.mean())) < few and abs(float(weight.std()) - std) < few
    assert float(weight.abs().max()) > 2.5 * std


def test_resnet20_has_the_published_size():
    """0.27 M weights (He et al., table 6); 1x1 shortcuts add 2 convolutions with norms."""
    convolutions = 3 * 16 * 9 + 6 * 16 * 16 * 9
    convolutions += 16 * 32 * 9 + 5 * 32 * 32 * 9 + 32 * 64 * 9 + 5 * 64 * 64 * 9
    norms = 2 * (16 + 6 * 16 + 6 * 32 + 6 * 64)
    linear = 64 * 10 + 10
    assert convolutions + norms + linear == 269_722
    shortcuts = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    model = models.resnet(3, (16, 32, 64), 10)
    assert size(model) == 269_722 + shortcuts
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 20 + 2


@pytest.mark.parametrize(("blocks", "stride"), [(1, 1), (2, 2)])
def test_a_resnet_halves_its_resolution_at_every_later_stage(blocks, stride):
    model = models.resnet(3, (4, 6, 8), 5, blocks=blocks, stride=stride)
    sizes = []
    for module in model.children():
        if isinstance(module, BasicBlock):
            module.register_forward_hook(lambda _, args, out: sizes.append(tuple(out.shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    edge = 32 // stride
    stages = [(4, edge, edge), (6, edge // 2, edge // 2), (8, edge // 4, edge // 4)]
    assert sizes == [stage for stage in stages for _ in range(blocks)]


def conv(state, x, name, stride):
    """A convolution by its definition, then a fresh norm."""
    weight = state[f"{name}.weight"]
    edge = (x.shape[-1] - 1) // stride + 1
    reach = weight.shape[-1] // 2
    padded = torch.nn.functional.pad(x, [reach] * 4)
    out = torch.zeros(len(x), len(weight), edge, edge, dtype=x.dtype)
    for row in range(edge):
        for column in range(edge):
            i, j = row * stride, column * stride
            window = padded[:, :, i : i + 2 * reach + 1, j : j + 2 * reach + 1]
            out[:, :, row, column] = torch.einsum("nchw,ochw->no", window, weight)
    return out / (1 + 1e-5) ** 0.5  # a fresh norm divides by sqrt(1 + eps)


def test_a_basic_block_is_its_convolutions_beside_its_shortcut():
    torch.manual_seed(0)
    block = BasicBlock(3, 5, 2).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    state = block.state_dict()

    inner = conv(state, x, "conv1", 2).clamp_min(0)
    expected = conv(state, inner, "conv2", 1) + conv(state, x, "shortcut.conv", 2)
    expected = expected.clamp_min(0)
    torch.testing.assert_close(block(x), expected)
    assert isinstance(BasicBlock(4, 4, 1).shortcut, torch.nn.Identity)


def test_a_bottleneck_is_its_convolutions_beside_its_shortcut():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for width, stride in ((12, 2), (8, 1)):
        block = Bottleneck(8, width, stride).double().eval()
        state = block.state_dict()
        inner = conv(state, x, "conv1", 1).clamp_min(0)
        inner = conv(state, inner, "conv2", stride).clamp_min(0)
        plain = isinstance(block.shortcut, torch.nn.Identity)
        assert plain == (stride == 1)
        beside = x if plain else conv(state, x, "shortcut.conv", stride)
        expected = (conv(state, inner, "conv3", 1) + beside).clamp_min(0)
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("images", "edge", "classes", "count"),
    [
        ("small", 32, 10, 23_520_842),
        ("small", 32, 100, 23_705_252),
        ("large", 224, 1000, 25_557_032),
    ],
)
def test_resnet50_has_the_published_size_and_resolutions(images, edge, classes, count):
    with torch.device("meta"):
        model = models.resnet50(3, classes, images=images)
        assert size(model) == count
        shapes = outputs(model, torch.zeros(2, 3, edge, edge), Bottleneck)
    start = {"small": 32, "large": 56}[images]  # 224 / 2 / 2
    blocks = [(256, 1, 3), (512, 2, 4), (1024, 4, 6), (2048, 8, 3)]
    assert shapes == [
        (width, start // step, start // step) for width, step, times in blocks for _ in range(times)
    ]


def test_resnet50_starts_from_torchs_weights_on_small_images_and_from_hes_on_large():
    torch.manual_seed(0)
    name, fan_in, fan_out = "stage4block2.conv2.weight", 512 * 9, 512 * 9
    small = models.resnet50(3, 10).state_dict()
    assert float(small[name].abs().max()) == pytest.approx(fan_in**-0.5, rel=1e-3)  # uniform
    large = models.resnet50(3, 10, images="large").state_dict()
    require_normal(large[name], (2 / fan_out) ** 0.5)
    require_normal(large["stage4block2.conv1.weight"], (2 / 512) ** 0.5)
    for state in (small, large):
        assert float(state["fc.weight"].abs().max()) == pytest.approx(2048**-0.5, rel=1e-3)
    with pytest.raises(ValueError, match="images must be 'small' or 'large', got 'tiny'"):
        models.resnet50(3, 10, images="tiny")  # type: ignore[arg-type]


def test_conv1d_has_the_size_that_its_widths_say():
    model = models.conv1d(1, (32, 64, 128), 10)
    convolutions = 1 * 32 * 80 + 32 * 64 * 9 + 64 * 128 * 9
    assert size(model) == convolutions + 2 * (32 + 64 + 128) + 128 * 10 + 10
    lengths = []
    for name, module in model.named_children():
        if name.startswith("conv"):
            module.register_forward_hook(lambda _, args, out: lengths.append(out.shape[-1]))
    assert model(torch.randn(2, 1, 8000)).shape == (2, 10)
    assert lengths == [1000, 500, 250]


def test_mlp_has_the_size_that_its_widths_say():
    assert size(models.mlp(64, (256, 128), 10)) == 65 * 256 + 257 * 128 + 129 * 10
    assert size(models.mlp(64, (), 10)) == 65 * 10


def test_lenet5_has_the_published_size_and_reads_rows_of_pixels_too():
    model = models.lenet5(1, 10).eval()
    assert size(model) == 431_080  # 25*20+20 + 25*20*50+50 + 800*500+500 + 500*10+10
    assert models.lenet5(3, 7)(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    flat = models.lenet5(1, 10, flat=True).eval()
    flat.load_state_dict(model.state_dict())
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat(images.flatten(1)), model(images))
    # The second convolution must see the first one's maxima in their places.
    state = {name: value.double() for name, value in model.state_dict().items()}
    x = images.double()
    for layer in ("conv1", "conv2"):
        windows = x.unfold(2, 5, 1).unfold(3, 5, 1)
        x = torch.einsum("nchwij,ocij->nohw", windows, state[f"{layer}.weight"])
        x = (x + state[f"{layer}.bias"].view(-1, 1, 1)).clamp_min(0)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    hidden = (x.flatten(1) @ state["fc1.weight"].T + state["fc1.bias"]).clamp_min(0)
    expected = hidden @ state["fc2.weight"].T + state["fc2.bias"]
    torch.testing.assert_close(model.double()(images.double()), expected)


def test_vgg19_has_the_published_size_and_resolutions():
    with torch.device("meta"):
        model = models.vgg19(3, 10)
        # 19 layers with weights in the original, two of whose Linear layers are left out.
        layers = [m for m in model if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(layers) == 17
        assert size(model) == 20_040_522
        assert size(models.vgg19(3, 100)) == 20_040_522 + 90 * 513
        shapes = outputs(model, torch.zeros(2, 3, 32, 32), torch.nn.MaxPool2d)
        assert shapes == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]
        kinds = [type(m).__name__ for m in list(model)[:7]]
        assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d"]


def test_vgg19_starts_from_he_weights():
    torch.manual_seed(0)
    state = models.vgg19(3, 10).state_dict()
    for name, width in (("conv1", 64), ("conv3", 128), ("conv16", 512)):
        require_normal(state[f"{name}.weight"], (2 / (9 * width)) ** 0.5)
        assert not state[f"{name}.bias"].any()
    assert float(state["fc.weight"].abs().max()) == pytest.approx(512**-0.5, rel=1e-2)
    assert (state["norm7.weight"] == 1).all() and not state["norm7.bias"].any()
