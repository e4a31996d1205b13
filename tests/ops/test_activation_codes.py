"""The codes of activations: the copies in Python, Triton and tests are those of the C++ header."""

from __future__ import annotations

import ast
import re

import raw_reference
from places import ROOT

from fastmaml.ops.task_act import ACTIVATIONS, RELU, act_code, at_input

HEADER = (ROOT / "csrc" / "math" / "activation_codes.h").read_text()
TRITON = ROOT / "kernels" / "triton"


def codes() -> dict[str, int]:
    """Of the header, by name."""
    body = re.search(r"enum class Act : int \{(.*?)\}", HEADER, re.DOTALL)
    assert body is not None
    return {name: int(code) for name, code in re.findall(r"(\w+) = (\d+)", body[1])}


def read_at_their_input() -> set[int]:
    """The codes whose derivative is taken at the input, by the header."""
    body = re.search(r"bool saves_input\(Act act\) \{(.*?)\}", HEADER, re.DOTALL)
    assert body is not None
    return {codes()[name] for name in re.findall(r"Act::(\w+)", body[1])}


def test_the_header_counts_its_codes() -> None:
    found = codes()
    assert sorted(found.values()) == list(range(len(found)))
    assert f"kActs = {len(found)};" in HEADER


def test_python_has_the_codes_of_the_header() -> None:
    found = codes()
    assert found == {"none": 0} | {name: act_code("task_act", name) for name in ACTIVATIONS}
    assert found["relu"] == RELU
    assert read_at_their_input() == {code for code in found.values() if at_input(code)}


def assigned(file: str, name: str) -> ast.expr:
    """The value of a constant of a kernels' file, which is not imported: Triton may be absent."""
    for node in ast.parse((TRITON / file).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise AssertionError(f"{file} assigns no {name}")


def test_triton_has_the_codes_of_the_header() -> None:
    """What is computed for each of them the kernels' own tests say."""
    saved = ast.literal_eval(assigned("activations.py", "SAVES_INPUT"))
    assert set(saved) == read_at_their_input()
    known = assigned("task_linear.py", "ACTIVATIONS")
    assert ast.unparse(known) == f"range({len(codes())})"
    (activate,) = (
        node
        for node in ast.parse((TRITON / "activations.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "activate"
    )
    said = re.findall(r"(\d+) (\w+)", ast.get_docstring(activate) or "")
    assert {name: int(code) for code, name in said} == codes()
    compared = re.findall(r"ACT == (\d+)", ast.unparse(activate))
    assert {0, *map(int, compared)} == set(codes().values())


def test_the_plain_definitions_have_a_row_for_each_code() -> None:
    for table in (raw_reference.VALUE, raw_reference.FIRST, raw_reference.SECOND):
        assert len(table) == len(codes())
