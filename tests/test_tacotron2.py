"""Tacotron 2: attention and decoder against slow loops, padding, the published size."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp
from dualprox.lab.models import Tacotron2, tacotron2_loss
from dualprox.lab.models.tacotron2 import LocationAttention, Postnet, Prenet, Speech

MELS = 4
LETTERS, FRAMES = torch.tensor([3, 7, 5]), torch.tensor([9, 4, 6])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def small() -> Any:
    """Without dropout, its norms with statistics of their own."""
    torch.manual_seed(0)
    model = Tacotron2(11, mels=MELS, width=6, prenet=5, decoder=8, postnet=7).double().eval()
    model.decoder.prenet.rate = 0.0
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean = random(module.num_features, seed=seed)
            module.running_var = random(module.num_features, seed=seed).square() + 0.5
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(11, (3, 7), generator=generator)
    return text, LETTERS, random(3, MELS, 9, seed=2), FRAMES


def attended(attention, query, memory, past, there):
    """Weights of one frame for one utterance, letter by letter (Chorowski et al., section 2.1)."""
    state = attention.state_dict()
    filters = state["location_conv.weight"]
    reach = filters.shape[2] // 2
    energies = []
    for j in range(there):
        f = torch.zeros(len(filters), dtype=torch.float64)
        for offset in range(-reach, reach + 1):
            if 0 <= j + offset < past.shape[1]:
                f += filters[:, :, reach + offset] @ past[:, j + offset]
        inner = state["query.weight"] @ query + state["memory.weight"] @ memory[j]
        inner = torch.tanh(inner + state["location.weight"] @ f)
        energies.append(float(state["energy.weight"][0] @ inner.detach()))
    powers = [math.exp(e - max(energies)) for e in energies]
    weights = [p / sum(powers) for p in powers] + [0.0] * (past.shape[1] - there)
    return torch.tensor(weights, dtype=torch.float64)


def test_location_attention_is_its_definition():
    attention = LocationAttention(4, 6, width=5, filters=3, kernel=5).double()
    for seed, param in enumerate(attention.parameters()):
        param.data = random(*param.shape, seed=seed)
    query, memory, past = random(3, 4, seed=5), random(3, 7, 6, seed=6), random(3, 2, 7, seed=7)
    mask = torch.arange(7) < LETTERS[:, None]
    past *= mask[:, None]
    ours = attention(query, attention.memory(memory), past, mask)
    for b, there in enumerate(LETTERS.tolist()):
        expected = attended(attention, query[b], memory[b], past[b], there)
        torch.testing.assert_close(ours[b], expected)
    assert not ours[~mask].any()


def lstm_cell(cell, x, h, c):
    state = cell.state_dict()
    gates = state["weight_ih"] @ x + state["bias_ih"] + state["weight_hh"] @ h + state["bias_hh"]
    enter, forget, new, leave = gates.chunk(4)
    c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


def test_the_decoder_is_its_steps_one_after_the_other():
    decoder = small().decoder
    memory, mel = random(3, 7, 6, seed=3), random(3, MELS, 9, seed=4)
    mask = torch.arange(7) < LETTERS[:, None]
    frames, gates, alignments = decoder(memory, mask, mel)
    for b, there in enumerate(LETTERS.tolist()):
        h1, c1, h2, c2 = (torch.zeros(8, dtype=torch.float64) for _ in range(4))
        context = torch.zeros(6, dtype=torch.float64)
        last, total = torch.zeros(2, 7, dtype=torch.float64)
        frame = torch.zeros(MELS, dtype=torch.float64)
        for t in range(9):
            seen = decoder.prenet.fc2(decoder.prenet.fc1(frame).clamp_min(0)).clamp_min(0)
            h1, c1 = lstm_cell(decoder.attention_rnn, torch.cat((seen, context)), h1, c1)
            past = torch.stack((last, total))
            last = attended(decoder.attention, h1, memory[b], past, there)
            total = total + last
            context = last @ memory[b]
            h2, c2 = lstm_cell(decoder.decoder_rnn, torch.cat((h1, context)), h2, c2)
            found = torch.cat((h2, context))
            torch.testing.assert_close(alignments[b, t], last)
            torch.testing.assert_close(frames[b, :, t], decoder.frame(found))
            torch.testing.assert_close(gates[b, t], decoder.gate(found)[0])
            frame = mel[b, :, t]


def conv(state, x, name):
    """A convolution by its definition, and a norm by its running statistics."""
    weight, padded = state[f"{name}.conv.weight"], nn.functional.pad(x, (2, 2))
    places = [torch.einsum("ik,oik->o", padded[:, t : t + 5], weight) for t in range(x.shape[1])]
    out = torch.stack(places, 1) + state[f"{name}.conv.bias"][:, None]
    mean, var = state[f"{name}.norm.running_mean"], state[f"{name}.norm.running_var"]
    scale = state[f"{name}.norm.weight"] / (var + 1e-5).sqrt()
    return (out - mean[:, None]) * scale[:, None] + state[f"{name}.norm.bias"][:, None]


def test_encoder_and_postnet_are_their_layers():
    model = small()
    text, letters, mel, frames = batch()
    state = model.encoder.state_dict()
    ours = model.encoder(model.embedding(text).transpose(1, 2), letters)
    for b, there in enumerate(letters.tolist()):
        x = model.embedding.weight[text[b, :there]].T
        for layer in range(3):
            x = conv(state, x, f"convs.{layer}").clamp_min(0)
        for suffix, rows in (("", slice(0, 3)), ("_reverse", slice(3, 6))):
            cell = nn.LSTMCell(6, 3).double()
            cell.load_state_dict(
                {key: state[f"lstm.{key}_l0{suffix}"] for key in cell.state_dict()}
            )
            h, c = torch.zeros(2, 3, dtype=torch.float64)
            for t in range(there)[:: -1 if suffix else 1]:
                h, c = lstm_cell(cell, x[:, t], h, c)
                torch.testing.assert_close(ours[b, t, rows], h)
    postnet: Postnet = model.postnet
    refined = postnet(mel, (torch.arange(9) < frames[:, None])[:, None])
    for b, there in enumerate(frames.tolist()):
        x = mel[b, :, :there]
        for layer in range(5):
            x = conv(postnet.state_dict(), x, f"convs.{layer}")
            x = x if layer == 4 else x.tanh()
        torch.testing.assert_close(refined[b, :, :there], x)


def test_padding_changes_nothing():
    model = small()
    text, letters, mel, frames = batch()
    speech = model(text, letters, mel, frames)
    losses = []
    for b in range(3):
        i, j = int(letters[b]), int(frames[b])
        one = text[b : b + 1, :i], letters[b : b + 1], mel[b : b + 1, :, :j], frames[b : b + 1]
        alone = model(*one)
        torch.testing.assert_close(speech.before[b, :, :j], alone.before[0])
        torch.testing.assert_close(speech.after[b, :, :j], alone.after[0])
        torch.testing.assert_close(speech.gate[b, :j], alone.gate[0])
        torch.testing.assert_close(speech.alignments[b, :j, :i], alone.alignments[0])
        assert not speech.before[b, :, j:].any() and not speech.after[b, :, j:].any()
        assert not speech.gate[b, j:].any() and not speech.alignments[b, :, i:].any()
        losses.append(tacotron2_loss(alone, one[2], one[3]) * j)
    whole = tacotron2_loss(speech, mel, frames)
    torch.testing.assert_close(whole, torch.stack(losses).sum() / int(frames.sum()))


def test_the_loss_is_its_sum_frame_by_frame():
    mel, frames = random(3, MELS, 9), FRAMES
    before, after, gate = (
        random(3, MELS, 9, seed=1),
        random(3, MELS, 9, seed=2),
        random(3, 9, seed=3),
    )
    errors, crosses, count = 0.0, 0.0, 0
    for b, there in enumerate(frames.tolist()):
        for t in range(there):
            for m in range(MELS):
                true = float(mel[b, m, t])
                errors += (float(before[b, m, t]) - true) ** 2 + (float(after[b, m, t]) - true) ** 2
            p = 1 / (1 + math.exp(-float(gate[b, t])))
            crosses -= math.log(p if t == there - 1 else 1 - p)
            count += 1
    loss = tacotron2_loss(Speech(before, after, gate, gate), mel, frames)
    assert float(loss) == pytest.approx(errors / count / MELS + crosses / count, rel=1e-12)


def test_the_prenet_keeps_its_dropout_after_training():
    torch.manual_seed(0)
    prenet = Prenet(MELS, 300).eval()
    for fc in (prenet.fc1, prenet.fc2):
        nn.init.constant_(fc.weight, 1 / fc.in_features)
    out = prenet(torch.ones(20, MELS)).detach()
    assert 0.45 < float((out > 0).float().mean()) < 0.55
    assert float(out.mean()) == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(out, prenet(torch.ones(20, MELS)))


def test_the_size_is_the_published_one():
    """28.2 M, with 148 symbols (NVIDIA's implementation, which the paper trains)."""
    with torch.device("meta"):
        model = Tacotron2()
    assert sum(p.numel() for p in model.parameters()) == 28_193_153


def test_convolutions_lstms_and_linear_layers_are_penalized_and_nothing_else():
    rows = dp.param_groups(small(), dp.GroupLasso(1e-4)).rows
    free = {row.name.rpartition(".")[2] for row in rows if row.penalty is None}
    assert free == {"weight", "bias", "bias_ih", "bias_hh"} | {
        f"bias_{part}_l0{way}" for part in ("ih", "hh") for way in ("", "_reverse")
    }
    weights = {row.name for row in rows if row.penalty is None and row.name.endswith("weight")}
    assert weights == {"embedding.weight"} | {
        f"{part}.convs.{i}.norm.weight"
        for part, count in (("encoder", 3), ("postnet", 5))
        for i in range(count)
    }
    assert all(row.penalty in (None, dp.GroupLasso(1e-4)) for row in rows)


def test_every_weight_learns():
    torch.manual_seed(0)
    model = Tacotron2(11, mels=MELS, width=16, prenet=16, decoder=24, postnet=16)
    text, letters, mel, frames = batch()
    mel = mel.float()
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        opt.zero_grad()
        loss = tacotron2_loss(model(text, letters, mel, frames), mel, frames)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    for name, param in model.named_parameters():
        assert param.grad is not None and float(param.grad.abs().sum()) > 0, name
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
