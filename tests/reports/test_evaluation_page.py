"""The page on an evaluation: verdicts of turns, scores, pictures within their limits, nothing from outside."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from prospect.dialogue.schema import Turn
from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.comparison import compare
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.predictions import Predictions
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings, MatchingSettings, ReportSettings
from prospect.evaluation.text_intervals import score_texts
from prospect.reports.evaluation.charts import charts_of
from prospect.reports.evaluation.comparison import comparison_table, write_comparison
from prospect.reports.evaluation.dialogue import DialogueTimeline, dialogue_timeline
from prospect.reports.evaluation.page import EvaluationPage, evaluation_page, render, write_page
from prospect.streaming.types import Refreshed
from prospect.terminal import console
from tests.evaluation.encoders import SharedWords
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import timeline_of
from tests.needs import needs
from tests.reports.parsed import Page
from tests.vision.videos import write_video

SETTINGS = EvaluationSettings(bootstrap_samples=20)
NASTY = "<script>alert('x')</script> $x_1$ 🫖 & \"quotes\" `code` </style>"
CURVES = {
    "similarity": [(0.0, 0.9), (0.5, 0.5), (1.0, 0.1)],
    "tolerance": [(0.0, 0.1), (1.0, 0.2), (2.0, None), (3.0, 0.4)],
    "reliability": {"speak": [{"probability": 0.2, "positives": 0.1, "frames": 9}], "update": []},
    "precision_recall": {"speak": {"recall": [0.5, 1.0], "precision": [1.0, 0.4], "share": [0.1]}, "update": {}},
    "sweep": {"speak": {"default": [{"threshold": 0.5, "f1": 0.4, "precision": 0.3, "recall": 0.6, "events": 9}]}},
}


def spoken(video: VideoDecisions, said: dict[int, str | None], refreshes: tuple[Refreshed, ...] = ()) -> VideoDecisions:
    """`video` with other utterances at some frames."""
    decisions = [replace(one, utterance=said.get(one.frame, one.utterance)) for one in video.decisions]
    return VideoDecisions(video.dialogue, video.timeline, decisions, video.first_frame, refreshes)


@pytest.fixture(scope="module")
def tea_model(tea) -> VideoDecisions:
    """Right but late, wrong words at 8.5 s, silent at 20 s, talkative at 35 s, steps two seconds late."""
    late = oracle_shifted(*tea, 1)
    return spoken(late, {18: "drop something", 40: None, 70: NASTY}, (Refreshed(30, 400, 90, "tea is being made"),))


@pytest.fixture(scope="module")
def timeline(tea_model, words) -> DialogueTimeline:
    return dialogue_timeline(tea_model, {}, SETTINGS, words, {"speak": 0.5, "update": 0.4})


def page_of(
    videos, tmp_path: Path | None = None, words=None, settings=SETTINGS, files=None, **lineage
) -> EvaluationPage:
    model = {"trained model": videos, "silence": [silence(v.dialogue, v.timeline) for v in videos]}
    predictions = Predictions(replace(LINEAGE, **lineage), {"run_name": "run-1"}, model, files or {})
    scores = {name: evaluate(each, settings, words) for name, each in model.items()}
    texts = {name: score_texts(found, settings) for name, found in scores.items()}
    return evaluation_page(predictions, scores, settings, words, texts=texts)


def test_every_turn_has_a_verdict_and_a_match_its_delay(timeline: DialogueTimeline) -> None:
    turns = [(e.side, e.frame, e.verdict, e.delay) for e in timeline.events if e.kind == "turn"]
    assert ("reference", 5, "match", 0.5) in turns
    assert ("prediction", 6, "match", 0.5) in turns
    assert ("prediction", 18, "other words", 0.5) in turns
    assert ("reference", 39, "miss", None) in turns
    assert ("prediction", 70, "redundant", None) in turns
    assert timeline.count("reference", "turn", "miss") == 1


def test_what_the_matcher_takes_for_silence_is_silence_on_the_timeline(tea, words) -> None:
    dotted = spoken(oracle(*tea), {70: " . "})
    compat = SETTINGS.model_copy(update={"matching": MatchingSettings(mode="compat")})
    spoken_at = [
        {e.frame for e in dialogue_timeline(dotted, {}, settings, words).events if e.side == "prediction"}
        for settings in (SETTINGS, compat)
    ]
    assert [70 in frames for frames in spoken_at] == [True, False]


def test_a_step_has_its_reference_over_its_prediction(timeline: DialogueTimeline) -> None:
    bars = timeline.steps[0]
    assert bars.name == "S1 boil water"
    assert [(s.state, round(80 * s.left), round(80 * s.width)) for s in bars.reference] == [
        ("in_progress", 6, 12),
        ("completed", 18, 62),
    ]
    assert [round(80 * s.left) for s in bars.prediction] == [7, 19]
    assert bars.right == pytest.approx(78 / 80)
    assert timeline.events[bars.prediction[0].event].text == "S1->start (boil water)"


def test_refreshes_scores_and_delays_have_their_places(timeline: DialogueTimeline) -> None:
    [refresh] = [event for event in timeline.events if event.kind == "refresh"]
    assert (refresh.time, refresh.text) == (15.0, "context 400 to 90 tokens; summary: tea is being made")
    assert [(curve.name, curve.threshold) for curve in timeline.curves] == [("p_speak", 0.5), ("p_update", 0.4)]
    assert timeline.curves[0].points.split()[5:7] == ["75,100", "87.5,0"], "speaks at frame 6 of 80"
    assert {box.text for _, box in timeline.delays} == {"+0.5 s"}
    assert {box.lane for _, box in timeline.delays} == {0, 1}


def test_the_axis_of_a_part_of_a_video_is_that_part(tea, words) -> None:
    part = tea[0].model_copy(update={"first_frame": 20, "last_frame": 60})
    shown = dialogue_timeline(oracle(part, tea[1]), {}, SETTINGS, words)
    assert shown.ticks[0][1:] == (0.0, 10.0)
    assert all(0 <= shown.share(event) <= 1 for event in shown.events)


def test_a_dialogue_without_recipe_or_decisions_has_a_timeline(chat, quiet, words) -> None:
    for reference in (chat, quiet):
        assert not dialogue_timeline(silence(*reference), {}, SETTINGS, words).steps
    nothing = VideoDecisions(*chat, [])
    assert not dialogue_timeline(nothing, {}, SETTINGS, words).curves
    render(page_of([nothing], words=words))


def test_a_frame_without_a_decision_is_marked(tea, words) -> None:
    whole = oracle(*tea)
    cut = VideoDecisions(whole.dialogue, whole.timeline, whole.decisions[:40])
    [*_, last] = dialogue_timeline(cut, {}, SETTINGS, words).steps[0].prediction
    assert (last.state, round(80 * last.left)) == ("not decided", 41)


def test_the_page_has_scores_with_intervals_marks_and_all_dialogues(references, tea_model, words) -> None:
    videos = [tea_model, *(oracle(*reference) for reference in references[1:])]
    page = page_of(videos, words=words, told=True)
    html = Page(render(page))
    assert "ATTENTION: told the reference's state" in html.text
    assert [row.name.partition(",")[0] for row in page.dialogues] == [
        "sample/tea", "assembly101/toy", "wtag/chat", "wtag/quiet",
    ]  # fmt: skip
    assert len(html.of_class("video")) == 4
    assert page.tiles[0].name == "joint_goal_accuracy"
    assert html.text.count(f"{page.tiles[0].interval.low:.3f} to {page.tiles[0].interval.high:.3f}") >= 2
    assert "dataset assembly101" in html.text


def test_words_and_labels_have_their_intervals_on_the_page(tea, toy, words) -> None:
    turns = tuple(turn.model_copy(update={"labels": "initiative|instruction"}) for turn in tea[0].turns)
    labelled = tea[0].model_copy(update={"turns": turns})
    half = oracle(labelled, timeline_of(labelled))
    text = render(page_of([spoken(half, {5: None, 17: None}), oracle(*toy)], words=words))
    assert '<th scope="col">initiative</th><th scope="col">instruction</th></tr>' in text
    assert f'<th scope="row">recall</th>{"<td>0.500<small>0.500 to 0.500</small></td>" * 2}</tr>' in text
    assert re.search(r'<th scope="row">bleu4 \(sacrebleu [^<]*</th><td>1.000<small>1.000 to 1.000</small>', text)


def test_links_lead_to_something_on_the_page_and_nothing_leads_outside(references, tea_model, words) -> None:
    text = render(page_of([tea_model, oracle(*references[1])], words=words))
    html = Page(text)
    ids = [attrs["id"] for _, attrs in html.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"] for tag, attrs in html.elements if tag == "a"}
    assert links <= {f"#{each}" for each in ids} | {f"#d{d}m{i}" for d in range(2) for i in range(99)}
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "http" not in text.replace("http-equiv", "")


def test_users_texts_are_texts(tea, words) -> None:
    turns = (*tea[0].turns, Turn(role="user", time=2.0, text=NASTY))
    steps = (tea[0].steps[0].model_copy(update={"name": NASTY}), *tea[0].steps[1:])
    dialogue = tea[0].model_copy(
        update={"goal": NASTY, "turns": turns, "steps": steps, "video_id": NASTY, "dataset": NASTY, "user_type": NASTY}
    )
    page = page_of([oracle(dialogue, timeline_of(dialogue))], words=words)
    page = replace(page, title=NASTY, charts=charts_of({NASTY: CURVES}))
    html = Page(render(page))
    assert [tag for tag, _ in html.elements].count("script") == 1
    assert html.text.count("<script>alert('x')</script> $x_1$ 🫖") > 8


def test_pictures_are_of_the_worst_and_best_within_the_limits(tea, toy, chat, quiet, words, tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.mp4", [k / 2 for k in range(80)], rate=2))
    videos = [silence(*tea), oracle_shifted(*toy, 9), oracle(*chat)]
    files = {"tea": video, "toy": video, "chat": video}

    def page(**report) -> EvaluationPage:
        settings = SETTINGS.model_copy(update={"report": ReportSettings(**report)})
        return page_of(videos, words=words, settings=settings, files=files)

    shown = page(worst=1, best=1, pictures=6)
    counts = {t.video_id: len(t.pictures) for t in shown.timelines}
    assert (counts["tea"], counts["toy"], counts["chat"]) == (6, 0, 5), "two of chat's three events fall on one frame"
    assert [picture.frame for picture in shown.timelines[0].pictures if picture.width] == [25, 52, 79]
    assert "only the worst and best" in render(shown)
    small = page(worst=3, best=0, megabytes=0.02)
    assert "evaluation.report.megabytes=0.02" in render(small)
    assert sum(len(picture.uri) for t in small.timelines for picture in t.pictures) <= 20_000
    assert not any(t.pictures for t in page(megabytes=0).timelines)
    assert [t.video_id for t in page(timelines=2, worst=1, best=1).timelines] == ["tea", "chat"]


def test_a_missing_or_broken_video_is_said(tea, toy, words, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    text = render(page_of([oracle(*tea), oracle(*toy)], words=words, files={"toy": str(broken)}))
    assert "No pictures: no video file was found." in text
    assert re.search(r"No pictures: video \S*broken.mp4 is", text)


def test_curves_are_drawn_as_far_as_they_are_there() -> None:
    silent = {"similarity": [(0.0, 0.0), (1.0, 0.0)]}
    charts = {chart.title: chart for chart in charts_of({"model": CURVES, "periodic": CURVES, "silence": silent})}
    assert list(charts) == [
        "Turn F1 over the similarity that a match needs",
        "Utterances in time",
        "Reliability of p_speak",
        "Precision and recall of p_speak",
        "Threshold of speak, all",
    ]
    assert [line.name for line in charts["Turn F1 over the similarity that a match needs"].lines] == [
        "model",
        "periodic",
    ]
    assert charts["Utterances in time"].lines[0].points == ((0.0, 0.1), (1.0, 0.2), (3.0, 0.4))
    assert charts["Utterances in time"].x_ticks == [0, 1, 2, 3]
    assert charts["Reliability of p_speak"].diagonal
    assert charts["Precision and recall of p_speak"].level == 0.1
    assert [line.name for line in charts["Threshold of speak, all"].lines] == ["F1", "precision", "recall"]
    assert charts_of({}) == charts_of({"model": {}}) == []


def test_a_long_video_keeps_its_peaks_and_a_small_page(words) -> None:
    from tests.factories import tea_dialogue

    dialogue = tea_dialogue().model_copy(update={"duration": 3600.0})
    video = oracle(dialogue, timeline_of(dialogue))
    shown = dialogue_timeline(video, {}, SETTINGS, words)
    assert len(shown.curves[0].points.split()) <= 800
    assert shown.curves[0].points.count(",0 ") >= 4
    assert len(render(page_of([video], words=words))) < 300_000


@pytest.fixture(scope="module")
def both(references, words):
    first, second = (
        Predictions(LINEAGE, {"run_name": name}, {"model": [system(*each) for each in references]}, {})
        for name, system in (("a <b>", silence), ("b", oracle))
    )
    return compare(first, second, SETTINGS, words)


def test_a_comparison_is_a_page_and_a_table(both, tmp_path: Path) -> None:
    html = Page(write_comparison(tmp_path / "c.html", both, 20).read_text())
    assert "b compared with a <b>" in html.text
    assert "better" in html.text
    assert (len(html.of_class("swing")), len(html.of_class("swing", "better"))) == (3, 3)
    with (out := console(80)).capture() as told:
        out.print(comparison_table(both))
    assert ["turn", "F1", "0.000", "1.000", "+1.000", "*"] in [line.split()[:6] for line in told.get().splitlines()]


@needs("chromium", shutil.which("chromium"))
def test_a_browser_runs_the_page_without_an_error(tea_model, toy, words, tmp_path: Path) -> None:
    video = write_video(tmp_path / "tea.mp4", [k / 2 for k in range(80)], rate=2)
    model = {"trained model": [tea_model, oracle(*toy)]}
    predictions = Predictions(LINEAGE, {"run_name": "run"}, model, {"tea": str(video), "toy": str(video)})
    scores = {name: evaluate(videos, SETTINGS, SharedWords()) for name, videos in model.items()}
    path = write_page(tmp_path / "page.html", predictions, scores, SETTINGS, words)
    check = """
      const steps = [];
      show(1); show(0); select('d0e3'); setZoom(4);
      steps.push(part('.told').textContent, part('.shown').alt, zoom);
      part('.mark[tabindex="0"]').focus();
      part('.mark[tabindex="0"]').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}));
      steps.push(part('tr.on').rowIndex);
      part('img[data-frame]').click(); steps.push(part('.told').textContent);
      const rows = () => document.querySelector('.sortable').tBodies[0].rows[0].cells[0].textContent;
      const before = rows();
      document.querySelectorAll('.sortable button')[2].click();
      steps.push(before !== rows(), document.querySelectorAll('.video:not([hidden])').length);
      document.title = steps.join('|');"""
    path.write_text(path.read_text().replace("</body>", f"<script>{check}</script></body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(["chromium", *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    [title] = re.findall(r"<title>(.*)</title>", done.stdout, re.DOTALL)
    told, alt, zoom, row, picture, sorted_, visible = title.split("|")
    assert told.startswith("Frame 6, 0:03.5, model: boil water")
    assert "frame" in alt
    assert (zoom, row, sorted_, visible) == ("4", "5", "true", "1")
    assert picture.startswith("frame ")
