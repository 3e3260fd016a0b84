"""A vision transformer that fills in masked patches of images."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import ViTForMaskedImageModeling


def vit_mim(
    *,
    channels: int = 3,
    image: int = 224,
    patch: int = 16,
    width: int = 192,
    layers: int = 4,
    heads: int = 4,
    inner: int = 768,
) -> "ViTForMaskedImageModeling":
    """Hugging Face's vision transformer with a head that predicts the pixels of each patch.

    Args:
        channels: of an image.
        image: height and width, a multiple of `patch`.
        patch: height and width of what is one token.
        width: of the stream, a multiple of `heads`.
        layers: how many.
        heads: of each layer's attention.
        inner: width of the feed-forward layers.

    Returns:
        The network. Of pixels (examples, channels, image, image) and `bool_masked_pos` (examples,
        patches), true where a patch is hidden, it returns `loss`, the mean absolute error on
        hidden patches, and `reconstruction`, of the shape of the pixels.

    Raises:
        ImportError: transformers is missing.

    Source: Xie et al., arXiv:2111.09886 (SimMIM); the settings are those of arXiv:2403.14398,
        table 9, where both convolutions, of the patches and of the head, stay unpenalized.
    """
    try:
        from transformers import ViTConfig, ViTForMaskedImageModeling
    except ImportError as error:
        message = 'this network needs transformers: pip install "dualprox[vit]"'
        raise ImportError(message) from error
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        image_size=image,
        patch_size=patch,
        num_channels=channels,
        encoder_stride=patch,
    )
    return ViTForMaskedImageModeling(config)
