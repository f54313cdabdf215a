"""The page over all figures: each statement once, with what its verdicts amount to."""

import json
import re

import pytest

from sgdwalk.paper.overview import Statement, read_results, statements, summary, write_overview


@pytest.mark.parametrize(
    ("verdicts", "sort"),
    [
        (["supported"], "hold"),
        (["supported", "not resolved"], "hold"),
        (["supported", "not resolved", "not resolved"], "are open"),
        (["supported", "not testable at this scale", "not testable at this scale"], "hold"),
        (["supported", "contradicted", "not resolved"], "hold in part"),
        (["contradicted", "not resolved"], "fail"),
        (["contradicted", "not resolved", "not resolved"], "are open"),
        (["not resolved", "not testable at this scale"], "are open"),
        (["not testable at this scale"], "cannot be tested at this scale"),
    ],
)
def test_verdicts_amount_to(verdicts, sort):
    assert Statement("name", "words", tuple(("fig1", "", verdict) for verdict in verdicts)).sort == sort


def result(id, *claims):
    return {
        "id": id,
        "title": f"Figure {id}: <b>walks</b>",
        "cuts": ["Half of it."],
        "claims": [{"claim": "deep", "words": words, "reading": "", "verdict": verdict} for words, verdict in claims],
        "trainings": [{"run": "shared"}],
    }


def test_a_statement_is_one_for_all_the_figures_that_it_is_made_of():
    results = [result("fig1", ("so", "supported"), ("thus", "contradicted")), result("fig2", ("so", "supported"))]
    assert [(each.words, len(each.judged)) for each in statements(results)] == [("so", 2), ("thus", 1)]
    assert summary(results) == "Of 2 statements 1 hold, 1 fail."


def test_the_page_counts_links_and_keeps_titles_inert(tmp_path):
    for each in (result("fig1", ("so", "supported")), result("fig2", ("so", "contradicted"))):
        folder = tmp_path / f"{each['id']}-smoke"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(each))
    path = write_overview(tmp_path, "smoke")
    page = path.read_text("utf-8")
    assert [each["id"] for each in read_results(tmp_path, "smoke")] == ["fig1", "fig2"]
    assert "<strong>1</strong> hold in part" in page
    assert "2 verdicts in all" in re.sub(r"\s+", " ", page)
    assert "&lt;b&gt;walks" in page
    linked = {(path.parent / link).resolve().parent for link in re.findall(r'href="([^"]+)"', page)}
    assert linked == {tmp_path / "fig1-smoke", tmp_path / "fig2-smoke"}
    assert read_results(tmp_path, "small") == []
