"""The mutation table of the docs is what the command makes, and no cell is without a defect."""

import importlib
import inspect
import pkgutil

from mindspore import nn

import mindblip2.models
from mindblip2.parity.defects.language_model import LANGUAGE_MUTATIONS
from mindblip2.parity.defects.mutation_docs import CELLS, FACTS, NO_CASE, WITHOUT, table
from mindblip2.parity.defects.mutations import MUTATIONS
from tests.architecture_rules import ROOT


def public_cells(package=mindblip2.models):
    """Names of all classes of cells that are no part of another file's inside."""
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
    ]
    return {
        name
        for module in modules
        for name, one in vars(module).items()
        if inspect.isclass(one)
        and issubclass(one, nn.Cell)
        and one.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_the_docs_have_the_table_that_the_command_makes():
    written = (ROOT / "docs" / "parity_mutations.md").read_text(encoding="utf-8")
    assert written == table(), "run: python -m parity mutations --markdown > docs/parity_mutations.md"
    assert written != table().replace("tanh GELU", "GELU")  # the comparison can fail


def test_no_cell_lands_without_a_defect():
    assert public_cells() == set(CELLS) | set(WITHOUT) and not set(CELLS) & set(WITHOUT)
    assert len(public_cells()) > 25  # it finds them


def test_the_rows_are_defects_that_exist():
    defects = set(MUTATIONS) | set(LANGUAGE_MUTATIONS)
    # none hides another of the same name
    assert len(defects) == len(MUTATIONS) + len(LANGUAGE_MUTATIONS) >= 40
    named = {defect for rows in (*CELLS.values(), *FACTS.values()) for defect in rows}
    assert named <= defects and all(CELLS.values()) and all(FACTS.values())


def test_each_known_difference_has_a_defect_or_a_reason():
    numbers = {name[:4] for name in (*FACTS, *NO_CASE)}
    assert numbers == {f"D-{n:02d}" for n in range(2, 33)}
