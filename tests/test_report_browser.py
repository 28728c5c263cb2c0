"""The page in a real browser: opens from disk, sorts, switches axes, needs no mouse, and asks nobody for anything."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser
import report_material
import toy
from peftlab.cli import main
from peftlab.records.store import RunStore
from peftlab.report import page
from peftlab.report.contents import Page
from test_report import HOSTILE, Reader, cells, made
from verdict_material import Lab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.program() is None, reason=f"no browser here: none of {', '.join(browser.NAMES)}"),
]

COLUMN = """[...document.querySelectorAll('#scores tbody tr')]
    .map((row) => row.children[%d].innerText.trim().split("\\n")[0])"""
TIP = "document.querySelector('#cost .tip').textContent"


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def window(one_browser: browser.Browser) -> Iterator[browser.Browser]:
    """A browser of which no test may bring up an error or a request."""
    one_browser.errors, one_browser.requests = [], []
    one_browser.size(1280)
    yield one_browser
    assert one_browser.errors == []
    assert one_browser.requests == []


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of eight arms."""
    root = tmp_path_factory.mktemp("eight")
    assert main(["report", str(report_material.folder(root, arms=8, seeds=3)), "-o", str(root / "page.html")]) == 0
    return root / "page.html"


@pytest.fixture
def shown(file: Path, window: browser.Browser) -> Page:
    """The same, opened."""
    window.open(file)
    return Reader(file.read_text()).data


def sort_by(window: browser.Browser, column: str) -> str:
    """Click a column's head; returns how it says that it is sorted."""
    window.run(f"document.querySelector('#scores thead button[data-column=\"{column}\"]').click()")
    return str(window.run(f"document.querySelector('button[data-column=\"{column}\"]').closest('th').ariaSort"))


def test_sorts_by_a_click(window: browser.Browser, shown: Page) -> None:
    arms = [cells(shown.sheets[0], row) for row in shown.sheets[0].rows if row.kind == "arm"]
    assert window.run(COLUMN % 0)[:8] == [arm["experiment"] for arm in arms]
    assert sort_by(window, "train_seconds") == "ascending"
    expected = [arm["experiment"] for arm in sorted(arms, key=lambda arm: arm["train_seconds"])]
    assert window.run(COLUMN % 0)[:8] == expected
    assert sort_by(window, "train_seconds") == "descending"
    assert window.run(COLUMN % 0)[:8] == expected[::-1]
    assert sort_by(window, "score") == "descending"
    # what was not measured stands last, whichever way
    for _ in range(2):
        sort_by(window, "memory_max")
        values = window.run(COLUMN % 6)
        assert values.index("not measured") == 7
        assert values[8] == "-"


def frontier(shown: Page, x: str, y: str) -> list[str]:
    """The arms that no other is at least as good as on both and better on one, by the columns' own directions."""
    sheet = shown.sheets[0]
    sign = {column.name: {"lower": -1, "higher": 1}.get(column.direction or "") for column in sheet.columns}
    arms = [cells(sheet, row) for row in sheet.rows if row.kind == "arm"]
    points = [(arm["experiment"], arm[x] * sign[x], arm[y] * sign[y]) for arm in arms if None not in (arm[x], arm[y])]
    return sorted(
        name for name, a, b in points if not any(c >= a and d >= b and (c > a or d > b) for _, c, d in points)
    )


def choose(window: browser.Browser, number: int, value: str) -> None:
    window.run(
        f"(() => {{ const menu = document.querySelectorAll('#axes select')[{number}]; menu.value = '{value}';"
        " menu.dispatchEvent(new Event('change')); })()"
    )


def test_switches_axes_and_marks_the_frontier(window: browser.Browser, shown: Page) -> None:
    marked = "document.querySelector('#cost > div').dataset.frontier.split('\\n')"
    assert window.run(marked) == frontier(shown, "memory_max", "score")
    assert len(window.run("[...document.querySelectorAll('#cost svg circle')].map(() => 1)")) == 7
    for x, y in (("trainable_parameters", "score"), ("adapter_bytes", "train_loss"), ("train_seconds", "base_score")):
        choose(window, 0, x)
        choose(window, 1, y)
        assert window.run(marked) == frontier(shown, x, y), (x, y)
        assert window.run("document.querySelectorAll('#cost svg circle').length") == 8
    choose(window, 0, "train_samples")
    assert window.run(marked) == [""]
    assert "neither direction is better" in window.run("document.querySelector('#cost').innerText")
    window.run("document.querySelectorAll('#axes input')[0].click()")
    assert window.run("document.querySelectorAll('#axes input')[0].checked") is True


def lines(window: browser.Browser, selector: str) -> list[list[str]]:
    """The cells of a table's lines."""
    rows = f"[...document.querySelectorAll('{selector} tbody tr')]"
    found: list[list[str]] = window.run(f"{rows}.map((row) => [...row.children].map((cell) => cell.innerText.trim()))")
    return found


def test_the_spread_on_both_axes(window: browser.Browser, shown: Page) -> None:
    arms = [cells(shown.sheets[0], row) for row in shown.sheets[0].rows if row.kind == "arm"]
    choose(window, 0, "train_samples")
    scores = [arm["score"] for arm in arms]
    expected = [f"{value:.4f}" for value in (min(scores), sum(scores) / len(scores), max(scores))]
    assert lines(window, "#cost .spread") == [
        ["exact_match", *expected, "higher"],
        ["train samples", "8,000", "8,000", "8,000", "neither"],
    ]
    choose(window, 0, "score")
    assert lines(window, "#cost .spread") == [["exact_match", *expected, "higher"]]


FILLED = """[...document.querySelectorAll('#cost svg circle')]
    .filter((one) => one.getAttribute('fill') !== 'var(--paper)')
    .map((one) => one.getAttribute('aria-label').split(',')[0])"""


def test_a_method_is_highlighted(window: browser.Browser, shown: Page, file: Path) -> None:
    arms = [cells(shown.sheets[0], row) for row in shown.sheets[0].rows if row.kind == "arm"]
    choose(window, 0, "train_seconds")
    best = frontier(shown, "train_seconds", "score")
    assert sorted(window.run(FILLED)) == best
    mine = sorted(arm["experiment"] for arm in arms if arm["method"] == "lora")
    assert 1 < len(mine) < len(arms)
    choose(window, 2, "lora")
    assert sorted(window.run(FILLED)) == mine
    kept = len(set(mine) & set(best))
    text = window.run("document.querySelector('#cost').innerText")
    assert f"{len(mine)} of lora (filled)" in text and f"{kept} of them of lora" in text
    window.run("document.querySelector('.chart').focus()")
    window.press("End")
    assert window.run(TIP).startswith(max(arms, key=lambda arm: arm["train_seconds"])["experiment"])
    choose(window, 2, "")
    assert sorted(window.run(FILLED)) == best
    window.open(file, "?highlight=LoRA")
    assert set(window.run(FILLED)) <= set(mine) != set()
    window.open(file, "?highlight=nothing")
    choose(window, 0, "train_seconds")
    assert sorted(window.run(FILLED)) == best


def test_settings_of_one_run_and_of_two(window: browser.Browser, shown: Page) -> None:
    own = shown.runs[0].own
    assert lines(window, "#settings > div > div") == [[name, str(own[name])] for name in sorted(own)]
    other = next(index for index, run in enumerate(shown.runs) if run.own.get("adapter.r") != own["adapter.r"])
    window.run(
        "(() => { const menu = document.querySelectorAll('#beside select')[1];"
        f" menu.value = '{other}'; menu.dispatchEvent(new Event('change')); }})()"
    )
    found = {name: values for name, *values in lines(window, "#settings > div > div")}
    assert found["adapter.r"] == [str(own["adapter.r"]), str(shown.runs[other].own["adapter.r"])]
    differing = [name for name, (one, another) in found.items() if one != another]
    assert window.run("document.querySelectorAll('#settings tr.differs').length") == len(differing) > 0
    window.run("document.querySelector('#settings details').open = true")
    assert lines(window, "#settings details") == [[name, str(value)] for name, value in sorted(shown.shared.items())]


def test_works_without_a_mouse(window: browser.Browser, shown: Page) -> None:
    window.run("document.querySelector('#scores thead button[data-column=\"score\"]').focus()")
    window.press("Enter")
    assert window.run("document.querySelector('th[aria-sort=descending]').innerText.trim()") == "exact_match"
    window.run("document.querySelector('.chart').focus()")
    window.press("Home")
    sheet = shown.sheets[0]
    arms = [cells(sheet, row) for row in sheet.rows if row.kind == "arm"]
    known = sorted(
        (arm["memory_max"], arm["score"], arm["experiment"]) for arm in arms if arm["memory_max"] is not None
    )
    assert window.run(TIP).startswith(known[0][2])
    window.press("ArrowRight")
    tip = window.run(TIP)
    assert tip.startswith(known[1][2]) and f"exact_match: {known[1][1]:.4f} (" in tip
    window.press("End")
    assert window.run(TIP).startswith(known[-1][2])
    window.press("Tab")
    assert window.run(TIP) == ""
    # every control can be reached, and says what it is
    assert window.run("[...document.querySelectorAll('select, input')].every((one) => one.closest('label'))") is True
    assert window.run("document.querySelectorAll('[tabindex]:not([tabindex=\"0\"]):not(main)').length") == 0


def test_filter_and_columns_and_curves(window: browser.Browser, shown: Page) -> None:
    window.run("document.getElementById('filter').value = 'ia3/r6'")
    window.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    assert window.run(COLUMN % 0) == ["ia3/r6"]
    assert window.run("document.querySelectorAll('#cost svg circle').length") == 1
    window.run("[...document.querySelectorAll('#scores button')].find((one) => one.textContent === 'all').click()")
    assert window.run("document.querySelectorAll('#scores thead th').length") == len(shown.sheets[0].columns) + 1
    lines = "document.querySelectorAll('#curves figure:first-child g[aria-label=line] path').length"
    assert window.run(lines) == 6
    window.run("document.querySelectorAll('#curves .picker input:not(:checked)')[0].click()")
    assert window.run(lines) == 7
    assert window.run("document.querySelectorAll('#curves .legend li').length") == 7


def test_saves_what_is_shown_as_csv(window: browser.Browser, shown: Page) -> None:
    window.run("URL.createObjectURL = (blob) => { window.saved = blob.text(); return '#'; }")
    sort_by(window, "train_seconds")
    window.run(
        "[...document.querySelectorAll('#scores button')].find((one) => one.textContent === 'save as CSV').click()"
    )
    lines = list(csv.DictReader(io.StringIO(window.run("window.saved"), newline="")))
    assert [line["experiment"] for line in lines] == window.run(COLUMN % 0)
    arms = {arm["experiment"]: arm for arm in (cells(shown.sheets[0], row) for row in shown.sheets[0].rows)}
    for line in lines:
        assert float(line["score"]) == arms[line["experiment"]]["score"]
        assert (line["memory_max"] == "") is (arms[line["experiment"]]["memory_max"] is None)


def test_tasks_and_models_can_be_chosen(window: browser.Browser, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    for name, model in (("lora/a", "org/tiny"), ("lora/b", "org/other"), ("lora/-2", "org/other")):
        scored = [
            lab.evaluation(f"{name}-{task}", "last", lab.outcomes(skill), task=task)
            for task, skill in (("gsm8k", 0.5), ("other", 0.3))
        ]
        lab.run(name, 0, None, evaluations=tuple(scored), spec={"model": {"id": model}})
    (tmp_path / "page.html").write_text(page.render(made(lab)))
    window.open(tmp_path / "page.html")
    assert "2 tasks, 6 arms, 3 runs" in window.run("document.getElementById('summary').textContent")
    assert len(window.run(COLUMN % 0)) == 3
    change = "(() => {{ const menu = document.querySelectorAll('#choice select')[{}]; menu.value = '{}'; {} }})()"
    event = "menu.dispatchEvent(new Event('change'));"
    window.run(change.format(0, "1", event))
    assert "other, test rows" in window.run("document.querySelector('#scores p').textContent")
    window.run(change.format(1, "org/tiny", event))
    assert window.run(COLUMN % 0) == ["lora/a"]


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_and_can_be_read(window: browser.Browser, file: Path, width: int, dark: bool) -> None:
    window.size(width, dark=dark)
    window.open(file)
    assert window.run("document.documentElement.scrollWidth") <= width
    window.run("document.querySelectorAll('option').forEach((one) => { one.textContent += ', long'.repeat(20); })")
    assert window.run("document.documentElement.scrollWidth") <= width
    assert (
        window.run("Math.max(...[...document.querySelectorAll('figure svg')].map((one) => one.clientWidth))") <= width
    )
    ratio = window.run(
        """(() => {
          const light = (text) => text.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255)
            .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
            .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
          const paper = light(getComputedStyle(document.body).backgroundColor);
          const ratios = ['body', '.quiet', '.interval', '.missing', 'nav a', 'summary'].map((name) => {
            const ink = light(getComputedStyle(document.querySelector(name)).color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
          });
          return Math.min(...ratios);
        })()"""
    )
    assert ratio >= 4.5, "WCAG 2.2, 1.4.3"
    is_dark = window.run("matchMedia('(prefers-color-scheme: dark)').matches")
    assert is_dark is dark


def test_hostile_names_are_text(window: browser.Browser, tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab")
    base = lab.evaluation("base/gsm8k-0", "base", lab.outcomes(0.2))
    for number, name in enumerate(HOSTILE):
        record = report_material.run(lab, "lora", number, 0, base, points=5)
        lab.records[-1] = record.model_copy(update={"experiment": name})
    (tmp_path / "page.html").write_text(page.render(made(lab)))
    window.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.broken = true; };")
    window.open(tmp_path / "page.html")
    assert set(HOSTILE) <= set(window.run(COLUMN % 0))
    assert window.run("window.broken") is None
    assert window.run("document.querySelectorAll('img').length") == 0


def test_the_policy_stops_what_is_not_ours(tmp_path: Path, file: Path) -> None:
    """Were a name ever written as markup, it would still not run."""
    text = file.read_text().replace("<main ", "<script>window.broken = true</script><main ", 1)
    (tmp_path / "bad.html").write_text(text)
    with browser.browser(tmp_path / "other") as found:
        found.open(tmp_path / "bad.html")
        assert found.run("window.broken") is None
        assert any("Content Security Policy" in error for error in found.errors)


def test_a_thousand_runs(window: browser.Browser, tmp_path: Path) -> None:
    results = report_material.folder(tmp_path, arms=1000, seeds=1)
    target = tmp_path / "page.html"
    started = time.perf_counter()
    assert main(["report", str(results), "-o", str(target)]) == 0
    assert time.perf_counter() - started < 60
    assert target.stat().st_size < 5_000_000
    window.open(target)
    assert window.run("document.querySelectorAll('#scores tbody tr').length") == 1001
    assert window.run("document.querySelectorAll('#cost svg circle').length") == 999
    click = "document.querySelector('#scores thead button').click()"
    clicked = f"(() => {{ const start = performance.now(); {click}; return performance.now() - start; }})()"
    assert window.run(clicked) < 3000


def test_runs_of_a_tiny_model(window: browser.Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    more: dict[str, Any] = {"train": {"eval_steps": 3}}
    for name, adapter in (("lora/toy", toy.LORA), ("lora/wide", {**toy.LORA, "r": 8})):
        toy.write_experiment(tmp_path, name=name, adapter=adapter, **more)
        assert main(["run", f"experiments/{name}"]) == 0
    assert len(RunStore("results").records()) == 2
    assert main(["report"]) == 0
    shown = Reader((tmp_path / "report.html").read_text()).data
    arm = cells(shown.sheets[0], shown.sheets[0].rows[0])
    unknown = {name for name, value in arm.items() if value is None}
    assert unknown <= {"forgetting", "retention"}
    assert arm["train_samples"] == 24
    window.open(tmp_path / "report.html")
    assert sorted(window.run(COLUMN % 0))[:2] == ["lora/toy", "lora/wide"]
    assert window.run("document.querySelectorAll('#curves svg').length") >= 2
