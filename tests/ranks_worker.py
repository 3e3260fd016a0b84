"""What processes do that train run folders together; `test_ranks` starts them and judges."""

import json
import sys
from pathlib import Path

from dualprox.lab import ranks
from ranks_cases import STOPPED, go_on


def main(plan: str) -> None:
    """Train the folders of a plan, a list of [folder, whether to stop]; their errors end it."""
    ranks.join()
    for folder, stops in json.loads(plan):
        go_on(Path(folder), STOPPED if stops else None)
    ranks.leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
