"""The changelog has the form of Keep a Changelog, and a table for users of the version before."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise

from tests.support.programs import ROOT

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
TABLE = "What changed for users of 0.1"


def versions() -> list[tuple[str, str, str]]:
    """Return the version, the date and the text of each section, newest first."""
    parts = re.split(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", head) for head in parts[1::2]]
    return [(each[1], each[2], text) for each, text in zip(found, parts[2::2], strict=True) if each]


def test_versions_and_their_dates_go_from_the_newest_to_the_oldest() -> None:
    """Only changes that are not released may stand before them."""
    heads = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    dated = versions()
    assert heads[: -len(dated)] in ([], ["[Unreleased]"])
    numbers = [tuple(map(int, version.split("."))) for version, _, _ in dated]
    assert all(newer > older for newer, older in pairwise(numbers))
    days = [date.fromisoformat(day) for _, day, _ in dated]
    assert all(newer >= older for newer, older in pairwise(days))


def test_each_entry_is_under_one_of_the_six_kinds_in_their_order() -> None:
    for _, _, text in versions():
        before, *sections = re.split(r"^### ", text, flags=re.MULTILINE)
        assert before.strip() == ""
        kinds = [section.partition("\n")[0] for section in sections]
        assert [kind for kind in kinds if kind != TABLE] == [
            each for each in KINDS if each in kinds
        ]
        for kind, section in zip(kinds, sections, strict=True):
            entries = section.partition("\n")[2].strip()
            assert kind == TABLE or re.match(r"- .+\.\Z", entries, re.DOTALL), kind
            assert kind == TABLE or re.findall(r"^(?!- |  \S|$).*$", entries, re.MULTILINE) == []


def test_table_for_users_of_0_1_has_two_cells_in_each_row() -> None:
    section = CHANGELOG.partition(f"### {TABLE}\n")[2].partition("\n### ")[0]
    header, rule, *rows = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    assert header == "| What you have | What to write or expect |"
    assert rule == "|---|---|"
    assert rows
    for row in rows:
        assert [bool(cell.strip()) for cell in row.split("|")[1:-1]] == [True, True], row
