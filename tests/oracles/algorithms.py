"""The papers' algorithms in numpy float64, one class each, as slow and as close to print as can be.

An algorithm holds one tensor `w`. `step(grad)` advances it, `structured()` returns the solution of
the last subproblem, `restart()` starts a stage, `ramp = True` makes c_i = min(c sqrt(i), 1) with i
the steps of the stage. `c` is the papers' weight of the new point.

Papers: RMDA, "Training Structured Neural Networks Through Manifold Identification and Variance
Reduction" (arXiv:2112.02612), Algorithm 1; RAMDA, "Regularized Adaptive Momentum Dual Averaging"
(arXiv:2403.14398), Algorithms 1 to 3 and equations (2) to (7).
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Solved:
    """A subproblem's answer and what it took."""

    point: np.ndarray
    iterations: int
    certificate: float


def objective(penalty, v, z0, d, tau, z):
    """Q(z) = <v, z> + 1/2 <z - z0, D (z - z0)> + tau psi(z), RAMDA eq. (4)."""
    return float((v * z).sum() + 0.5 * (d * (z - z0) ** 2).sum() + tau * penalty.value(z))


class Exact:
    """The global minimizer; with a = D z0 - v the problem is 1/2 <z, D z> - <a, z> + tau psi(z)."""

    def solve(self, penalty, v, z0, d, tau, start):
        """Ignore the start: the answer is unique or chosen by objective."""
        return Solved(penalty.metric_prox(d * z0 - v, d, tau), 1, 0.0)


class ProximalGradient:
    """RAMDA Algorithm 2, `PG`.

    Step theta = 1 / max(D), halved for a nonconvex penalty. Groups that are provably zero start at
    zero. Stops after the iteration (at least `min_iter`) whose relative decrease
    (Q(Z^{j-1}) - Q(Z^j)) / (|Q(Z^j)| + 1) is below a positive `rtol` (section 6), or after any
    iteration on criterion (7): the subgradient s = (D - 1/theta) (Z^j - Z^{j-1}) of Q at Z^j has
    norm <= `tol`. Returns no point above the start, the second half of (7).
    """

    def __init__(self, max_iter=100, rtol=1e-8, min_iter=2, tol=None):
        self.max_iter, self.rtol, self.min_iter, self.tol = max_iter, rtol, min_iter, tol

    def solve(self, penalty, v, z0, d, tau, start):
        """Iterate."""
        theta = 1.0 / d.max()
        if not penalty.is_convex:
            theta /= 2
        z = start.copy()
        dead = penalty.screened(d * z0 - v, tau)
        if dead is not None:
            z[dead] = 0.0
        first, q_first = z, objective(penalty, v, z0, d, tau, z)
        q, j, certificate = q_first, 0, math.inf
        while j < self.max_iter:
            j += 1
            new = penalty.prox(z - theta * (v + d * (z - z0)), theta * tau)
            q_new = objective(penalty, v, z0, d, tau, new)
            certificate = float(np.linalg.norm((d - 1 / theta) * (new - z)))
            decrease = math.inf if q == math.inf else (q - q_new) / (abs(q_new) + 1)
            z, q = new, q_new
            stalled = self.rtol > 0 and j >= self.min_iter and decrease < self.rtol
            if stalled or (self.tol is not None and certificate <= self.tol):
                break
        return Solved(z if q <= q_first else first, j, certificate)


def default_solver(penalty):
    """Return what `solver=None` means: exact where the penalty offers it under a metric."""
    return Exact() if penalty.offers_metric else ProximalGradient()


class RMDA:
    """RMDA paper, Algorithm 1.

    beta_t = sqrt(t), s_t = eta beta_t, alpha_t = alpha_{t-1} + s_t, V_t = V_{t-1} + s_t G_t,
    What_t = argmin <V_t, W> + beta_t / 2 ||W - W0||^2 + alpha_t psi(W),
    W_t = (1 - c_t) W_{t-1} + c_t What_t.
    """

    def __init__(self, w, penalty, lr, c):
        self.w, self.penalty, self.lr, self.c, self.ramp = w.copy(), penalty, lr, c, False
        self.restart()

    def restart(self):
        """RAMDA appendix A.1: anchor <- iterate, sums and counter <- 0."""
        self.anchor, self.t, self.alpha = self.w.copy(), 0, 0.0
        self.grad_sum = np.zeros_like(self.w)

    def weight(self):
        """Return c_t, ramped in the final stage (RAMDA appendix A.1)."""
        return min(self.c * math.sqrt(self.t), 1.0) if self.ramp else self.c

    def step(self, grad):
        """Advance once."""
        self.t += 1
        s = self.lr * math.sqrt(self.t)
        self.alpha += s
        self.grad_sum = self.grad_sum + s * grad
        c = self.weight()
        self.w = (1 - c) * self.w + c * self.structured()

    def structured(self):
        """What_t = prox_{alpha_t / beta_t psi}(W0 - V_t / beta_t)."""
        beta = math.sqrt(self.t)
        return self.penalty.prox(self.anchor - self.grad_sum / beta, self.alpha / beta)


class RAMDA:
    """RAMDA paper, Algorithm 1, equations (2) to (5).

    s_t = eta sqrt(t), V_t += s_t G_t, U_t += s_t G_t o G_t, P_t = Diag(cbrt(U_t) + eps),
    alpha_t += s_t, What_t ~ argmin alpha_t psi(W) + <V_t, W> + 1/2 <W - W0, P_t (W - W0)> started
    from W_{t-1}, W_t = (1 - c_t) W_{t-1} + c_t What_t.
    """

    def __init__(self, w, penalty, lr, c, eps, solver=None):
        self.w, self.penalty, self.lr, self.c, self.eps = w.copy(), penalty, lr, c, eps
        self.ramp = False
        self.solver = solver or default_solver(penalty)
        self.restart()

    def restart(self):
        """Appendix A.1: anchor <- iterate, alpha, V, U and the counter <- 0."""
        self.anchor, self.t, self.alpha = self.w.copy(), 0, 0.0
        self.grad_sum, self.square_sum = np.zeros_like(self.w), np.zeros_like(self.w)

    def weight(self):
        """Return c_t, ramped in the final stage (appendix A.1)."""
        return min(self.c * math.sqrt(self.t), 1.0) if self.ramp else self.c

    def solve(self, start):
        """Solve (4) with the current sums."""
        metric = np.cbrt(self.square_sum) + self.eps
        return self.solver.solve(
            self.penalty, self.grad_sum, self.anchor, metric, self.alpha, start
        )

    def step(self, grad):
        """Advance once."""
        self.t += 1
        s = self.lr * math.sqrt(self.t)
        self.alpha += s
        self.grad_sum = self.grad_sum + s * grad
        self.square_sum = self.square_sum + s * grad * grad
        c = self.weight()
        self.solved = self.solve(self.w)
        self.w = (1 - c) * self.w + c * self.solved.point

    def structured(self):
        """Solve (4) again from the state, started at the current iterate."""
        return self.solve(self.w).point


class ProxSGD:
    """ProxSGD (Yang et al. 2020) in the RAMDA paper's comparison, a special case of eq. (6).

    m_t = rho m_{t-1} + (1 - rho) G_t with m_0 = 0, W_t = prox_{eta psi}(W_{t-1} - eta m_t).
    """

    def __init__(self, w, penalty, lr, rho):
        self.w, self.penalty, self.lr, self.rho = w.copy(), penalty, lr, rho
        self.m = np.zeros_like(w)

    def step(self, grad):
        """Advance once."""
        self.m = self.rho * self.m + (1 - self.rho) * grad
        self.w = self.penalty.prox(self.w - self.lr * self.m, self.lr)

    def structured(self):
        """The iterate itself is a prox output."""
        return self.w


class ProxAdamW:
    """RAMDA paper, Algorithm 3 (ProxGen, Yun et al. 2021) in the form of AdamW, eq. (6) times eta.

    m_t, v_t: Adam's averages, mhat = m_t / (1 - b1^t), vhat = v_t / (1 - b2^t), with amsgrad the
    running maximum of v_t in place of v_t. W_t = argmin <eta mhat, W> + eta psi(W)
    + 1/2 <W - W0, (sqrt(vhat) + eps) (W - W0)>, W0 = (1 - eta wd) W_{t-1}, started from W_{t-1}.
    """

    def __init__(self, w, penalty, lr, betas, eps, weight_decay=0.0, amsgrad=False, solver=None):
        self.w, self.penalty, self.lr, self.betas, self.eps = w.copy(), penalty, lr, betas, eps
        self.weight_decay, self.amsgrad = weight_decay, amsgrad
        self.solver = solver or default_solver(penalty)
        self.t, self.m = 0, np.zeros_like(w)
        self.v, self.v_max = np.zeros_like(w), np.zeros_like(w)

    def step(self, grad):
        """Advance once."""
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * grad
        self.v = b2 * self.v + (1 - b2) * grad * grad
        self.v_max = np.maximum(self.v_max, self.v)
        m_hat = self.m / (1 - b1**self.t)
        v_hat = (self.v_max if self.amsgrad else self.v) / (1 - b2**self.t)
        center = (1 - self.lr * self.weight_decay) * self.w
        metric = np.sqrt(v_hat) + self.eps
        self.solved = self.solver.solve(
            self.penalty, self.lr * m_hat, center, metric, self.lr, self.w
        )
        self.w = self.solved.point

    def structured(self):
        """The iterate itself solves a subproblem."""
        return self.w
