"""The mutations still fit the package: what tests/mutations.py would otherwise find in minutes."""

import ast

import mutations
import pytest


@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_a_mutation_applies(name):
    mutation = mutations.MUTATIONS[name]
    after = mutations.mutated(mutations.ROOT, mutation)
    ast.parse(after)
    assert after != (mutations.ROOT / mutation["file"]).read_text()
    path, _, test = mutation["test"].partition("::")
    functions = ast.walk(ast.parse((mutations.ROOT / path).read_text()))
    assert test in {each.name for each in functions if isinstance(each, ast.FunctionDef)}


def test_a_text_that_is_not_there_once_is_refused(tmp_path):
    (tmp_path / "file").write_text("1 + 1")
    mutation = {"file": "file", "text": "1", "replacement": "2"}
    with pytest.raises(ValueError, match="file has '1' 2 times, not once"):
        mutations.mutated(tmp_path, mutation)
    assert mutations.mutated(tmp_path, {**mutation, "text": "+"}) == "1 2 1"
