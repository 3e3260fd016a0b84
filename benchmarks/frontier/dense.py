"""Dense training: the network that all others are compared with."""

from .methods import Method, Outcome, Setting
from .tasks import Task
from .training import Clock, make_optimizer, train


def train_dense(task: Task, seed: int, target: float, setting: Setting) -> Outcome:
    """The task's recipe number `recipe`, its lr times `lr`; the target plays no part."""
    model, clock = task.make_model(seed), Clock()
    recipe = task.recipes[setting["recipe"]]
    opt = make_optimizer(recipe, model, recipe.lr * setting["lr"])
    train(task, model, task.loader(seed), task.epochs, opt, clock)
    return Outcome(model, clock)


DENSE = Method(
    name="dense",
    train=train_dense,
    settings=(
        {"recipe": 0, "lr": 1.0},
        {"recipe": 1, "lr": 1.0},
        {"recipe": 0, "lr": 2.0},
        {"recipe": 0, "lr": 0.5},
        {"recipe": 1, "lr": 0.5},
    ),
    sized=False,
)
