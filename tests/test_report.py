"""The report: what it says of a model's errors, and how it behaves in a browser."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, fmean, pstdev
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from recordings import write
from torch import Tensor

from asr.cli import main
from asr.commands.evaluate import _short_names
from asr.errors import AsrError
from asr.evaluation import Scored, evaluate
from asr.manifest import Utterance, read_manifest
from asr.metrics import ErrorCounts, character_errors, word_errors
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.report.analysis import align_words, compare, find_confusions, group_by, signal_to_noise
from asr.report.media import Heard
from asr.report.model_errors import _tables, report_errors
from asr.report.page import Column, Page, Row, check_report, write_page
from asr.report.picture import draw, find_fonts
from asr.surgery import with_vocabulary
from asr.transcript import Word
from asr.vocabulary import CharacterVocabulary

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples" / "manifest.jsonl"
SCREENSHOTS = ROOT / "build" / "screenshots"

texts = st.lists(st.sampled_from(["A", "B", "CAT", "DOG"]), max_size=8).map(" ".join)


def scored(reference: str, hypothesis: str, speaker: str = "") -> Scored:
    utterance = Utterance("id", "audio.wav", reference, 0.0, 1.0, speaker, "manifest", 1)
    errors = word_errors(reference, hypothesis), character_errors(reference, hypothesis)
    return Scored(utterance, reference, hypothesis, *errors)


@given(texts, texts)
def test_aligned_words_are_both_texts_and_as_many_errors_as_the_wer_counts(reference: str, hypothesis: str) -> None:
    steps = align_words(reference, hypothesis)
    assert " ".join(said for _, said, _ in steps if said) == reference
    assert " ".join(written for _, _, written in steps if written) == hypothesis
    assert sum(kind != "equal" for kind, _, _ in steps) == word_errors(reference, hypothesis).errors
    for kind, said, written in steps:
        expected = "insert" if not said else "delete" if not written else "equal" if said == written else "substitute"
        assert kind == expected


def test_confusions_are_counted_by_kind() -> None:
    found = find_confusions(
        [
            scored("THE CAT SAT", "THE CAP SAT"),
            scored("A CAT", "A CAP"),
            scored("I", "I DOG"),
            scored("MICE RUN", "MICE"),
        ]
    )
    assert found["substitutions"] == {("CAT", "CAP"): 2}
    assert found["insertions"] == {("", "DOG"): 1}
    assert found["deletions"] == {("RUN", ""): 1}
    assert found["characters"]["T", "P"] == 2


def test_groups_hold_every_utterance_once() -> None:
    items = [scored("A B", "A", "eve"), scored("C", "C", "bob"), scored("D", "E", "eve")]
    groups = group_by(items, lambda item: item.utterance.speaker)
    assert [(group.key, group.utterances, group.words.errors) for group in groups] == [("bob", 1, 0), ("eve", 2, 2)]


def test_a_model_compared_with_itself_is_not_better_and_with_a_worse_one_it_is() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [ErrorCounts(int(torch.randint(0, 3, (), generator=generator)), 0, 0, 10) for _ in range(200)]
    worse = [ErrorCounts(counts.substitutions + 1, 0, 0, 10) for counts in ours]
    shuffled = [ours[index] for index in torch.randperm(200, generator=generator).tolist()]
    same, better, unclear = compare(ours, ours), compare(worse, ours), compare(shuffled, ours)
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert better.difference == pytest.approx(-0.1)
    assert better.p_value < 0.001
    assert better.interval[1] < 0
    assert unclear.p_value > 0.05
    assert unclear.interval[0] < 0 < unclear.interval[1]


def test_the_p_value_is_that_of_a_difference_either_way() -> None:
    """As of the normal distribution, for as many utterances of one length."""
    ours = [ErrorCounts(1, 0, 0, 10)] * 400
    theirs = [ErrorCounts(1 + (index < 57) - (index >= 360), 0, 0, 10) for index in range(400)]
    differences = [their.errors - our.errors for our, their in zip(ours, theirs, strict=True)]
    expected = 2 * (1 - NormalDist().cdf(fmean(differences) / (pstdev(differences) / 20)))
    for pair in ((ours, theirs), (theirs, ours)):
        assert compare(*pair).p_value == pytest.approx(expected, abs=0.015)
    assert 0.07 < expected < 0.1


@pytest.mark.parametrize(
    ("seconds", "name"),
    [(1.9, "below 2 s"), (2, "2 to 5 s"), (4.9, "2 to 5 s"), (19.9, "15 to 20 s"), (20, "20 s and more")],
)
def test_a_group_is_named_for_the_durations_in_it(seconds: float, name: str) -> None:
    item = scored("A", "A")
    long = replace(item, utterance=replace(item.utterance, duration_seconds=seconds))
    assert [line[0] for line in dict(_tables([long], [Heard()]))["Duration"][1:]] == [name]


@pytest.mark.parametrize("decibels", [10, 20, 30])
def test_the_estimated_snr_follows_the_noise_that_is_added(speech: list[Tensor], decibels: float) -> None:
    samples = speech[0]
    noise = torch.randn(len(samples), generator=torch.Generator().manual_seed(0))
    noise *= (samples.square().mean() / 10 ** (decibels / 10)).sqrt()
    assert signal_to_noise(samples + noise, 16000) == pytest.approx(decibels + 2, abs=4)


def test_the_snr_of_digital_silence_is_a_number_and_of_a_moment_unknown() -> None:
    assert signal_to_noise(torch.zeros(16000), 16000) == 0
    for count in (10, 3600, 3999):
        assert signal_to_noise(torch.randn(count), 16000) is None


@pytest.fixture(scope="module")
def report(model: CTCModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the packaged model on the samples, against a small one that knows nothing, and one file that is missing."""
    folder = tmp_path_factory.mktemp("report")
    save_model(model, folder / "small.safetensors")
    lines = [json.loads(line) for line in SAMPLES.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["audio"] = str(SAMPLES.parent / line["audio"])
    lines.append({**lines[0], "id": "missing", "audio": "missing.flac", "text": "<script>alert(1)</script>"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    arguments = ["--report", str(folder / "page"), "--compare", str(folder / "small.safetensors"), "--pictures", "3"]
    assert main(["evaluate", "packaged", str(manifest), *arguments]) == 1
    return folder / "page" / "index.html"


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8").split('<script type="application/json" id="data">')[1]
    data: dict[str, Any] = json.loads(text.split("</script>")[0])
    return data


def test_the_page_holds_every_utterance_and_names_no_other_place(report: Path) -> None:
    utterances = data_of(report)["utterances"]
    assert len(utterances) == 7
    assert "http" not in report.read_text(encoding="utf-8")
    for utterance in utterances[:6]:
        assert (report.parent / utterance["audio"]).is_file()
        assert utterance["words"]
        assert utterance["texts"][0]["name"] == "packaged"
    assert sum(bool(utterance["picture"]) for utterance in utterances) == 3
    assert "missing.flac" in " ".join(utterances[6]["notes"])


def test_the_page_says_which_model_has_fewer_errors_in_each_utterance(report: Path) -> None:
    """As its own aligned words tell."""
    data = data_of(report)
    fewer = [column["name"] for column in data["columns"]].index("fewer errors than small")
    seen = set()
    for utterance in data["utterances"]:
        ours, theirs = (sum(kind != "equal" for kind, *_ in text["steps"]) for text in utterance["texts"])
        verdict = ["better than small"] if ours < theirs else ["worse than small"] if ours > theirs else []
        assert utterance["filters"][0] == ["with errors" if ours else "without an error", *verdict]
        assert (utterance["cells"][0], utterance["cells"][fewer]) == (ours, theirs - ours)
        seen.update(verdict)
    assert "better than small" in seen


def test_nothing_to_evaluate_on_is_told(model: CTCModel) -> None:
    with pytest.raises(AsrError, match="there is no utterance to evaluate on"):
        evaluate(model, [])


def test_the_page_says_why_a_recording_has_no_transcript_and_draws_a_short_one(model: CTCModel, tmp_path: Path) -> None:
    write(tmp_path / "short.wav", torch.randn(160))
    (tmp_path / "data.jsonl").write_text('{"audio": "short.wav", "text": "HELLO"}')
    evaluation = evaluate(model, read_manifest(tmp_path / "data.jsonl"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "n_fft")
        page = report_errors(evaluation, model, tmp_path / "page", name="small")
    (utterance,) = data_of(page)["utterances"]
    assert utterance["notes"] == [evaluation.failures[0].message]
    assert utterance["picture"]


def test_of_references_without_a_word_there_is_no_rate(model: CTCModel, tmp_path: Path) -> None:
    utterances = [replace(utterance, text="1") for utterance in read_manifest(SAMPLES)[:2]]
    empty = evaluate(model, utterances)
    heard = [
        replace(item, words=ErrorCounts(insertions=3), characters=ErrorCounts(insertions=9)) for item in empty.scored
    ]
    page = report_errors(replace(empty, scored=heard), model, tmp_path / "page", name="small").read_text(
        encoding="utf-8"
    )
    assert "<dt>WER</dt><dd>none</dd>" in page
    assert "inf%" not in page


def test_a_filter_finds_a_speaker_whose_name_holds_more_than_one_space(tmp_path: Path) -> None:
    page = write_page(Page("Speakers", [], [Column("n")], [], [("speaker", ["Ann  B", '"><b>'])]), tmp_path)
    text = page.read_text(encoding="utf-8")  # a browser makes one space of several in what an option shows
    assert '<option value="Ann  B">' in text
    assert "<b>" not in text


def test_words_with_dollars_are_drawn_as_they_are(model: CTCModel, tmp_path: Path) -> None:
    log_probs = torch.zeros(25, len(model.vocabulary)).log_softmax(1)
    draw(torch.randn(16000), log_probs, (Word(r"$\no$", 0.1, 0.4, 1.0),), model, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").is_file()


def test_a_report_leaves_nothing_of_the_one_before(model: CTCModel, tmp_path: Path) -> None:
    utterances = read_manifest(SAMPLES)[:2]
    for part in (utterances, utterances[:1]):
        page = report_errors(evaluate(model, part), model, tmp_path / "page", name="small")
        assert [path.name for path in sorted((tmp_path / "page" / "audio").iterdir())] == [
            f"{number}.flac" for number in range(1, len(part) + 1)
        ]
        check_report(tmp_path / "page", utterances)
    page.write_text("<p>someone's own</p>")
    with pytest.raises(AsrError, match="the folder holds other files"):
        check_report(tmp_path / "page", utterances)


def test_models_of_two_alphabets_are_each_compared_in_their_own(
    model: CTCModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_letters = with_vocabulary(model, CharacterVocabulary(" abcdefghijklmnopqrstuvwxyz"))
    utterances = read_manifest(SAMPLES)[:1]
    pair = [evaluate(each, utterances) for each in (model, small_letters)]
    perfect = [replace(one, scored=[replace(one.scored[0], hypothesis=one.scored[0].reference)]) for one in pair]
    page = report_errors(perfect[0], model, tmp_path / "page", name="large", others=[("small", perfect[1])])
    for text in data_of(page)["utterances"][0]["texts"]:
        assert {kind for kind, *_ in text["steps"]} == {"equal"}


def test_of_thousands_of_speakers_the_table_shows_those_with_the_most_utterances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asr.report.model_errors.MOST_SPEAKERS", 2)
    items = [scored("A", "A", speaker) for speaker in ("bob", "eve", "bob", "ann", "eve")]
    tables = dict(_tables(items, [Heard()] * len(items)))
    assert [line[0] for line in tables["Speaker"][1:]] == ["bob", "eve"]
    assert sum(int(line[1]) for line in tables["Duration"][1:]) == len(items)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    assert main(["evaluate", "packaged", str(SAMPLES), "--report", str(tmp_path)]) == 1
    assert "the folder holds other files; name a new one" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.doc"]


def test_a_report_of_a_whole_corpus_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="--report holds at most 20,000 utterances, not 281,241; name a part"):
        check_report(tmp_path / "page", read_manifest(SAMPLES)[:1] * 281_241)


def test_a_report_never_takes_the_place_of_the_recordings_that_it_is_about(model: CTCModel, tmp_path: Path) -> None:
    report_errors(evaluate(model, read_manifest(SAMPLES)[:1]), model, tmp_path / "page", name="small")
    (tmp_path / "link").symlink_to(tmp_path / "page")
    own = replace(read_manifest(SAMPLES)[0], audio_path=str(tmp_path / "page" / "audio" / "1.flac"))
    for folder in ("page", "link"):
        with pytest.raises(AsrError, match="holds recordings that it is about; name another folder"):
            check_report(tmp_path / folder, [own])


def test_models_of_the_same_file_name_are_told_apart() -> None:
    assert _short_names(["packaged", "runs/a/model.safetensors"]) == ["packaged", "model"]
    assert _short_names(["a/model.safetensors", "b/model.safetensors"]) == ["a/model", "b/model"]


def test_check_writes_the_same_kind_of_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SAMPLES), "--report", str(tmp_path / "page"), "--pictures", "1"]) == 0
    page = tmp_path / "page" / "index.html"
    assert str(page) in capsys.readouterr().out
    utterances = data_of(page)["utterances"]
    assert len(utterances) == 6
    assert all((page.parent / utterance["audio"]).is_file() for utterance in utterances)


def test_letters_that_no_font_has_are_drawn_as_boxes_without_a_word(
    model: CTCModel, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    log_probs = torch.full((25, len(model.vocabulary)), -4.0)
    draw(torch.randn(16000), log_probs, (Word("\U0001f9ff\u0378", 0.1, 0.4, 1.0),), model, tmp_path / "drawn.png")
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]


def test_letters_that_the_font_lacks_are_drawn_in_one_that_has_them() -> None:
    maps = {font.name: FT2Font(font.fname).get_charmap().keys() for font in fontManager.ttflist}
    letter = chr(min(maps["STIXGeneral"] - maps["DejaVu Sans"]))
    (found,) = find_fonts(f"A{letter}")
    assert ord(letter) in maps[found]
    assert find_fonts("Aéж") == []


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, its console recorded."""
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--autoplay-policy=no-user-gesture-required",
    ):
        options.add_argument(argument)
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def show(browser: Any, page: Path, width: int = 1200, scheme: str = "light") -> None:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def all_of(browser: Any, selector: str) -> list[Any]:
    found: list[Any] = browser.find_elements("css selector", selector)
    return found


def column(browser: Any, number: int) -> list[str]:
    return [cell.text for cell in all_of(browser, f"tr.row td:nth-child({number})")]


def wait_for(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(f"return {script}"))


def test_arabic_is_shown_from_right_to_left(browser: Any, model: CTCModel, tmp_path: Path) -> None:
    utterances = read_manifest(SAMPLES)[:2]
    evaluation = evaluate(model, utterances)
    first, second = evaluation.scored
    arabic = replace(evaluation, scored=[replace(first, reference="لا إله", hypothesis="إله"), second])
    show(browser, report_errors(arabic, model, tmp_path / "page", name="model", pictures=0))
    for row in all_of(browser, "tr.row"):
        row.click()
    script = "return [...document.querySelectorAll('.alignment')].map((each) => getComputedStyle(each).direction)"
    assert sorted(browser.execute_script(script)) == ["ltr", "rtl"]


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_wide_and_narrow_light_and_dark(browser: Any, report: Path, width: int, scheme: str) -> None:
    show(browser, report, width, scheme)
    all_of(browser, "tr.row")[0].click()
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 28)")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOTS / f"report-{width}-{scheme}.png"))
    assert browser.get_log("browser") == []


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(browser: Any, report: Path) -> None:
    show(browser, report)
    errors = [int(text) for text in column(browser, 1)]
    assert errors == sorted(errors, reverse=True), "the worst come first"
    heading = all_of(browser, "#table th button")[3]
    for descending in (True, False):
        heading.click()
        seconds = [float(text) for text in column(browser, 4)]
        assert seconds == sorted(seconds, reverse=descending)
    assert len(set(seconds)) > 1


def test_search_and_filters_leave_what_is_asked_for(browser: Any, report: Path) -> None:
    show(browser, report)
    search = all_of(browser, "#search")[0]
    search.send_keys("quilter")
    assert len(all_of(browser, "tr.row")) == 1
    assert all_of(browser, "#count")[0].text == "1 of 7"
    search.clear()
    search.send_keys("nobody said this")
    assert all_of(browser, "tr.row") == []
    show(browser, report)
    for option in all_of(browser, "select[data-filter='1'] option"):
        if option.text == "1272":
            option.click()
    assert set(column(browser, 8)) == {"1272"}


def test_audio_plays_from_a_word_and_pictures_load_when_they_are_seen(browser: Any, report: Path) -> None:
    show(browser, report)
    assert all_of(browser, "audio, .picture img") == [], "nothing is loaded before it is asked for"
    for row in all_of(browser, "tr.row"):
        if "QUILTER" in row.text:
            row.click()
    word = all_of(browser, ".times button")[-1]
    start = float(word.get_attribute("title").split()[0])
    word.click()
    wait_for(browser, f"document.querySelector('audio').currentTime > {start}")
    all_of(browser, "tr.open")[0].click()
    assert all_of(browser, "audio") == []
    all_of(browser, "tr.row")[1].click()
    wait_for(browser, "[...document.images].every(image => image.naturalWidth > 400)")
    assert len(all_of(browser, ".alignment")) == 2, "one for each model"
    assert browser.get_log("browser") == []


def test_thousands_of_utterances_are_shown_fifty_at_a_time(browser: Any, tmp_path: Path) -> None:
    text = "A </script><script>document.title='broken'</script> <b>SENTENCE</b>"
    rows = [
        Row([index, f"{text} {index}"], f"{text} {index}", [["odd" if index % 2 else "even"]]) for index in range(5000)
    ]
    columns = [Column("errors"), Column("reference", text=True)]
    show(browser, write_page(Page("Many", [], columns, rows, [("parity", ["odd", "even"])]), tmp_path))
    assert browser.title == "Many"
    assert len(all_of(browser, "tr.row")) == 50
    assert column(browser, 2)[0] == f"{text} 4999"
    all_of(browser, "#more")[0].click()
    assert len(all_of(browser, "tr.row")) == 100
    all_of(browser, "#search")[0].send_keys("sentence</b> 4321")
    assert column(browser, 1) == ["4321"]
    assert browser.get_log("browser") == []
