"""The methods that the papers compare, as they set them for images."""

import dualprox as dp

from ..specs import OptimizerSpec, ProxAdamwSpec, ProxSgdSpec, RamdaSpec, RmdaSpec, SgdSpec
from .tables import Column, Value

RAMDA_PAPER = "arXiv:2403.14398"
RMDA_PAPER = "arXiv:2112.02612"

# ProxGen may not stop before its metric has had a say; RAMDA's metric has one in every iteration.
GEN_SOLVER = dp.ProximalGradient(max_iter=100, rtol=1e-8, min_iter=2)
RAMDA_SOLVER = dp.ProximalGradient(max_iter=100, rtol=1e-8, min_iter=1)
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "MSGD": SgdSpec(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False),
    "ProxSGD": ProxSgdSpec(lr=0.1, momentum=0.9),
    "ProxSSI": ProxAdamwSpec(lr=1e-3, eps=1e-6, solver=dp.NewtonRaphson(max_iter=100, tol=1e-7)),
    "ProxGen": ProxAdamwSpec(lr=1e-3, eps=1e-8, solver=GEN_SOLVER),
    "RMDA": RmdaSpec(lr=0.1, momentum=0.9),
    "RAMDA": RamdaSpec(lr=1e-2, momentum=0.99, eps=1e-6, solver=RAMDA_SOLVER),
}
# What the scripts of the paper's experiments call an algorithm, and what a recipe does.
SCRIPTS = {name: "ProxAdamW" if name == "ProxGen" else name for name in OPTIMIZERS}
RECIPE_NAMES = {
    "MSGD": "msgd",
    "ProxSGD": "prox_sgd",
    "ProxSSI": "prox_ssi",
    "ProxGen": "prox_gen",
    "RMDA": "rmda",
    "RAMDA": "ramda",
}


def lasso(strength: float) -> dp.GroupLasso | None:
    """Group LASSO on the inputs of layers, the papers' grouping; None without strength."""
    return dp.GroupLasso(strength) if strength else None


def figures(columns: tuple[Column, ...], *texts: str) -> dict[str, Value]:
    """Figures by metric from the texts that a paper prints; "" for none."""
    pairs = zip(columns, texts, strict=True)
    return {column.metric: Value.parsed(text) for column, text in pairs if text}
