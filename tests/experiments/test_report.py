"""`hrpo report`: what is on the page, from run folders and from results that were kept."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from hrpo.cli.main import main
from hrpo.config.schema import EvalConfig, ModelConfig, RolloutConfig, TrainConfig
from hrpo.experiments.report import arms_of, report
from hrpo.experiments.sweep import compare, of_modes
from hrpo.reports.plots import OF_REPORT


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two modes from two seeds, in folders and as kept results."""
    folder = tmp_path_factory.mktemp("runs")
    config = TrainConfig(
        name="{mode}-{seed}",
        output_dir=str(folder),
        max_steps=3,
        model=ModelConfig(lora_rank=0),
        rollout=RolloutConfig(prompts_per_step=2, group_size=2, max_new_tokens=16),
        eval=EvalConfig(problems=6, batch=6),
    )
    compare(of_modes(config, ["hybrid", "discrete"]), [0, 1])
    return folder


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_several_seeds(runs, tmp_path):
    paths = [str(runs / f"{mode}-{seed}") for mode in ("hybrid", "discrete") for seed in (0, 1)]
    written = report(paths, str(tmp_path / "page.html"))
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    page, text = Page((tmp_path / "page.html").read_text()), (tmp_path / "page.md").read_text()
    assert [address[:22] for address in page.addresses] == ["data:image/png;base64,"]  # it needs nothing else
    assert "script" not in page.tags
    words = "\n".join(page.words)
    for said in ("mode hybrid and mode discrete", "mode discrete - mode hybrid", "Paired by seed", "latent.mode"):
        assert said in words
        assert said in text
    comparison = json.loads((runs / "comparison.json").read_text())
    greedy = comparison["differences"][0]
    assert f"{100 * greedy['difference']:+.1f} [" in text
    assert f"| {greedy['p']:.3f} | {greedy['p_holm']:.3f} |" in text
    asked = json.loads((runs / "hybrid-0" / "answers-after-greedy.jsonl").read_text().splitlines()[0])
    assert asked["question"] in words
    assert asked["completion"].strip() in words


def test_kept_results_tell_the_same_but_for_answers(runs, tmp_path):
    for kind, ending in (("folders", ""), ("kept", ".json")):
        report([str(runs / f"{mode}-0{ending}") for mode in ("hybrid", "discrete")], str(tmp_path / kind))
    folders, kept = ((tmp_path / f"{kind}.md").read_text().replace(kind, "") for kind in ("folders", "kept"))
    assert re.sub(r"## Answers.*?\n(?=## )", "", folders, flags=re.DOTALL) == kept
    assert "McNemar" in kept


def test_seeds_that_do_not_match_are_not_compared(runs, tmp_path):
    report([str(runs / "hybrid-0"), str(runs / "discrete-1")], str(tmp_path / "page"))
    assert "nothing is paired" in (tmp_path / "page.md").read_text()


def test_a_run_that_is_not_finished(runs, tmp_path):
    running = json.loads((runs / "hybrid-0.json").read_text())
    del running["evaluation"]["after"]
    (tmp_path / "running.json").write_text(json.dumps(running))
    report([str(tmp_path / "running.json")], str(tmp_path / "page"))
    assert "| hybrid-0 | - | - |" in (tmp_path / "page.md").read_text()


def test_arms_are_told_by_what_differs(runs):
    (arm,) = arms_of([str(runs / "hybrid-0"), str(runs / "hybrid-1.json")])
    assert (arm.label, sorted(arm.runs), list(arm.folders)) == ("hybrid-0", [0, 1], [0])
    assert [arm.label for arm in arms_of([str(runs / "discrete-0"), str(runs / "hybrid-1")])] == [
        *("mode discrete", "mode hybrid")
    ]


def test_what_a_model_wrote_is_text(runs, tmp_path):
    hostile = "</td><script>alert(1)</script> | **x** \n```"
    for when in ("before", "after"):
        path = runs / "discrete-1" / f"answers-{when}-greedy.jsonl"
        rows = [{**json.loads(line), "completion": hostile} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report([str(runs / "discrete-1")], str(tmp_path / "page"))
    page = Page((tmp_path / "page.html").read_text())
    assert "script" not in page.tags
    assert hostile in "\n".join(page.words)
    assert "&lt;script&gt;" in (tmp_path / "page.md").read_text()


def test_every_curve_is_a_metric(runs):
    metrics = json.loads((runs / "hybrid-0.json").read_text())["metrics"].keys()
    assert set(OF_REPORT) - metrics == {"nll", "accuracy"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", r"RUN: no file or folder \S+nowhere; name a run folder, or a result"),
        (".", r"RUN: \S+ is no run folder; name"),
        ("comparison.json", r"RUN: \S+comparison.json is no result of a run"),
        ("hybrid-0 {}/hybrid-0.json", r"RUN: \S+ has the settings and the seed of another one"),
    ],
)
def test_what_is_no_run(runs, tmp_path, capsys, path, said):
    words = [f"{runs}/{part}" if not part.startswith("{") else part.format(runs) for part in path.split(" ")]
    with pytest.raises(SystemExit, match="2"):
        main(["report", *words, "--out", str(tmp_path / "page")])
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_arms_with_other_test_problems_are_not_paired(runs, tmp_path):
    """Whether these are a seed's other ones, or more of them."""
    kept = json.loads((runs / "hybrid-0.json").read_text())
    kept["settings"]["task"]["max_terms"] += 1
    (tmp_path / "other.json").write_text(json.dumps(kept))
    report([str(runs / "hybrid-0"), str(tmp_path / "other.json")], str(tmp_path / "page"))
    text = (tmp_path / "page.md").read_text()
    assert "The arms were asked different test problems: nothing is paired." in text
    assert "McNemar" not in text


@pytest.mark.parametrize("out", ["", ".", "..", ".html"])
def test_a_page_needs_a_name(runs, capsys, monkeypatch, tmp_path, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(runs / "hybrid-0"), "--out", out])
    assert re.search(r"--out: '\S*' names no file", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_damaged_runs(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    for name, text in (
        ("evaluation.json", '{"before": 3}'),
        ("answers-before-greedy.jsonl", ""),
        ("metrics.jsonl", "[1]"),
        ("config.yaml", "7"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs / "hybrid-0", folder)
        (folder / name).write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(folder), str(runs / "discrete-0"), "--out", str(tmp_path / "page")])
        assert re.search(r"RUN: \S+run is damaged \(.+\); name a run folder", capsys.readouterr().err)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
