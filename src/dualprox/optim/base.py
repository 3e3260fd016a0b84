"""What the optimizers share: groups and their checks, state, checkpoints, the structured point."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ..checks import is_real, require
from ..penalties import DiagonalPenalty, Penalty
from ..subproblem import Exact, ProximalGradient, Solution, Solver, Subproblem

# Objects a checkpoint keeps as text. On load the optimizer's own stay in force.
_LIVE_KEYS = ("penalty", "solver", "impl")


class Options(TypedDict, total=False):
    """Keyword options of every optimizer, with torch's names.

    Args:
        maximize: ascend along the gradient instead of descending; default False.
        impl: which implementation of the step to use, "auto" or "eager"; default "auto".
        foreach: only None or False; `impl` chooses the implementation.
        fused: only None or False; `impl` chooses the implementation.
        capturable: only False.
        differentiable: only False.
        certify: compute the certificate of every subproblem in the step that solves it, for
            `solver_report`; costs about one more pass over the parameters. Default False.
    """

    maximize: bool
    impl: str
    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool
    certify: bool


@dataclass(frozen=True)
class SolveReport:
    """How the last subproblem of a parameter was solved.

    Args:
        name: the parameter's name, or its place as "group.index".
        iterations: taken by the solver in the last step; 0 for a closed form.
        certificate: the norm of a subgradient of the subproblem at the point found, eq. (7) of
            arXiv:2403.14398. Proximal gradient iterations have one for nothing; for other solvers
            it is dist(0, dQ) if the optimizer was made with ``certify=True``, else None.
    """

    name: str
    iterations: int
    certificate: float | None


def state_dtype(param: Tensor) -> torch.dtype:
    """Sums are kept in float32 or wider, whatever the parameter's dtype."""
    return torch.promote_types(param.dtype, torch.float32)


class ProximalOptimizer(Optimizer, ABC):
    """A torch optimizer whose step ends with a subproblem that contains a penalty.

    Subclasses name their per-parameter state in `counters` (0-dim float64 tensors on the CPU) and
    `buffers` (tensors like the parameter, float32 or wider) and write `update`.
    """

    counters: ClassVar[tuple[str, ...]] = ("step",)
    buffers: ClassVar[tuple[str, ...]] = ()

    # Class attributes, so that they exist after unpickling too.
    _structured_depth = 0
    _certify = False
    _solves: dict[Tensor, tuple[int, Tensor | None]] | None = None

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], **options: Unpack[Options]
    ) -> None:
        known = Options.__annotations__
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"{type(self).__name__} has no option {name!r}")
            if name in ("foreach", "fused", "capturable", "differentiable") and value:
                raise ValueError(f"{name} must be unset or False, got {value!r}")
        self._certify = options.get("certify", False)
        shared = {
            "maximize": options.get("maximize", False),
            "impl": options.get("impl", "auto"),
            "penalty": None,
        }
        super().__init__(params, {**defaults, **shared})

    # -- groups ------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; refuse bad settings before anything has changed."""
        # A copy: torch writes defaults into the dict, and the caller may use it again.
        super().add_param_group(dict(param_group))
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        for param in group["params"]:
            if param.requires_grad:
                self._ready_state(param)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise for settings out of range and parameters that the penalty does not fit."""
        lr = group["lr"]
        if isinstance(lr, Tensor):
            require(lr.numel() == 1, "lr", "a tensor of one element", tuple(lr.shape))
            lr = float(lr)
        require(is_real(lr) and lr >= 0, "lr", "a finite number >= 0", lr)
        if "momentum" in self.defaults:
            momentum = group["momentum"]
            require(is_real(momentum) and 0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        require(isinstance(group["maximize"], bool), "maximize", "a bool", group["maximize"])
        require(group["impl"] in ("auto", "eager"), "impl", "'auto' or 'eager'", group["impl"])
        decay = group.get("weight_decay", 0)
        if decay and "weight_decay" not in self.defaults:
            raise ValueError(
                f"weight_decay must be 0 for {type(self).__name__}, got {decay!r}; "
                "the penalty ElasticNet adds a ridge"
            )
        penalty, solver = group["penalty"], group.get("solver")
        if not (penalty is None or isinstance(penalty, Penalty)):
            raise TypeError(f"penalty must be a dualprox Penalty or None, got {penalty!r}")
        if not (solver is None or isinstance(solver, Solver)):
            raise TypeError(f"solver must be a dualprox Solver or None, got {solver!r}")
        if penalty is not None and solver is not None:
            solver.check(penalty)
        names = group.get("param_names") or [""] * len(group["params"])
        for name, param in zip(names, group["params"], strict=True):
            if not param.is_floating_point():
                raise TypeError(f"parameter {name or ''} must be real floating, got {param.dtype}")
            if penalty is not None:
                try:
                    penalty.check(param.shape)
                except ValueError as error:
                    raise ValueError(f"{error}{f' (parameter {name})' if name else ''}") from None

    def group_of(self, param: Tensor) -> dict[str, Any]:
        """The group that holds `param`."""
        for group in self.param_groups:
            if any(other is param for other in group["params"]):
                return group
        raise KeyError("the parameter does not belong to this optimizer")

    def named_params(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """Each parameter with its name, or its place as "group.index", and its group."""
        for number, group in enumerate(self.param_groups):
            places = [f"{number}.{index}" for index in range(len(group["params"]))]
            for name, param in zip(group.get("param_names", places), group["params"], strict=True):
                yield name, param, group

    # -- state -------------------------------------------------------------------------------

    def _buffers(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The buffers that parameters of `group` need."""
        del group
        return self.buffers

    def _new_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        counters = {name: torch.zeros((), dtype=torch.float64) for name in self.counters}
        dtype = state_dtype(param)
        buffers = {
            name: torch.zeros_like(param, dtype=dtype, requires_grad=False)
            for name in self._buffers(group)
        }
        return {**counters, **buffers}

    def _ready_state(self, param: Tensor, group: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """The state of `param`, made now if it has none or was made before the model moved.

        Buffers exist from construction on, so that all ranks of a distributed checkpoint have the
        same keys; values that depend on the weights are taken at the first step.
        """
        group = self.group_of(param) if group is None else group
        state = self.state[param]
        if state:
            buffer = state[self._buffers(group)[0]]
            fits = buffer.device == param.device and buffer.shape == param.shape
            has_moved = bool(state["step"] > 0)
            if fits and (has_moved or buffer.dtype == state_dtype(param)):
                return state
            if has_moved:
                raise RuntimeError(
                    f"a parameter of shape {tuple(param.shape)} is on {param.device} but its "
                    f"state, of shape {tuple(buffer.shape)}, on {buffer.device}"
                )
        state.clear()
        state.update(self._new_state(param, group))
        return state

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and text, loadable with ``weights_only=True``.

        The penalty and the solver of a group are written as text.
        """

        def as_text(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            del optimizer
            groups = [
                {key: repr(v) if key in _LIVE_KEYS else v for key, v in group.items()}
                for group in saved["param_groups"]
            ]
            # Copies of the per-parameter dicts: a saved state must not grow with the live one.
            state = {key: dict(value) for key, value in saved["state"].items()}
            return {**saved, "state": state, "param_groups": groups}

        # Ahead of the user's own hooks, which see what will be saved.
        handle = self.register_state_dict_post_hook(as_text, prepend=True)
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; tensors are copied and keep float32 or wider.

        The optimizer's own penalties and solvers stay. Nothing changes if an error is raised.

        Raises:
            ValueError: a saved penalty is not the one of this optimizer, or a parameter's state
                is incomplete or of another shape.
        """
        loaded: dict[Tensor, dict[str, Tensor]] = {}

        def take_over(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            del optimizer
            groups = self._adopt_groups(saved["param_groups"])
            loaded.update(self._adopt_state(saved))
            # Torch would cast the sums to the parameter's dtype, so it gets none.
            return {**saved, "state": {}, "param_groups": groups}

        def put_back(optimizer: Optimizer) -> None:
            del optimizer
            self.state.update(loaded)

        # Behind the user's pre-hooks, ahead of the user's post-hooks.
        before = self.register_load_state_dict_pre_hook(take_over)
        after = self.register_load_state_dict_post_hook(put_back, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _adopt_groups(self, saved_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The saved groups with this optimizer's penalties, which must be the saved ones."""
        groups = []
        # Torch itself refuses another number of groups, after this.
        for number, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=False)):
            ours, theirs = repr(group["penalty"]), saved.get("penalty", repr(group["penalty"]))
            if theirs != ours:
                raise ValueError(
                    f"group {number} was saved with penalty {theirs}, this optimizer has {ours}"
                )
            live = {key: group[key] for key in _LIVE_KEYS if key in group}
            missing = {key: v for key, v in group.items() if key != "params" and key not in saved}
            groups.append({**missing, **saved, **live})
        return groups + saved_groups[len(groups) :]

    def _adopt_state(self, saved: dict[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
        """Copies of the saved state on the parameters' devices, in the dtypes of fresh state."""
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        params = [(name, p, group) for name, p, group in self.named_params()]
        adopted: dict[Tensor, dict[str, Tensor]] = {}
        if len(ids) != len(params):
            return adopted  # torch refuses it, after this
        for index, (name, param, group) in zip(ids, params, strict=True):
            state = saved["state"].get(index)
            if not state:
                continue
            needed = (*self.counters, *self._buffers(group))
            missing = [key for key in needed if key not in state]
            if missing:
                raise ValueError(
                    f"the saved state of parameter {name} lacks {', '.join(missing)}: "
                    f"it is not a state of {type(self).__name__}"
                )
            adopted[param] = {}
            for key in self.counters:
                counter = torch.as_tensor(state[key])
                adopted[param][key] = counter.detach().to("cpu", torch.float64, copy=True)
            for key in self._buffers(group):
                if state[key].shape != param.shape:
                    raise ValueError(
                        f"the saved {key} of parameter {name} has shape "
                        f"{tuple(state[key].shape)}, the parameter {tuple(param.shape)}"
                    )
                dtype = state_dtype(param)
                adopted[param][key] = state[key].detach().to(param.device, dtype, copy=True)
        return adopted

    # -- the step ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step and return the closure's loss, if there is one.

        Parameters without a gradient and groups with ``lr == 0`` are left exactly as they are,
        their state included. Gradients are read only.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._structured_depth:
            raise RuntimeError("step() inside structured() would take the structured point's place")
        for name, param, _ in self.named_params():
            if param.grad is not None and param.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} needs dense gradients, parameter {name} has "
                    f"{param.grad.layout}"
                )
        for group in self.param_groups:
            lr = float(group["lr"])
            if lr == 0:
                continue
            for param in group["params"]:
                if param.grad is not None:
                    grad = -param.grad if group["maximize"] else param.grad
                    self.update(param, grad, self._ready_state(param, group), group, lr)
        return loss

    @abstractmethod
    def update(
        self,
        param: Tensor,
        grad: Tensor,
        state: dict[str, Tensor],
        group: dict[str, Any],
        lr: float,
    ) -> None:
        """Move one parameter, in place, by its dense gradient."""

    def _solve(self, problem: Subproblem, param: Tensor, group: dict[str, Any]) -> Tensor:
        """The subproblem's solution, warm-started at the iterate; float32 or wider."""
        solution = solve(problem, param.to(problem.linear.dtype), group.get("solver"))
        certificate = solution.certificate
        if certificate is None and self._certify:
            certificate = problem.certificate(solution.point)
        if self._solves is None:
            self._solves = {}
        self._solves[param] = (solution.iterations, certificate)
        return solution.point

    def solver_report(self) -> list[SolveReport]:
        """For each penalized parameter that has taken a step, how its subproblem was solved.

        Synchronises once per parameter.
        """
        reports = []
        for name, param, group in self.named_params():
            if group["penalty"] is not None and param in (self._solves or {}):
                iterations, certificate = (self._solves or {})[param]
                value = None if certificate is None else float(certificate)
                reports.append(SolveReport(name, iterations, value))
        return reports

    # -- the structured point ----------------------------------------------------------------

    @abstractmethod
    def structured_point(self, param: Tensor) -> Tensor:
        """The solution of the parameter's last subproblem, recomputed, as a new tensor.

        Inside `structured()` and for parameters that have not moved, the parameter itself.
        """

    @abstractmethod
    def gradient_estimate(self, param: Tensor) -> Tensor | None:
        """The method's estimate of the full gradient, of the parameter's shape; None before it."""

    @contextlib.contextmanager
    def structured(self) -> Iterator[None]:
        """Swap the structured point into the parameters; on exit the iterate returns, bit by bit.

        Evaluate, save and shrink inside. Training inside is refused. After `restart()` and before
        the next step it still shows the structured point of the stage that ended.
        """
        if self._structured_depth:
            self._structured_depth += 1
            try:
                yield
            finally:
                self._structured_depth -= 1
            return
        iterates: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            points = [(p, self.structured_point(p)) for _, p, _ in self.named_params()]
            for param, point in points:
                iterates.append((param, param.detach().clone()))
                param.copy_(point)
        del points
        self._structured_depth = 1
        try:
            yield
        finally:
            self._structured_depth = 0
            with torch.no_grad():
                for param, iterate in iterates:
                    param.copy_(iterate)

    @torch.no_grad()
    def finalize_(self) -> None:
        """Make the structured point the iterate, for good."""
        if self._structured_depth:
            raise RuntimeError("finalize_() inside structured() would be undone on exit")
        points = [(p, self.structured_point(p)) for _, p, _ in self.named_params()]
        for param, point in points:
            param.copy_(point)

    def restart(self) -> None:
        """Begin a stage. Methods without dual averaging have nothing to restart."""
        return


def solve(problem: Subproblem, start: Tensor, solver: Solver | None) -> Solution:
    """Solve a subproblem: in closed form without penalty, else by `solver` or the best there is.

    None stands for `Exact` where the penalty offers it under the metric, `ProximalGradient` else.
    """
    if problem.penalty is None:
        return Solution(problem.unpenalized(), 0)
    if not isinstance(problem.metric, Tensor):
        solver = Exact()
    elif solver is None:
        exact = isinstance(problem.penalty, DiagonalPenalty)
        solver = Exact() if exact else ProximalGradient()
    return solver.solve(problem, start)
