"""The `dualprox` command, of which the second process fails in its third epoch, the first time."""

import os
import signal
import sys
from typing import Any
from unittest import mock

from dualprox.lab.cli import main
from dualprox.lab.training import Training

train_epoch = Training.train_epoch


def failing(training: Any) -> dict[str, Any]:
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if training.epoch == 2 and os.environ["RANK"] == "1" and restarts == "0":
        if sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise FloatingPointError("one process alone has failed")
    return train_epoch(training)


if __name__ == "__main__":
    with mock.patch.object(Training, "train_epoch", failing):
        sys.exit(main(sys.argv[2:]))
