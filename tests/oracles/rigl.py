"""RigL with SGD in numpy float64, as slow and as close to print as can be.

Paper: Evci et al., "Rigging the Lottery: Making All Tickets Winners" (arXiv:1911.11134),
Algorithm 1 and section 3.
"""

import math

import numpy as np


class RigL:
    r"""Algorithm 1 over some layers, each the set theta of its live flat indices.

    With k = f(t) |theta|, f(t) = alpha / 2 (1 + cos(t pi / T_end)): I_drop = ArgTopK(-|theta|, k),
    I_grow = ArgTopK over i not in theta \ I_drop of |grad|. New connections start at zero; one
    that is dropped and grown at once was never gone. SGD has momentum and weight decay, in torch's
    form: buffer <- momentum buffer + (grad + decay w), w <- w - lr buffer, the first buffer being
    the first gradient. Dense parameters are layers whose indices are all live.
    """

    def __init__(self, weights, live, lr, momentum, decay, alpha, delta_t, t_end):
        self.w = [w.astype(np.float64).ravel() for w in weights]
        self.live = [set(indices) for indices in live]
        self.buffer = [{} for _ in weights]
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.alpha, self.delta_t, self.t_end, self.t = alpha, delta_t, t_end, 0
        for w, theta in zip(self.w, self.live, strict=True):
            for i in range(len(w)):
                if i not in theta:
                    w[i] = 0.0

    def step(self, gradients):
        """One turn of the loop, with the dense gradients."""
        self.t += 1
        if self.t % self.delta_t == 0 and self.t < self.t_end:
            f = self.alpha / 2 * (1 + math.cos(self.t * math.pi / self.t_end))
            for layer, gradient in enumerate(gradients):
                self.update_connections(layer, gradient.ravel(), f)
            return
        for w, theta, buffer, gradient in zip(
            self.w, self.live, self.buffer, gradients, strict=True
        ):
            flat = gradient.ravel()
            started = bool(buffer) or self.t > 1
            for i in theta:
                g = flat[i] + self.decay * w[i]
                buffer[i] = self.momentum * buffer.get(i, 0.0) + g if started else g
                w[i] -= self.lr * buffer[i]

    def update_connections(self, layer, gradient, f):
        """Drop, then grow."""
        w, theta, buffer = self.w[layer], self.live[layer], self.buffer[layer]
        k = math.floor(f * len(theta))
        drop = sorted(theta, key=lambda i: abs(w[i]))[:k]
        stay = theta - set(drop)
        outside = [i for i in range(len(w)) if i not in stay]
        grow = sorted(outside, key=lambda i: -abs(gradient[i]))[:k]
        new = stay | set(grow)
        for i in (theta - new) | (new - theta):
            w[i] = 0.0
            buffer.pop(i, None)
        self.live[layer] = new
