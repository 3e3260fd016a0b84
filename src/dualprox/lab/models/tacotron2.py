"""Tacotron 2: from text to mel spectrograms."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Nonlinearity = Literal["linear", "relu", "sigmoid", "tanh"]


@dataclass(frozen=True)
class Speech:
    """What the network says under teacher forcing; places after an utterance's end are zero.

    Args:
        before: (batch, mels, frames), the decoder's spectrogram.
        after: (batch, mels, frames), the same refined by the postnet.
        gate: (batch, frames), logits of whether a frame is the last.
        alignments: (batch, frames, letters), where the decoder looked; rows sum to 1.
    """

    before: Tensor
    after: Tensor
    gate: Tensor
    alignments: Tensor


def inside(lengths: Tensor, count: int) -> Tensor:
    """Which of `count` places lie inside sequences of these lengths: (batch, count), bool."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


def _init_xavier(layer: nn.Linear | nn.Conv1d, followed_by: Nonlinearity) -> None:
    nn.init.xavier_uniform_(layer.weight, nn.init.calculate_gain(followed_by))


def _linear(inputs: int, outputs: int, followed_by: Nonlinearity, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    _init_xavier(layer, followed_by)
    return layer


class NormedConv(nn.Module):
    """A convolution over time that keeps the length, a batch norm, a nonlinearity and dropout.

    Places after a sequence's end are read as zeros, as they are beyond the last of a batch.

    Args:
        width_in: channels read.
        width: channels written.
        followed_by: the nonlinearity, "linear" for none.
    """

    def __init__(self, width_in: int, width: int, followed_by: Nonlinearity) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width, 5, padding=2)
        _init_xavier(self.conv, followed_by)
        self.norm = nn.BatchNorm1d(width)
        nn.init.uniform_(self.norm.weight)
        kinds = {"linear": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh}
        self.nonlinearity = kinds[followed_by]()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, width_in, length) to (batch, width, length); mask: (batch, 1, length)."""
        return self.dropout(self.nonlinearity(self.norm(self.conv(x * mask))))


class Encoder(nn.Module):
    """Three convolutions over the letters, then an LSTM in both directions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormedConv(width, width, "relu") for _ in range(3))
        self.lstm = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Vectors of letters, (batch, width, letters), in context: (batch, letters, width)."""
        mask = inside(lengths, x.shape[2])[:, None]
        for conv in self.convs:
            x = conv(x, mask)
        packed = nn.utils.rnn.pack_padded_sequence(
            x.transpose(1, 2), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        packed, _ = self.lstm(packed)
        out, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=x.shape[2])
        return out


class Prenet(nn.Module):
    """Two Linear layers with ReLU whose dropout stays on after training, as Tacotron's must."""

    def __init__(self, mels: int, width: int) -> None:
        super().__init__()
        self.fc1 = _linear(mels, width, "linear")
        self.fc2 = _linear(width, width, "linear")
        self.rate = 0.5

    def forward(self, x: Tensor) -> Tensor:
        """(..., mels) to (..., width)."""
        for fc in (self.fc1, self.fc2):
            x = functional.dropout(fc(x).relu(), self.rate, training=True)
        return x


class LocationAttention(nn.Module):
    """Attention that sees where it looked at the last frame and at all frames so far.

    The energy of letter j for the query s, with f the convolved weights of the past, is

        e_j = w . tanh(W s + V h_j + U f_j).

    Args:
        query: width of the query.
        memory: width of the letters.
        width: of the sum inside tanh.
        filters: of the convolution over the weights of the past.
        kernel: its size, odd.

    Source: Chorowski et al., arXiv:1506.07503, section 2.1; Shen et al., arXiv:1712.05884.
    """

    def __init__(self, query: int, memory: int, width: int, filters: int, kernel: int) -> None:
        super().__init__()
        self.query = _linear(query, width, "tanh")
        self.memory = _linear(memory, width, "tanh")
        self.location_conv = nn.Conv1d(2, filters, kernel, padding=kernel // 2, bias=False)
        _init_xavier(self.location_conv, "linear")
        self.location = _linear(filters, width, "tanh")
        self.energy = _linear(width, 1, "linear")

    def forward(self, query: Tensor, keys: Tensor, past: Tensor, mask: Tensor) -> Tensor:
        """Weights of the letters for one frame.

        Args:
            query: (batch, query).
            keys: (batch, letters, width), `memory` of the letters.
            past: (batch, 2, letters), the last frame's weights and the sum of all so far.
            mask: (batch, letters), the letters that there are.

        Returns:
            (batch, letters); rows sum to 1, letters that are not there have exactly 0.
        """
        location = self.location(self.location_conv(past).transpose(1, 2))
        energies = self.energy(torch.tanh(self.query(query)[:, None] + keys + location))[..., 0]
        return energies.masked_fill(~mask, -torch.inf).softmax(1)


class Decoder(nn.Module):
    """Two LSTM cells that write a frame at a time, looking at the letters in between."""

    def __init__(self, letters: int, mels: int, prenet: int, width: int) -> None:
        super().__init__()
        self.prenet = Prenet(mels, prenet)
        self.attention_rnn = nn.LSTMCell(prenet + letters, width)
        self.attention = LocationAttention(width, letters, width=128, filters=32, kernel=31)
        self.decoder_rnn = nn.LSTMCell(width + letters, width)
        self.frame = _linear(width + letters, mels, "linear", bias=True)
        self.gate = _linear(width + letters, 1, "sigmoid", bias=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, memory: Tensor, mask: Tensor, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each frame from the true ones before it.

        Args:
            memory: (batch, letters, width of a letter).
            mask: (batch, letters), the letters that there are.
            mel: (batch, mels, frames), the true spectrogram.

        Returns:
            Spectrogram (batch, mels, frames), gate logits (batch, frames), and alignments
            (batch, frames, letters).
        """
        # The first frame follows a frame of zeros; none follows the last.
        previous = self.prenet(functional.pad(mel, (1, -1)).permute(2, 0, 1))
        keys = self.attention.memory(memory)
        state1 = (memory.new_zeros(len(memory), self.attention_rnn.hidden_size),) * 2
        state2 = (memory.new_zeros(len(memory), self.decoder_rnn.hidden_size),) * 2
        context = memory.new_zeros(len(memory), memory.shape[2])
        weights = total = memory.new_zeros(len(memory), memory.shape[1])
        written, looked = [], []
        for frame in previous:
            hidden1, cell1 = self.attention_rnn(torch.cat((frame, context), 1), state1)
            state1 = self.dropout(hidden1), cell1
            past = torch.stack((weights, total), dim=1)
            weights = self.attention(state1[0], keys, past, mask)
            total = total + weights
            context = (weights[:, None] @ memory)[:, 0]
            hidden2, cell2 = self.decoder_rnn(torch.cat((state1[0], context), 1), state2)
            state2 = self.dropout(hidden2), cell2
            written.append(torch.cat((state2[0], context), 1))
            looked.append(weights)
        found = torch.stack(written, dim=1)
        frames, gate = self.frame(found).transpose(1, 2), self.gate(found)[..., 0]
        return frames, gate, torch.stack(looked, dim=1)


class Postnet(nn.Module):
    """Five convolutions that say what a spectrogram lacks."""

    def __init__(self, mels: int, width: int) -> None:
        super().__init__()
        first, last = NormedConv(mels, width, "tanh"), NormedConv(width, mels, "linear")
        inner = (NormedConv(width, width, "tanh") for _ in range(3))
        self.convs = nn.ModuleList((first, *inner, last))

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        """(batch, mels, frames) to the same; mask: (batch, 1, frames)."""
        for conv in self.convs:
            mel = conv(mel, mask)
        return mel


class Tacotron2(nn.Module):
    """A network that reads text and says it as a mel spectrogram.

    Letters in context by convolutions and an LSTM; a decoder that attends to them and writes one
    frame after the other; convolutions that refine the whole. Sizes without an argument are the
    published ones. Linear layers and convolutions start from Glorot's uniform distribution, batch
    norms from U(0, 1).

    Args:
        symbols: different letters.
        mels: channels of a spectrogram.
        width: of a letter's vector, even.
        prenet: width of the decoder's view of the last frame.
        decoder: width of the decoder's LSTMs.
        postnet: channels of the refining convolutions.

    Source: Shen et al., arXiv:1712.05884, section 2; as trained in arXiv:2403.14398, table 5.

    Example:
        >>> model = Tacotron2(30, mels=4, width=8, prenet=4, decoder=8, postnet=8)
        >>> text, text_lengths = torch.zeros(2, 6, dtype=torch.long), torch.tensor([6, 3])
        >>> mel, mel_lengths = torch.zeros(2, 4, 9), torch.tensor([9, 5])
        >>> speech = model(text, text_lengths, mel, mel_lengths)
        >>> speech.after.shape, speech.alignments.shape
        (torch.Size([2, 4, 9]), torch.Size([2, 9, 6]))
        >>> tacotron2_loss(speech, mel, mel_lengths).shape
        torch.Size([])
    """

    def __init__(
        self,
        symbols: int = 148,
        *,
        mels: int = 80,
        width: int = 512,
        prenet: int = 256,
        decoder: int = 1024,
        postnet: int = 512,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        nn.init.xavier_uniform_(self.embedding.weight)
        self.encoder = Encoder(width)
        self.decoder = Decoder(width, mels, prenet, decoder)
        self.postnet = Postnet(mels, postnet)

    def forward(
        self, text: Tensor, text_lengths: Tensor, mel: Tensor, mel_lengths: Tensor
    ) -> Speech:
        """Every frame, from the text and the true frames before it.

        In eval mode what an utterance gives does not depend on its padding, except through the
        prenet's dropout; in training batch norms see the padding too.

        Args:
            text: (batch, letters), int64, padded with anything.
            text_lengths: (batch,), int64, >= 1.
            mel: (batch, mels, frames), the true spectrograms, padded with anything.
            mel_lengths: (batch,), int64, >= 1.

        Returns:
            Spectrograms, gate logits and alignments.
        """
        letters, frames = inside(text_lengths, text.shape[1]), inside(mel_lengths, mel.shape[2])
        memory = self.encoder(self.embedding(text).transpose(1, 2), text_lengths)
        before, gate, alignments = self.decoder(memory, letters, mel)
        there = frames[:, None]
        after = before + self.postnet(before, there)
        return Speech(before * there, after * there, gate * frames, alignments)


def tacotron2_loss(speech: Speech, mel: Tensor, mel_lengths: Tensor) -> Tensor:
    """Squared errors of both spectrograms, and the cross-entropy of where the speech ends.

        mean (before - mel)^2 + mean (after - mel)^2 + mean bce(gate, last)

    Means are over the frames that there are, so padding does not count. (NVIDIA's code divides by
    all frames of the batch, padding included: its loss is smaller by the share of padding.)

    Args:
        speech: of `Tacotron2`.
        mel: (batch, mels, frames), the true spectrograms.
        mel_lengths: (batch,), int64.

    Returns:
        A scalar.

    Source: Shen et al., arXiv:1712.05884, section 2.2.
    """
    there = inside(mel_lengths, mel.shape[2])
    last = torch.arange(mel.shape[2], device=mel.device) == mel_lengths[:, None] - 1
    true = mel.transpose(1, 2)[there]
    loss = functional.binary_cross_entropy_with_logits(
        speech.gate[there], last[there].to(mel.dtype)
    )
    for spectrogram in (speech.before, speech.after):
        loss = loss + functional.mse_loss(spectrogram.transpose(1, 2)[there], true)
    return loss
