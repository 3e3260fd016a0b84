"""Initial weights of networks that do not start from torch's defaults."""

from torch import nn


def init_he_(model: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 2 / (outputs * kernel)); zero their biases.

    In place; other layers stay as they are.

    Args:
        model: any module.

    Source: He et al., arXiv:1502.01852, equation (14).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
