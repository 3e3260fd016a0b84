"""Which penalty each parameter gets, by its name, its module and its layout."""

import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

from .checks import shown
from .geometry import Slices
from .layouts import Layout, layout_of
from .penalties import GroupPenalty, Penalty

Selector = str | type[nn.Module]


def kind_of(module: nn.Module, leaf: str) -> str:
    """Why a parameter that is no weight stays free."""
    return "bias" if leaf.startswith("bias") else type(module).__name__


class Chooser:
    """The rules of one call of `param_groups`, and which of its selectors have matched."""

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty | Mapping[str, Penalty],
        by: str,
        include: Iterable[Selector] | None,
        exclude: Iterable[Selector],
        axes: Mapping[str, int] | None,
        heads: bool,
    ) -> None:
        if by not in ("input", "output"):
            raise ValueError(f"by must be 'input' or 'output', got {by!r}")
        self.by, self.heads, self.axes = by, heads, dict(axes or {})
        self.penalties = {"*": penalty} if isinstance(penalty, Penalty) else dict(penalty)
        for name, each in self.penalties.items():
            if not isinstance(each, Penalty):
                raise TypeError(f"penalty must be a Penalty, got {each!r} for {name!r}")
            if isinstance(each, GroupPenalty) and each.slices != Slices():
                raise ValueError(
                    "param_groups chooses axis, block and conv_groups for each layer (by=, heads=,"
                    f" axes=): the penalty must keep their defaults, got {each}"
                )
        self.include = None if include is None else _selectors("include", include)
        self.exclude = _selectors("exclude", exclude)
        self.head_sizes = {
            id(module.out_proj): module.head_dim
            for module in model.modules()
            if isinstance(module, nn.MultiheadAttention)
        }
        self.used: set[Selector] = set()

    def _matches(self, selector: Selector, path: str, module: nn.Module) -> bool:
        if isinstance(selector, str):
            owner = path.rpartition(".")[0]
            parts = owner.split(".")
            modules = [".".join(parts[: i + 1]) for i in range(len(parts))]
            found = any(fnmatch.fnmatchcase(name, selector) for name in (path, *modules))
        else:
            found = isinstance(module, selector)
        if found:
            self.used.add(selector)
        return found

    def choose(self, owners: list[tuple[str, nn.Module, str]]) -> tuple[Penalty | None, str]:
        """The penalty of the parameter that these modules own, and a note on why."""
        found = [self._choose_for(*owner) for owner in owners]
        tied = "" if len(found) == 1 else "tied: " + " = ".join(path for path, _, _ in owners)
        penalties = {penalty for penalty, _ in found}
        if len(penalties) > 1:
            reasons = dict.fromkeys(note for penalty, note in found if penalty is None)
            return None, f"{tied}; {', '.join(reasons) or 'the layers disagree on the axis'}"
        penalty, note = found[0]
        return penalty, "; ".join(part for part in (tied, note) if part)

    def select(self, path: str, module: nn.Module, leaf: str) -> tuple[Penalty | None, str]:
        """The penalty that the caller's patterns give a parameter, and else why none."""
        del leaf
        # Every selector is tried, so that each learns whether it matches anything.
        excluded = [s for s in self.exclude if self._matches(s, path, module)]
        included = [s for s in self.include or () if self._matches(s, path, module)]
        pattern = next((p for p in self.penalties if self._matches(p, path, module)), None)
        if excluded:
            return None, "excluded"
        if self.include is not None and not included:
            return None, "not included"
        return (None, "no penalty given") if pattern is None else (self.penalties[pattern], "")

    def _choose_for(self, path: str, module: nn.Module, leaf: str) -> tuple[Penalty | None, str]:
        selected, why_not = self.select(path, module, leaf)
        axis = next((self.axes[p] for p in self.axes if self._matches(p, path, module)), None)
        layout = layout_of(module, leaf)
        if axis is not None:
            layout = Layout(Slices(axis), Slices(axis))
        if layout is None:
            return None, kind_of(module, leaf)
        if selected is None:
            return None, why_not
        slices = layout.inputs if self.by == "input" else layout.outputs
        if slices is None:
            return None, "its outputs are not slices"
        head_size = self.head_sizes.get(id(module), 1) if self.heads and self.by == "input" else 1
        penalty = selected.along(slices.axis, head_size, slices.conv_groups)
        return penalty, ""

    def require_all_used(self) -> None:
        """Raise ValueError for a selector that matched nothing."""
        by_name = {"include": self.include or (), "exclude": self.exclude, "axes": self.axes}
        if set(self.penalties) != {"*"}:
            by_name["penalty"] = self.penalties
        for name, selectors in by_name.items():
            for selector in selectors:
                if selector not in self.used:
                    raise ValueError(
                        f"{name}: {selector!r} matches no parameter, module name or module type "
                        "of the model"
                    )


def _selectors(name: str, given: Iterable[Selector]) -> tuple[Selector, ...]:
    rule = "a list of patterns and module types"
    if isinstance(given, str | type):
        raise TypeError(f"{name} must be {rule}, got {shown(given)}")
    found = tuple(given)
    for selector in found:
        is_module = isinstance(selector, type) and issubclass(selector, nn.Module)
        if not (is_module or isinstance(selector, str)):
            raise TypeError(f"{name} must be {rule}, got {shown(selector)}")
    return found
