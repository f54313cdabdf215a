"""docs/reproduction.md says what the stored results say, and nothing else."""

import copy
import runpy
from pathlib import Path

import pytest

from sgdwalk.paper.registry import IDS, TITLES

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def page():
    return runpy.run_path(str(DOCS / "make_reproduction.py"))


@pytest.fixture(scope="module")
def results(page):
    return page["load"]()


def test_the_page_is_what_the_stored_results_make(page, results):
    assert (DOCS / "reproduction.md").read_text("utf-8") == page["render"](results), (
        "docs/reproduction.md does not match docs/results: run python docs/make_reproduction.py"
    )


def test_every_id_is_stored_or_said_not_to_be(page, results):
    assert list(results) == [id for id in IDS if id in results]
    rendered = page["render"](results)
    for id in IDS:
        assert (f"## {TITLES[id]}\n" in rendered) == (id in results)
        (row,) = [line for line in rendered.splitlines() if line.startswith(f"| {id} |")]
        assert ("not run yet" in row) == (id not in results)


def test_stored_results_have_all_their_tables_and_claims(results):
    for id, result in results.items():
        assert result["title"] == TITLES[id]
        assert result["scale"] == "small"
        assert result["claims"]
        assert set(result["frames"]) == {table["name"] for table in result["tables"]}


def test_stored_numbers_say_what_made_them(results):
    for result in results.values():
        for training in result["trainings"]:
            assert training["torch"]
            assert len(training["commit"]) == 40
            assert training["dirty"] is False


def test_a_changed_result_changes_the_page(page, results):
    as_stored = page["render"](results)
    verdict = copy.deepcopy(results)
    verdict["fig1"]["claims"][0]["verdict"] = "no verdict"
    assert page["render"](verdict) != as_stored
    number = copy.deepcopy(results)
    number["table2"]["frames"]["table2"].loc[0, "mean"] = 123.0
    assert "123" in page["render"](number)
    assert page["render"](number) != as_stored


def test_the_summary_counts_every_claim_once(page, results):
    (total,) = [line for line in page["render"](results).splitlines() if line.startswith("| all |")]
    counts = [int(cell.strip(" *")) for cell in total.split("|")[3:7]]
    assert sum(counts) == sum(len(result["claims"]) for result in results.values())
