"""The list of mutations stays in step with the formulas that it breaks."""

import sys
from pathlib import Path

import pytest

import opdscope

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "mutations"))

from listed import MUTATIONS
from mutation import Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_formula_that_a_mutation_breaks_stands_once_in_its_module(mutation: Mutation) -> None:
    text = (Path(opdscope.__file__).parent / mutation.path).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
