"""All methods by name."""

from .dense import DENSE
from .depgraph import TP_GROUP_NORM, TP_MAGNITUDE
from .hesso import HESSO
from .methods import Method
from .ours import OURS
from .pat import PAT_CONSTRAINT, PAT_GROUP_LASSO
from .unstructured import MAGNITUDE, RIGL

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        DENSE,
        *OURS,
        TP_MAGNITUDE,
        TP_GROUP_NORM,
        PAT_GROUP_LASSO,
        PAT_CONSTRAINT,
        HESSO,
        MAGNITUDE,
        RIGL,
    )
}
