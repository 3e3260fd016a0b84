"""What is public is documented, and nothing else is claimed."""

import inspect
import re
from pathlib import Path

import pytest

import contracts
import dualprox as dp

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", dp.__all__)
def test_every_public_name_says_what_it_is(name):
    documentation = inspect.getdoc(getattr(dp, name))
    assert documentation and documentation.partition("\n")[0].endswith((".", ":"))


def test_every_penalty_stands_in_the_table_of_laws_and_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    tested = {type(law.penalty) for law in contracts.LAWS}
    for name in dp.__all__:
        kind = getattr(dp, name)
        if inspect.isclass(kind) and issubclass(kind, dp.Penalty) and not inspect.isabstract(kind):
            assert kind in tested, name
            assert f"`{name}`" in readme, name


def test_every_optimizer_and_solver_stands_in_the_readme_and_the_mathematics():
    readme, maths = (ROOT / "README.md").read_text(), (ROOT / "docs" / "math.md").read_text()
    for name in dp.__all__:
        kind = getattr(dp, name)
        if inspect.isclass(kind) and not inspect.isabstract(kind):
            if issubclass(kind, dp.ProximalOptimizer):
                assert kind in {maker.make for maker in contracts.OPTIMIZERS}
                assert f"`{name}`" in readme and re.search(rf"\b{name}\b", maths), name
            if issubclass(kind, dp.Solver):
                assert f"`{name}`" in readme, name


def test_links_in_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
