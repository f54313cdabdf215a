"""The documentation says what is: its snippets run, its commands, names and links exist, its tables are complete."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import sgdwalk
import synthetic
from sgdwalk import cli, rows, run, valley, watching
from sgdwalk.paper.grid import read_grid

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a page in these languages: line number and text."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] in languages:
            yield text[: match.start()].count("\n") + 1, match[2]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# --- snippets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_python_snippet_runs(page, tmp_path, monkeypatch):
    """Those of a page one after the other, in one namespace and an empty folder, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for line, source in blocks(page, "python"):
        code = compile("\n" * line + source, str(page), "exec")  # a failure names the page's own line
        exec(code, namespace)


def test_no_fence_has_an_unknown_language():
    """A block of Python with a misspelt language would never run."""
    for page in PAGES:
        opened = re.findall(r"^```(\S*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(opened) % 2 == 0, page
        assert set(opened[::2]) <= {"python", "console", "text", "json", "sql", "toml"}, page


def test_every_sweep_shown_is_one(tmp_path):
    shown = [text for _, text in blocks(ROOT / "docs" / "sweeps.md", "toml")]
    for text in shown:
        (tmp_path / "sweep.toml").write_text(text)
        read_grid(tmp_path / "sweep.toml")
    (tmp_path / "sweep.toml").write_text(shown[0])
    assert len(read_grid(tmp_path / "sweep.toml").experiments) == 18  # as the page says


def modules() -> list[str]:
    found = pkgutil.walk_packages(sgdwalk.__path__, "sgdwalk.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name, tmp_path, monkeypatch):
    """Where a module says that ``run`` is what open_run returned, it is the walk of tests/synthetic.py."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"run": walk_with_measure()})
    assert result.failed == 0


def walk_with_measure() -> sgdwalk.Run:
    return synthetic.stochastic_descent(60, measures=lambda step: {"batch_sharpness": 18.0 + step})


# --- commands, names, links -------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each sgdwalk command in a page's console blocks, and of those quoted in its text."""
    lines = [line for _, text in blocks(page, "console") for line in text.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`(sgdwalk [^`]+)`", prose(page))]:
        words = shlex.split(line.removeprefix("$ "))
        if words[0] == "sgdwalk":
            yield words[1:]


def test_every_command_mentioned_is_understood(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    num_checked = 0
    for page in PAGES:
        for words in commands(page):
            assert f"• {words[0]} " in told, f"{page}: {words}"
            if words[-1] == "--help":
                with pytest.raises(SystemExit, match="0"):
                    cli.parse(words)
            elif len(words) > 1:  # a command named alone is not an invocation
                cli.parse(words)
            num_checked += 1
    assert num_checked > 10


def test_the_commands_of_the_readme_show_the_run_of_its_snippet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "README.md"
    namespace = {"__name__": "__main__"}
    for _, source in blocks(page, "python"):
        exec(source, namespace)
    invoked = [words for words in commands(page) if words[-1] == "runs/mine"]
    assert [words[0] for words in invoked] == ["show", "report"]
    for words in invoked:
        assert cli.main(words) == 0
    assert "barrier" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_every_make_target_mentioned_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    quoted = {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", prose(page))}
    typed = {
        target
        for page in PAGES
        for _, text in blocks(page, "console")
        for target in re.findall(r"^\$ make ([a-z-]+)$", text, re.MULTILINE)
    }
    assert {"demo", "test", "browser"} <= quoted | typed <= targets


def test_every_name_of_the_package_mentioned_exists():
    submodules = {name.removeprefix("sgdwalk.") for name in modules()}
    for page in PAGES:
        for name in re.findall(r"`sgdwalk\.([a-z_]+(?:\.[a-z_]+)?)", prose(page)):
            first, _, rest = name.partition(".")
            owner = importlib.import_module(f"sgdwalk.{first}") if first in submodules else sgdwalk
            assert hasattr(owner, rest or first) or (first in submodules and not rest), f"{page}: sgdwalk.{name}"


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_internal_link_resolves(page):
    text = prose(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not fragment or fragment in anchors(target), link


def test_every_file_named_exists():
    for page in PAGES:
        for path in re.findall(r"`(?:python )?((?:tests|docs|src|benchmarks)/[\w./-]*)`", prose(page)):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_every_page_is_reached_from_the_index():
    listed = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert "](docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


# --- completeness -----------------------------------------------------------------------------------------------------


def in_first_column(page: str) -> set[str]:
    """The names in backticks in the first column of the page's tables."""
    cells = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_column_of_steps_is_explained():
    described = in_first_column("quantities.md")
    assert set(run.STEP_TABLE_COLUMNS) <= described
    assert {"step", *synthetic.quadratic_walk().segments.columns} <= described


def test_every_argument_of_watch_is_explained():
    assert set(inspect.signature(watching.watch).parameters) <= in_first_column("your-own-loop.md")


def test_the_format_of_the_run_folder_is_told_as_it_is():
    """The page's SQL makes the tables that the store makes, column by column."""
    page = ROOT / "docs" / "run-folder.md"
    told, made = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    for _, statement in blocks(page, "sql"):
        told.executescript(statement)
    for statement in rows.SCHEMA:
        made.execute(statement)
    question = (
        "SELECT m.name, c.name, c.type, c.pk FROM sqlite_master m, pragma_table_info(m.name) c ORDER BY m.name, c.cid"
    )
    assert told.execute(question).fetchall() == made.execute(question).fetchall()
    told.close()
    made.close()


def test_the_files_and_keys_of_a_run_are_those_of_the_page(tmp_path):
    described = re.findall(
        r"^\| `([^`]+)` \|", (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(4, 2), torch.zeros(4, 1)
    with sgdwalk.watch(model, optimizer, torch.nn.MSELoss(), data, run=tmp_path / "mine") as walk:
        model(data[0]).sum().backward()
        optimizer.step()
    info = walk.run.info
    assert {path.name for path in (tmp_path / "mine").iterdir()} <= set(described)
    assert set(info) <= set(described)
    page = prose(ROOT / "docs" / "run-folder.md")
    inner = {*info["settings"], *info["data"], *info["model"], *info["provenance"], *info["optimizers"][0]}
    assert {key for key in inner if f"`{key}`" not in page} == set()


def test_every_kind_of_event_is_explained():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "sgdwalk").glob("*.py"))
    kinds = set(re.findall(r'(?:_event|_tell_once)\(\s*"(\w+)"', source))
    kinds |= set(re.findall(r'\(\s*"(\w+)", message\)', source))
    assert {"skipped_update", "moved_parameters", "loss_unchecked", "provenance_changed"} <= kinds
    assert kinds <= in_first_column("your-own-loop.md")


def test_one_version_is_told_everywhere():
    places = {
        "pyproject.toml": r'^version = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"^## ([\d.]+)",
        "README.md": r"^Version ([\d.]+),",
    }
    for name, pattern in places.items():
        found = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert found[:1] == [sgdwalk.__version__], name


def test_thresholds_are_told_as_they_are():
    assert f"R² ≥ {valley.MIN_R2}" in (ROOT / "docs" / "quantities.md").read_text(encoding="utf-8")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_the_pictures_can_be_made_again(tmp_path, monkeypatch):
    """Whether the tool still draws the committed ones; their numbers may differ in the last digits elsewhere."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))["main"](tmp_path / "pictures")
    for page in ("methods", "curvature"):
        runpy.run_path(str(ROOT / "docs" / f"make_{page}.py"))["main"](tmp_path)
    committed = ROOT / "docs" / "pictures"
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {path.name for path in committed.iterdir()}
    for path in committed.iterdir():
        drawn, kept = (ElementTree.parse(folder / path.name).getroot() for folder in (tmp_path / "pictures", committed))
        assert drawn.get("viewBox") == kept.get("viewBox"), path.name
        assert [element.text for element in drawn.iter() if element.tag.endswith("}text")] == [
            element.text for element in kept.iter() if element.tag.endswith("}text")
        ], path.name
    for page in ("methods", "curvature"):
        assert (tmp_path / f"{page}.md").read_text("utf-8") == (ROOT / "docs" / f"{page}.md").read_text("utf-8"), (
            f"docs/{page}.md does not match benchmarks/results: run python docs/make_{page}.py"
        )


def test_every_picture_is_shown_with_words():
    """Each image has an alternative text, and no committed picture is left unused."""
    shown = set()
    for page in PAGES:
        for tag in re.findall(r"<img [^>]*>", prose(page)):
            assert re.search(r'alt="[^"]{20,}"', tag), f"{page}: {tag}"
            shown.add(Path(re.findall(r'src="([^"]+)"', tag)[0]).name)
        assert "![" not in prose(page), f"{page}: an <img> with alt and width is wanted"
    assert shown == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
