"""What the optimizers share: checked groups, the step around `update`, the structured point."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from ..checks import is_real, plain, require
from ..kernels.native import NativeGroup
from ..penalties import L1, Coupled, ElasticNet
from ..sharding import placed_like, whole
from ..subproblem import Exact, Subproblem
from .bundle import as_tensor, bundles, part_of, tensors_of
from .frozen import (
    MARKS,
    acting_groups,
    can_freeze,
    found_marks,
    hold,
    holds_support,
)
from .fused import Plan, make_plan
from .groups import check_new_group, listed
from .options import Options, SolveReport, check_options
from .rounding import REMAINDER, set_iterate_
from .solve import solve
from .state import StatefulOptimizer
from .unit import (
    Unit,
    check_coupled,
    joint_state,
    require_all_gradients,
    require_dense_gradients,
    require_same_counters,
    units_of,
)

# Penalties whose solution is a formula for each entry, in the operations that a bundle has.
_ENTRYWISE = (L1, ElasticNet)


class ProximalOptimizer(StatefulOptimizer, ABC):
    """A torch optimizer whose step ends with a subproblem that contains a penalty.

    Subclasses name their state (see `StatefulOptimizer`) and write `update`. `kernel` names the
    fused step that does the same as a class's `update`, and `takes_bundles` says that `update` may
    be given a `Bundle` of parameters, with those of their gradients and states; subclasses, whose
    own methods must be called for every parameter, inherit neither.
    """

    kernel: ClassVar[str | None] = None
    takes_bundles: ClassVar[bool] = False
    # Class attributes, so that they exist after unpickling too.
    _structured_depth = 0
    _certify = False
    _solves: dict[Tensor, tuple[int, Tensor | None]] | None = None
    _plans: dict[int, Plan] | None = None

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], **options: Unpack[Options]
    ) -> None:
        check_options(type(self).__name__, options)
        self._certify = options.get("certify", False)
        shared = {
            "maximize": options.get("maximize", False),
            "impl": options.get("impl", "auto"),
            "capturable": options.get("capturable", False),
            "penalty": None,
            "frozen": False,
            "concavity": None,  # of the penalty from the next step on; None leaves it
        }
        super().__init__(listed(params), {**defaults, **shared})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does; refuse bad settings before anything has changed."""
        # A copy: torch writes defaults into the dict, and the caller may use it again.
        super().add_param_group(dict(param_group))
        group = self.param_groups[-1]
        group.update({name: plain(value) for name, value in group.items()})
        try:
            self._check_group(group)
        except (TypeError, ValueError, NotImplementedError):
            self.param_groups.pop()
            raise
        for param in group["params"]:
            if param.requires_grad:
                self.ready_state(param)

    def _check_settings(self, group: dict[str, Any]) -> None:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            require(lr.numel() == 1, "lr", "a tensor of one element", tuple(lr.shape))
            lr = float(lr)
        require(is_real(lr) and lr >= 0, "lr", "a finite number >= 0", lr)
        if "momentum" in self.defaults:
            momentum = group["momentum"]
            require(is_real(momentum) and 0 <= momentum < 1, "momentum", "in [0, 1)", momentum)
        for name in ("maximize", "frozen", "ramp"):
            value = group.get(name, False)
            require(isinstance(value, bool), name, "a bool", value)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise for settings out of range and parameters that the penalty does not fit."""
        self._check_settings(group)
        names = self._names(len(self.param_groups) - 1)
        check_new_group(group, names, type(self).__name__, "weight_decay" in self.defaults)
        if isinstance(group["penalty"], Coupled):
            check_coupled(group, names, type(self).__dict__.get("takes_bundles", False))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step and return the closure's loss, if there is one.

        Parameters without a gradient and groups with ``lr == 0`` are left exactly as they are,
        their state included. Gradients are read only.
        """
        if self._structured_depth:
            raise RuntimeError("step() inside structured() would take the structured point's place")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for number, group in enumerate(self.param_groups):
            moving = [param for param in group["params"] if param.grad is not None]
            require_dense_gradients(group["params"], self._names(number), type(self).__name__)
            if moving and isinstance(group["penalty"], Coupled):
                require_all_gradients(group["params"], self._names(number))
            # A kernel that can be captured reads a tensor lr on the device.
            unread = group["capturable"] and isinstance(group["lr"], Tensor)
            if moving and (unread or float(group["lr"]) > 0):
                if group["concavity"] is not None and group["penalty"] is not None:
                    group["penalty"] = group["penalty"].with_concavity(group["concavity"])
                    group["concavity"] = None
                work.append((group, self._plan(number, group, moving)))
        for group, plan in work:
            if not group["capturable"]:
                self._begin_step(group, plan.params, float(group["lr"]))
            for kernel, params in plan.fused:
                kernel.step([p.grad for p in params if p.grad is not None], group)
                if group["penalty"] is not None and isinstance(kernel, NativeGroup):
                    for param, count in zip(params, kernel.iterations(), strict=True):
                        self._note_solve(param, count, None)
            if plan.eager:
                self._update_all(plan.eager, group, float(group["lr"]))
            if holds_support(group):
                self._hold(plan.params)
        return loss

    def _hold(self, params: list[Tensor]) -> None:
        kept = [{"": param, **self.state[param]} for param in params]
        pairs = [(s[k], s["live"]) for s in kept for k in ("", REMAINDER) if k in s]
        hold([tensor for tensor, _ in pairs], [live for _, live in pairs])

    def _plan(self, number: int, group: dict[str, Any], params: list[Tensor]) -> Plan:
        """Who steps which parameter; made anew when the group or its tensors have changed."""
        if self._plans is None:
            self._plans = {}
        known = self._plans.get(number)
        names = ("impl", "penalty", "solver", "amsgrad", "capturable", "frozen")
        key = tuple([group.get(name) for name in names])
        if known is not None and known.key == key and known.still_holds(params, self.state):
            return known
        states = [self.ready_state(param, group) for param in params]
        method = type(self).__dict__.get("kernel")
        called = {id(param): name for name, param, _ in self.named_params()}
        called_so = [called[id(param)] for param in params]
        acting = {**group, "penalty": None} if holds_support(group) else group
        self._plans[number] = make_plan(
            method, params, states, called_so, acting, self._certify, key
        )
        return self._plans[number]

    def forget_plans(self) -> None:
        """Forget what was prepared for tensors: to be called when parameters are exchanged."""
        self._plans = self._solves = None

    def _begin_step(self, group: dict[str, Any], params: list[Tensor], lr: float) -> None:
        """Called before the parameters of a group move."""

    def _update_all(self, params: list[Tensor], group: dict[str, Any], lr: float) -> None:
        """`update` each of these parameters of a group, or bundles of them."""
        for param in params:
            self.ready_state(param, group)
        for some, acting in acting_groups(params, group, self.state):
            self._update_some(some, acting, lr)

    def _update_some(self, params: list[Tensor], group: dict[str, Any], lr: float) -> None:
        # The method resets all of its state at a restart; what is frozen is none of it.
        states = [
            {key: value for key, value in self.state[param].items() if key not in MARKS}
            for param in params
        ]
        together: Iterable[list[int]] = ([index] for index in range(len(params)))
        if isinstance(group["penalty"], Coupled):
            require_same_counters(states, self.counters)
            together = [[*range(len(params))]]
        elif type(self).__dict__.get("takes_bundles", False):
            together = bundles(params, states, self.counters)
        for members in together:
            grad = as_tensor([placed_like(params[i].grad, params[i]) for i in members])  # pyright: ignore
            self.update(
                as_tensor([params[i] for i in members]),
                -grad if group["maximize"] else grad,
                joint_state([states[i] for i in members]),
                group,
                lr,
            )

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
        """The subproblem's solution, warm-started at the iterate; float32 or wider.

        A bundle's is solved as one where the solution is a formula for each entry, and where the
        penalty couples its tensors.
        """
        params = tensors_of(param)
        penalty = problem.penalty
        formula = type(penalty) in _ENTRYWISE and isinstance(group.get("solver"), Exact | None)
        as_one = isinstance(penalty, Coupled) or (
            not self._certify and (penalty is None or formula)
        )
        if len(params) > 1 and not as_one:
            points = []
            for index, one in enumerate(params):
                parts = {
                    name: part_of(getattr(problem, name), index)
                    for name in ("linear", "center", "metric")
                }
                points.append(self._solve(replace(problem, **parts), one, group))
            return as_tensor(points)
        start = param.to(problem.linear.dtype)
        solution = solve(problem, start, group.get("solver"), self._certify)
        self._note_solve(param, solution.iterations, solution.certificate)
        return solution.point

    def _note_solve(self, param: Tensor, iterations: int, certificate: Tensor | None) -> None:
        if self._solves is None:
            self._solves = {}
        for one in tensors_of(param):
            self._solves[one] = (iterations, certificate)

    def solver_report(self) -> list[SolveReport]:
        """For each penalized parameter that has taken a step, how its subproblem was solved.

        A coupled group has one subproblem and one report. Triton's kernels do not say. Synchronises
        once per report.
        """
        reports, solves = [], self._solves or {}
        for unit in self.units():
            if unit.group["penalty"] is not None and unit.params[0] in solves:
                iterations, certificate = solves[unit.params[0]]
                value = None if certificate is None else float(whole(certificate))
                reports.append(SolveReport(unit.name, iterations, value))
        return reports

    def units(self) -> Iterator[Unit]:
        """What is solved as one: each parameter, or all of a coupled group."""
        for number, group in enumerate(self.param_groups):
            yield from units_of(group, self._names(number))

    def structured_point(self, param: Tensor) -> Tensor:
        """The solution of the parameter's last subproblem, recomputed, as a new tensor.

        Inside `structured()` and for parameters that have not moved, the parameter itself. That of
        a parameter in a coupled group takes the work for the whole group: see `structured_points`.
        """
        for unit in self.units():
            for index, other in enumerate(unit.params):
                if other is param:
                    return self.structured_points(unit)[index]
        raise KeyError("the parameter does not belong to this optimizer")

    @abstractmethod
    def structured_points(self, unit: Unit) -> list[Tensor]:
        """The structured points of the parameters of a unit, from one solution."""

    @abstractmethod
    def gradient_estimate(self, param: Tensor) -> Tensor | None:
        """The method's estimate of the full gradient, of the parameter's shape; None before it."""

    @contextlib.contextmanager
    def structured(self) -> Iterator[None]:
        """Swap the structured point into the parameters; on exit the iterate returns, bit by bit.

        Evaluate, save and shrink inside. Training inside is refused. After `restart()` and before
        the next step it still shows the structured point of the stage that ended. Under FSDP2 the
        root must reshard after forward, or it goes on with the copy it has: docs/distributed.md.
        """
        if self._structured_depth:
            self._structured_depth += 1
            try:
                yield
            finally:
                self._structured_depth -= 1
            return
        with torch.no_grad():
            points = self._all_structured_points()
            iterates = [(p, p.detach().clone()) for p, _ in points]
        try:
            with torch.no_grad():
                for param, point in points:
                    param.copy_(point)
            del points
            self._structured_depth = 1
            yield
        finally:
            self._structured_depth = 0
            with torch.no_grad():
                for param, iterate in iterates:
                    param.copy_(iterate)

    @torch.no_grad()
    def finalize_(self) -> None:
        """Make the structured point the iterate, for good."""
        self._refuse_inside_structured("finalize_()")
        for param, point in self._all_structured_points():
            set_iterate_(param, self.state.get(param, {}), point)

    @torch.no_grad()
    def freeze_structure_(self) -> None:
        """Begin the refit: hold the structure found, drop the penalty on what is left of it.

        Makes the structured point the iterate and restarts. From then on each step solves

            min_z <v, z> + 1/2 <z - z0, D (z - z0)>,   z = 0 in dead entries

        whose solution is exact, and what the parameters hold in dead entries is exactly zero after
        every step. Dead are the groups of group penalties that are zero (of coupled ones in every
        tensor; free slices stay free), and for entrywise and sparse-group penalties all zeros. For
        penalties on singular values, rank(z) <= that of the structured point takes the subspace's
        place, by the solver of `RankAtMost`; the iterate, an average, meets it at `finalize_()`.

        Constraints (`is_constraint`) keep acting. Calling it again can only lose groups. A group's
        `penalty` stays; its `frozen`, now True, and the structure are part of `state_dict()`.

        Raises:
            ValueError: no group has a penalty that is no constraint.
            TypeError: a penalty's `live_entries` returns None; nothing is changed.

        Source: docs/math.md#refit.
        """
        groups = [group for group in self.param_groups if can_freeze(group["penalty"])]
        if not groups:
            raise ValueError("a group must have a penalty that is no constraint, got none")
        self._refuse_inside_structured("freeze_structure_()")
        found: list[tuple[Unit, list[Tensor], list[dict[str, Tensor]]]] = []
        for unit in self.units():
            points = [
                p.to(q.dtype)
                for p, q in zip(self.structured_points(unit), unit.params, strict=True)
            ]
            marks: list[dict[str, Tensor]] = [{} for _ in points]
            if can_freeze(unit.group["penalty"]):
                marks = found_marks(unit, points, self.state)
            found.append((unit, points, marks))
        # Nothing has changed so far, and from here on no penalty is asked that could refuse.
        for unit, points, _ in found:
            for param, point in zip(unit.params, points, strict=True):
                set_iterate_(param, self.state.get(param, {}), point)
        self.restart()
        for unit, _, marks in found:
            for param, own in zip(unit.params, marks, strict=True):
                self.ready_state(param, unit.group).update(own)
        for group in groups:
            group["frozen"] = True
            for param in group["params"]:
                self._forget(self.state[param])

    def _forget(self, state: dict[str, Tensor]) -> None:
        """Called when the point that a state leads to is no longer the structured one."""

    def _refuse_inside_structured(self, call: str) -> None:
        if self._structured_depth:
            raise RuntimeError(f"{call} inside structured() would be undone on exit")

    def _all_structured_points(self) -> list[tuple[Tensor, Tensor]]:
        return [
            pair
            for unit in self.units()
            for pair in zip(unit.params, self.structured_points(unit), strict=True)
        ]

    def restart(self) -> None:
        """Begin a stage. Methods without dual averaging have nothing to restart."""
