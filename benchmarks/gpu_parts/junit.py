"""Checks and tests of all parts as one JUnit file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

OUTCOMES = {"failed": "failure", "error": "error", "skipped": "skipped"}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """A suite a part, of its rows that have an ``outcome``; one that failed or was stopped says so.

    A row has ``name``, ``outcome`` ("passed", "failed", "error" or "skipped"), ``seconds`` and,
    unless it passed, ``why``.
    """
    root = ElementTree.Element("testsuites", name="gpu")
    for name, found in parts.items():
        cases = [row for row in found["rows"] if "outcome" in row]
        if found["outcome"] != "done":
            why = "\n".join([found["outcome"], *found.get("failures", ())])
            cases.append({"name": name, "outcome": "error", "seconds": 0.0, "why": why})
        suite = ElementTree.SubElement(root, "testsuite", name=name, **counted(cases))
        for case in cases:
            seconds = f"{case.get('seconds', 0.0):.3f}"
            of = {"classname": name, "name": case["name"], "time": seconds}
            element = ElementTree.SubElement(suite, "testcase", of)
            if kind := OUTCOMES.get(case["outcome"]):
                why = NOT_XML.sub("?", case.get("why", ""))
                told = ElementTree.SubElement(element, kind, message=why.strip()[-200:])
                told.text = why
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def counted(cases: list[Mapping[str, Any]]) -> dict[str, str]:
    """The attributes of a suite."""
    outcomes = [case["outcome"] for case in cases]
    kinds = {"failures": "failed", "errors": "error", "skipped": "skipped"}
    found = {kind: str(outcomes.count(outcome)) for kind, outcome in kinds.items()}
    return {"tests": str(len(cases)), **found}
