"""The page about runs: its figures are those of the records, in Markdown and in HTML, whatever the records say."""

import json
import math
import os
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from jaxgpt.errors import InputError
from jaxgpt.report.__main__ import main, read_arguments
from jaxgpt.report.blocks import Items, Page, Paragraph
from jaxgpt.report.curves import MAX_POINTS, draw_curves, read_points
from jaxgpt.report.html import DARK, LIGHT
from jaxgpt.report.markdown import to_markdown
from jaxgpt.report.records import read_run
from jaxgpt.report.reference import PUBLISHED, TASKS
from jaxgpt.run.results import write_result
from parity_tests.helpers.report_runs import (
    N_PARAMS,
    make_config,
    write_checkpoint,
    write_history,
    write_metrics,
    write_run,
)

MID = {"ARC-Easy": 0.35611, "GSM8K": 0.025, "ChatCORE": 0.0730}
SFT = {"ARC-Easy": 0.38764, "GSM8K": 0.0455, "HumanEval": 0.08539, "ChatCORE": 0.0884}
WANTED = """\
| Metric          | BASE     | MID      | SFT      | RL       |
|-----------------|----------|----------|----------|----------|
| CORE            | 0.2219   | -        | -        | -        |
| ARC-Easy        | -        | 0.3561   | 0.3876   | -        |
| GSM8K           | -        | 0.0250   | 0.0455   | -        |
| HumanEval       | -        | -        | 0.0854   | -        |
| ChatCORE        | -        | 0.0730   | 0.0884   | -        |
"""
"""As nanochat's report lays it out."""
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Reader(HTMLParser):
    """Elements of a page, the text of table cells, and whether every element is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.rows, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Three stages of the four."""
    root = tmp_path_factory.mktemp("stages")
    return [
        write_run(root / "base", "base", {"CORE": 0.22187}),
        write_run(root / "mid", "mid", MID, make_config(seed=2)),
        write_run(root / "sft", "sft", SFT),
    ]


@pytest.fixture(scope="module")
def pages(stages, tmp_path_factory):
    """report.md and report.html of the three."""
    out = tmp_path_factory.mktemp("out")
    assert main([*map(str, stages), "--out", str(out), "--price", "24"]) == 0
    return (out / "report.md").read_text(), (out / "report.html").read_text()


def rows_of_markdown(text):
    """The cells of its tables as an independent program shows them."""
    return Reader(MarkdownIt("commonmark", {"html": True}).enable("table").render(text)).rows


def shown_rows(html):
    return [row for row in Reader(html).rows if row]


def test_the_table_of_stages_is_nanochats_and_missing_stages_are_named(pages):
    markdown, html = pages
    assert WANTED in markdown
    for page in pages:
        assert "Missing stages: RL." in page
    wanted = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in WANTED.splitlines() if "---" not in line
    ]
    assert [row for row in shown_rows(html) if row in wanted] == wanted


def test_both_pages_have_the_same_tables(pages):
    markdown, html = pages
    rows = shown_rows(html)
    assert rows == rows_of_markdown(markdown) and len(rows) > 30


def test_figures_of_runs_are_those_of_the_records(pages):
    rows = shown_rows(pages[1])
    _, _, model, params, *figures = next(row for row in rows if row[0] == "MID" and row[2].startswith("gpt2"))
    assert (model, params) == ("gpt2, 1 x 32", f"{N_PARAMS:,}")
    assert figures == ["40", "10,240", "3.0000", "3.1000", "1.2500"]
    assert ["MID", "1 h 30 min", "30.0 s", "1 h 31 min", f"{24 * 90.5 / 60:.2f}"] in rows
    assert ["Together", "4 h 30 min", "1 min 30 s", "4 h 32 min", f"{24 * 271.5 / 60:.2f}"] in rows
    assert ["run.seed", "1", "2", "1"] in rows
    for name, value in (("Commit", "c" * 40), ("SHA-256 of the data", "d" * 64), ("Devices", "8 x NVIDIA H100"),
                        ("Versions", "jaxgpt 0.1.0, jax 0.10.2"), ("Began", "2026-01-31 10:00+00:00")):  # fmt: skip
        assert [name, value, value, value] in rows


def test_the_page_needs_no_other_file_and_runs_nothing(pages):
    found = Reader(pages[1])
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(found.tags) and "svg" in found.tags
    links = [value for name, value in found.attributes if name in ("href", "src", "xlink:href", "action", "data")]
    assert links and all(value.startswith("#") for value in links)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert set(re.findall(r"https?://[^/]*", pages[1])) == {"http://www.w3.org"} and "<metadata" not in pages[1]
    assert "@import" not in pages[1] and set(re.findall(r"url\((.)", pages[1])) <= {"#"}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in found.attributes
    assert ("lang", "en") in found.attributes and ("scope", "col") in found.attributes
    assert "data:" not in pages[0] and "](curves.png)" in pages[0]


def test_no_curve_keeps_a_colour_of_one_ground_alone(pages):
    svg = pages[1][pages[1].index("<svg") : pages[1].index("</svg>")]
    assert "var(--s0)" in svg and "var(--s2)" in svg and "var(--ink)" in svg
    assert re.findall(r"(?:stroke|fill): (#\w+)", svg) == []


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrasts_are_those_of_wcag_aa(colours):
    for ground in ("ground", "stripe"):
        for name in set(colours) - {"ground", "stripe"}:
            low, high = sorted(luminance(colours[one]) for one in (ground, name))
            least = 4.5 if name in ("ink", "faint") else 3.0
            assert (high + 0.05) / (low + 0.05) >= least, (ground, name)


# Several runs


def test_runs_of_one_stage_stand_side_by_side(tmp_path):
    runs = [write_run(tmp_path / name, "base", {"CORE": core}, make_config(seed))
            for name, core, seed in (("_a", 0.1, 1), ("$b$", 0.2, 2))]  # fmt: skip
    assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    rows = shown_rows(html)
    names = [f"BASE {run}" for run in runs]
    assert ["Metric", *names, "MID", "SFT", "RL"] in rows and ["CORE", "0.1000", "0.2000", "-", "-", "-"] in rows
    assert ["Setting", *names] in rows and [row for row in rows if row[0] == "run.seed"] == [["run.seed", "1", "2"]]
    assert "train.steps" not in html and html.count("<svg") == 1
    assert "Missing stages: MID, SFT, RL." in html and "Costs need --price" in html


def test_curves_are_bounded_and_keep_their_means():
    records = [{"step": step, "train_loss": float(step % 7)} for step in range(7001)]
    points = read_points(records, "train_loss")
    assert len(points) == math.ceil(7001 / 8) <= MAX_POINTS
    assert points[0] == (3.5, sum(step % 7 for step in range(8)) / 8)
    assert read_points([{"step": 3, "val_loss": 1.0}, {"step": 4}], "val_loss") == [(3.0, 1.0)]


def test_names_in_pictures_are_text(tmp_path):
    """A legend leaves out names with a leading underscore, and matplotlib reads dollars as mathematics."""
    name = "_x</text><script>$\\frac$--><b>\x1b"
    run = replace(read_run(write_run(tmp_path / "r", "base", {}), name), metrics=[{"step": 1, "train_loss": 2.0}])
    picture = draw_curves([run], [name])
    assert picture and picture.png.startswith(b"\x89PNG")
    assert "_x&lt;/text&gt;&lt;script&gt;$\\frac$--&gt;&lt;b&gt;\\x1b" in picture.svg
    assert "script" not in Reader(picture.svg).tags and "<!--" not in picture.svg


def test_a_stage_can_be_named(tmp_path):
    """Of a run that has nothing but evaluations, too."""
    (tmp_path / "run").mkdir()
    write_result(tmp_path / "run", "tasks", 5, 1.0, {"GSM8K": {"score": 0.0455}}, {})
    assert main([f"rl={tmp_path}/run", "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert ["GSM8K", "-", "-", "-", "0.0455"] in shown_rows(html) and "there are no curves" in html


# Hostile and damaged records

HOSTILE = '"><img src=x onerror=alert(1)> |`[a](http://x)` **b** <script>\n# c \x1b[2J &amp; 1. ~~d~~ $e$ _f_'


def test_texts_of_records_are_shown_and_do_nothing(tmp_path):
    run = write_run(tmp_path / "1. <i>|_x_*y*`z`", "base", {"CORE": 0.5, HOSTILE: 0.25})
    write_checkpoint(run, make_config(), 41, digest=HOSTILE)
    history = json.loads((run / "history.jsonl").read_text().splitlines()[0])
    (run / "history.jsonl").write_text(json.dumps(history | {"commit": HOSTILE, "versions": {HOSTILE: HOSTILE}}) + "\n")
    out = tmp_path / "out"
    assert main([str(run), "--out", str(out)]) == 0
    html, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    rendered = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    assert shown_rows(html) == Reader(rendered).rows
    shown = HOSTILE.replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert [shown, "0.2500", "-", "-", "-"] in shown_rows(html)
    assert not {"img", "script", "i", "a"} & set(Reader(html).tags)
    assert not {"script", "i", "a", "em", "strong", "code", "s", "ol", "h3"} & set(Reader(rendered).tags)
    assert Reader(rendered).tags.count("img") == 1  # the curves
    assert "\x1b" not in html + markdown


@pytest.mark.parametrize(
    "text", ["- a", "+ a", "1. a", "12) a", "# a", "> a", "<script x", "=== ", "--- ", "| a | b |", "    a", "![a](b)"]
)
def test_texts_that_begin_like_markup_are_paragraphs(text):
    for block in (Paragraph(text), Items((text, "b"))):
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(to_markdown(Page("t", (block,))))
        assert set(Reader(html).tags) <= {"h1", "p", "ul", "li"}, html
        assert text.strip() in unescape(html)


def test_damaged_records_are_named_and_left_out(tmp_path, capsys):
    run = write_run(tmp_path / "run", "sft", {"GSM8K": 0.5})
    good = (run / "evaluations").glob("tasks-*.json")
    record = json.loads(next(good).read_text())
    faults = {
        "a.json": ("{", "it is not JSON"),
        "b.json": ("[" * 100_000, "it is not JSON"),
        "c.json": (json.dumps(record).replace("0.5", "NaN"), "it is not JSON"),
        "d.json": (json.dumps(record | {"format": 9}), "format 9"),
        "e.json": (json.dumps(record | {"kind": "x"}), "no kind"),
        "f.json": (json.dumps(record | {"results": {"GSM8K": {"score": True}}}), "something else than numbers"),
        "g.json": (json.dumps(record | {"results": {"GSM8K": {"score": 10**400}}}), "something else than numbers"),
        "h.json": (json.dumps(record | {"results": {"GSM8K": {"loss": 1}}}), "no score"),
        "i.json": (json.dumps(record | {"time": "2026-01-31"}), "no time"),
        "j.json": (json.dumps(record | {"step": -1}), "no step"),
    }
    for name, (text, _) in faults.items():
        (run / "evaluations" / name).write_text(text)
    os.mkfifo(run / "evaluations" / "pipe.json")
    write_checkpoint(run, make_config(), 50)
    manifest = run / "checkpoints" / "50" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"val_loss": 3.5', '"val_loss": 0.5'))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {10**300}, "train_loss": 1}}\n{{"step": 41, "train_loss": {10**400}}}\nbroken\n')
    with (run / "history.jsonl").open("a") as file:
        file.write('broken\n{"step": true, "time": "2026-01-31T12:00:00+00:00"}\n')
    out = tmp_path / "out"
    assert main([str(run), "--out", str(out)]) == 0
    html, said = (out / "report.html").read_text(), capsys.readouterr().out
    wanted = {f"{run}/evaluations/{name}": fault for name, (_, fault) in faults.items()} | {
        f"{run}/evaluations/pipe.json": "it is a pipe",
        f"{run}/checkpoints/50 is not a checkpoint": "manifest.json was changed",
        f"{run}/metrics.jsonl: line": "43 damaged",
        f"{run}/metrics.jsonl: 1 records": "impossible step",
        f"{run}/history.jsonl: 2 damaged": "line 3",
    }
    for text in (html, said):
        for begin, fault in wanted.items():
            assert re.search(f"[Ll]eft out: {re.escape(begin)}.*{fault}", text), (begin, fault)
    rows = shown_rows(html)
    assert ["GSM8K", "-", "-", "0.5000", "-"] in rows
    assert next(row for row in rows if row[0] == "SFT" and row[2] == "gpt2, 1 x 32")[4:7] == ["40", "10,240", "3.0000"]


def test_a_killed_process_counts_up_to_its_last_sign_of_life(tmp_path):
    run = write_run(tmp_path / "run", "base", {})
    began = "2026-01-31T12:00:00+00:00"
    with (run / "history.jsonl").open("a") as file:
        for step, time in ((20, began), (25, "2026-01-31T12:07:30+00:00")):
            file.write(json.dumps({"step": step, "time": time} | ({"began": True} if time == began else {})) + "\n")
        file.write('{"step": 26, "ti')
    found = read_run(run, "run")
    assert found.seconds == 90 * 60 + 7.5 * 60 and [one.was_closed for one in found.sessions] == [True, False]
    assert len(found.faults) == 1 and "line 5" in found.faults[0]


def test_the_newest_score_counts(tmp_path):
    run = write_run(tmp_path / "run", "rl", {"GSM8K": 0.1})
    assert read_run(run, "run").score("GSM8K") == 0.1
    newer = write_run(tmp_path / "other", "rl", {"GSM8K": 0.3}, step=50)
    path = next((newer / "evaluations").glob("*.json"))
    path.rename(run / "evaluations" / path.name)
    assert read_run(run, "run").score("GSM8K") == 0.3 and read_run(run, "run").stage == "rl"


# Bad input


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ("nothing", "nothing does not exist; give directories of runs"),
        ("empty", "empty has no record of a run"),
        ("mid=nothing", "nothing does not exist"),
        ("run run", "run is given twice"),
        ("run sft=run/", "run is given twice"),
        ("run --price -1", "--price=-1.0 is not a price"),
        ("run --price nan", "--price=nan is not a price"),
        ("run --out link", "link is a symbolic link"),
        ("run --out run/metrics.jsonl", "cannot be made"),
        ("", "RUN"),
    ],
)
def test_bad_input_gives_one_line(in_tmp_path, tmp_path, args, wanted):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "run").mkdir()
    write_metrics(tmp_path / "run", 3)
    with pytest.raises(InputError) as caught:
        main(args.split())
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "empty").iterdir())


def test_a_run_without_history_or_checkpoint_has_dashes(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_metrics(run, 3)
    assert main([str(run), "--out", str(tmp_path / "out"), "--price", "2"]) == 0
    rows = shown_rows((tmp_path / "out" / "report.html").read_text())
    assert ["BASE", "-", "-", "-", "-"] in rows
    assert ["BASE", str(run), "-", "-", "3", "768", "3.0000", "3.1000", "1.2500"] in rows
    write_history(run, "mid")
    assert read_run(run, "run").stage == "mid"


def test_names_of_stages_are_read():
    assert read_arguments(["sft=a/b/", "s3://x/y", "lr=1"]).runs == [("sft", "a/b"), ("", "s3://x/y"), ("", "lr=1")]


# Published results


def test_published_chatcore_follows_from_the_published_tasks():
    """The mean of scores above chance, over as many tasks as the run had; two routes to each row's last figure."""
    chance = {"ARC-Easy": 0.25, "ARC-Challenge": 0.25, "MMLU": 0.25}
    checked = 0
    for row in PUBLISHED:
        scores = [(score - chance.get(task, 0)) / (1 - chance.get(task, 0)) for task, score in row.scores.items()
                  if task in TASKS[:-1]]  # fmt: skip
        if "ChatCORE" in row.scores and "Ascend" not in row.run:  # of which the page says that it does not
            assert abs(sum(scores) / len(scores) - row.scores["ChatCORE"]) < 2e-4, row
            checked += 1
    assert checked == 9
