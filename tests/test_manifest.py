"""Manifests: every kind to the same utterances, and for every bad line its number and what is wrong with it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asr.audio import read_audio
from asr.errors import MOST_PROBLEMS, AsrError
from asr.manifest import Utterance, read_manifest, write_manifest

SAMPLES = Path(__file__).parents[1] / "samples"
RECORDING = str(SAMPLES / "84-121123-0001.flac")
RECORDING_SECONDS = 3.99
GOOD = {"audio": "a.wav", "text": "HELLO", "duration": 1.5, "start": 0.25, "speaker": "ann", "id": "u1"}

ONE_SUPERVISION = "must be a lhotse MonoCut with one audio source and one supervision"


def json_lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def cut(**changes: Any) -> dict[str, Any]:
    """What `asr prepare` writes, as lhotse makes it, for the utterance that GOOD is."""
    recording = {"id": "r1", "sources": [{"type": "file", "channels": [0], "source": "a.wav"}], "duration": 9.0}
    supervision = {"id": "s1", "recording_id": "r1", "start": 0.0, "duration": 1.5, "text": "HELLO", "speaker": "ann"}
    values = {"id": "u1", "start": 0.25, "duration": 1.5, "channel": 0, "type": "MonoCut"}
    return {**values, "supervisions": [supervision], "recording": recording, **changes}


def written(folder: Path, content: bytes, name: str = "m.jsonl") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def refusal(path: Path) -> str:
    """What is wrong, in one sentence, without the manifest's name that it begins with."""
    with pytest.raises(AsrError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "\n" not in message
    return message.removeprefix(f"{path}:")


# What is read


def test_the_samples_are_read_in_their_order() -> None:
    utterances = read_manifest(SAMPLES / "manifest.jsonl")
    assert [utterance.line for utterance in utterances] == list(range(1, 7))
    assert all(Path(utterance.audio_path).is_file() for utterance in utterances)
    assert utterances[1] == Utterance(
        id="84-121123-0001",
        audio_path=RECORDING,
        text="BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED BENEATH AN EXTRAORDINARY WEIGHT",
        start_seconds=0.0,
        duration_seconds=RECORDING_SECONDS,
        speaker="84",
        manifest=str(SAMPLES / "manifest.jsonl"),
        line=2,
    )
    assert utterances[1].place == f"{SAMPLES / 'manifest.jsonl'}:2"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("m.jsonl", json_lines(GOOD), 1),
        ("m.json", json_lines(GOOD), 1),
        ("m", json_lines(GOOD), 1),
        ("m.jsonl.gz", json_lines(GOOD), 1),
        ("m.jsonl", b"\xef\xbb\xbf" + json_lines(GOOD), 1),
        ("m.jsonl", b"\r\n \n" + json_lines(GOOD).replace(b"\n", b"\r\n"), 3),
        ("cuts.jsonl", json_lines(cut()), 1),
        ("cuts.jsonl.gz", json_lines(cut()), 1),
        ("m.csv", table([GOOD]), 2),
        ("m.csv.gz", table([GOOD]), 2),
        ("m.csv", b"\xef\xbb\xbf" + table([GOOD]), 2),
        ("m.csv", table([GOOD]).replace(b"\r\n", b"\r"), 2),
        ("m.tsv", table([GOOD], "\t"), 2),
    ],
)
def test_every_kind_of_manifest_gives_the_same_utterance(tmp_path: Path, name: str, content: bytes, line: int) -> None:
    path = written(tmp_path, content, name)
    expected = Utterance("u1", str(tmp_path / "a.wav"), "HELLO", 0.25, 1.5, "ann", str(path), line)
    assert read_manifest(path) == [expected]


def test_common_voices_own_tables_quote_nothing_and_leave_out_their_folder(tmp_path: Path) -> None:
    texts = ['"Is it dangerous?" he said.', '"Second', 'Third"', 'A ""quoted"" word']
    rows = [f"ann\t{number}.mp3\t{text}\t1.5\n" for number, text in enumerate(texts)]
    content = "client_id\tpath\tsentence\tduration\n" + "".join(rows)
    for clips in (False, True):
        utterances = read_manifest(written(tmp_path, content.encode(), "validated.tsv"))
        assert [utterance.text for utterance in utterances] == texts
        folder = tmp_path / "clips" if clips else tmp_path
        assert [utterance.audio_path for utterance in utterances] == [f"{folder}/{number}.mp3" for number in range(4)]
        (tmp_path / "clips").mkdir(exist_ok=True)


@pytest.mark.parametrize("changes", [{"channels": [0, 1]}, {"transforms": [{"name": "Speed", "kwargs": {}}]}])
def test_cuts_of_other_audio_than_their_files_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    recording = cut()["recording"]
    recording["sources"][0].update({name: value for name, value in changes.items() if name == "channels"})
    recording.update({name: value for name, value in changes.items() if name == "transforms"})
    expected = "1: cut u1: channels and transforms are not read here; lhotse's save_audios first"
    assert refusal(written(tmp_path, json_lines(cut(recording=recording)))) == expected


def test_cuts_that_lhotse_writes_are_read(tmp_path: Path) -> None:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    recording = Recording.from_file(RECORDING)
    supervision = SupervisionSegment("s", recording.id, 0.0, 1.5, text="LESS THAN FIVE", speaker="84")
    whole = MonoCut("c", 0.25, 1.5, 0, supervisions=[supervision], recording=recording)
    CutSet.from_cuts([whole]).to_file(tmp_path / "cuts.jsonl.gz")
    (utterance,) = read_manifest(tmp_path / "cuts.jsonl.gz")
    assert utterance == Utterance("c", RECORDING, "LESS THAN FIVE", 0.25, 1.5, "84", str(tmp_path / "cuts.jsonl.gz"), 1)


@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        (0.5, 0.75, (0.75, 0.75)),
        (0.5, 7.0, (0.75, 1.0)),
        (-1.0, 2.0, (0.25, 1.0)),
        (-0.5, 3.0, (0.25, 1.5)),
        (0.00006, 1.49994, (0.25, 1.5)),
        (0.1, 0.2, (0.35, 0.2)),
    ],
)
def test_of_a_cut_is_read_what_its_supervision_spans(
    tmp_path: Path, start: float, duration: float, expected: tuple[float, float]
) -> None:
    row = cut(supervisions=[{"text": "HELLO", "start": start, "duration": duration}])
    (utterance,) = read_manifest(written(tmp_path, json_lines(row)))
    assert (utterance.start_seconds, utterance.duration_seconds) == expected


def test_a_relative_path_starts_at_the_manifest_and_an_absolute_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    rows = [{**GOOD, "audio": "clips/a.wav"}, {**GOOD, "audio": RECORDING}, cut()]
    written(tmp_path / "lists", json_lines(*rows))
    monkeypatch.chdir(tmp_path)
    paths = [utterance.audio_path for utterance in read_manifest("lists/m.jsonl")]
    assert paths == ["lists/clips/a.wav", RECORDING, "lists/a.wav"]


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_what_a_line_does_not_tell_is_taken_from_the_audio(tmp_path: Path, name: str) -> None:
    row = {"audio": RECORDING, "text": "BUT"}
    path = written(tmp_path, json_lines(row) if name == "m.jsonl" else table([row]), name)
    (utterance,) = read_manifest(path)
    assert (utterance.id, utterance.speaker) == ("84-121123-0001", "")
    assert (utterance.start_seconds, utterance.duration_seconds) == (0.0, RECORDING_SECONDS)


def test_an_end_is_as_good_as_a_duration(tmp_path: Path) -> None:
    row = {"audio": "a.wav", "text": "A", "start": 0.5}
    rows = [row | {"end": 2.0}, row | {"end": 2.0, "duration": 1.0}]
    assert [one.duration_seconds for one in read_manifest(written(tmp_path, json_lines(*rows)))] == [1.5, 1.0]
    assert read_manifest(written(tmp_path, table(rows[:1]), "m.csv"))[0].duration_seconds == 1.5
    assert refusal(written(tmp_path, json_lines(row | {"end": 0.5}))) == "1: duration=0 must be above 0 seconds"


def test_a_start_without_a_duration_goes_to_the_end_of_the_audio(tmp_path: Path) -> None:
    (utterance,) = read_manifest(written(tmp_path, json_lines({"audio": RECORDING, "text": "A", "start": 1.5})))
    assert utterance.duration_seconds == pytest.approx(RECORDING_SECONDS - 1.5)


def test_audio_is_not_opened_where_the_duration_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.manifest.open_audio", lambda *_: pytest.fail("opened"))
    assert len(read_manifest(written(tmp_path, json_lines(GOOD, cut())))) == 2


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip))
@example(text='"Here,"\r\nhe\tsaid,')
def test_a_text_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Quotes, commas, line breaks and every script; characters that are unknown are the check's business.

    A line break beside what parts the columns is refused in a table, where it may be lines that a quote swallowed.
    """
    folder, row = tmp_path_factory.getbasetemp(), {**GOOD, "text": text}
    for name, content, delimiter in (
        ("m.jsonl", json_lines(row), None),
        ("m.jsonl.gz", json_lines(cut(supervisions=[{"text": text}])), None),
        ("m.csv", table([row]), ","),
        ("m.tsv", table([row], "\t"), "\t"),
    ):
        path = written(folder, content, name)
        if delimiter and delimiter in text and {*"\r\n"} & {*text}:
            assert "a quotation mark reaches to line" in refusal(path)
        else:
            assert [utterance.text for utterance in read_manifest(path)] == [text], name


# Bad lines


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "A", "duration": 1}, "'audio' is missing (there are: text, duration)"),
        ({"audio": "a.wav", "words": "A"}, "'text' is missing (there are: audio, words)"),
        ({**GOOD, "text": ""}, "'text' is empty"),
        ({**GOOD, "text": " \t "}, "'text' is empty"),
        ({**GOOD, "text": None}, "'text' is empty"),
        ({**GOOD, "text": 12}, "text=12 must be a string"),
        ({**GOOD, "audio": ""}, "'audio' is empty"),
        ({**GOOD, "audio": ["a.wav"]}, "audio=['a.wav'] must be a string"),
        ({**GOOD, "duration": 0}, "duration=0 must be above 0 seconds"),
        ({**GOOD, "duration": -1}, "duration=-1 must be a finite number of seconds, not below 0"),
        ({**GOOD, "duration": float("nan")}, "duration=nan must be a finite number of seconds, not below 0"),
        ({**GOOD, "duration": float("inf")}, "duration=inf must be a finite number of seconds, not below 0"),
        ({**GOOD, "duration": "long"}, "duration='long' must be a number of seconds"),
        ({**GOOD, "duration": [1]}, "duration=[1] must be a number of seconds"),
        ({**GOOD, "duration": [1.5]}, "duration=[1.5] must be a number of seconds"),
        ({**GOOD, "duration": 10**400}, f"duration={10**400} must be a number of seconds"),
        ({**GOOD, "start": -0.5}, "start=-0.5 must be a finite number of seconds, not below 0"),
        ({"audio": RECORDING, "text": "A", "start": 5}, "start=5 is not before the end of the audio, 3.99 s"),
        ([GOOD], 'must be a JSON object such as {"audio": "a.wav", "text": "HELLO"}'),
        ("a.wav", 'must be a JSON object such as {"audio": "a.wav", "text": "HELLO"}'),
        (cut(supervisions=[]), ONE_SUPERVISION),
        (
            cut(supervisions=[{"text": "A"}] * 2),
            "cut u1: holds 2 supervisions; lhotse's trim_to_supervisions(keep_overlapping=False) makes a cut of each",
        ),
        (cut(supervisions=[{"text": "A", "start": 0.5, "duration": "long"}]), ONE_SUPERVISION),
        (cut(supervisions=[{"text": "A", "start": 1.5, "duration": 1.0}]), "duration=0 must be above 0 seconds"),
        (cut(recording=None), ONE_SUPERVISION),
        (cut(recording={"sources": ["a.wav"]}), ONE_SUPERVISION),
        (cut(supervisions=[{"text": ""}]), "'text' is empty"),
        (cut(supervisions=[{"id": "s1"}]), "'text' is empty"),
        (
            cut(recording={"sources": [{"type": "url", "source": "a.wav"}]}),
            "cut u1: audio of type 'url' is not read here, only files are",
        ),
    ],
    ids=str,
)
def test_a_bad_line_is_told_with_its_number_and_what_is_wrong(tmp_path: Path, row: object, reason: str) -> None:
    assert refusal(written(tmp_path, json_lines(GOOD, cut(), row, GOOD))) == f"3: {reason}"


@pytest.mark.parametrize("line", ["{", "{'audio': 'a.wav'}", "audio,text", "[" * 100_000, '{"duration": ' + "1" * 5000])
def test_a_line_that_is_not_json_is_told(tmp_path: Path, line: str) -> None:
    content = json_lines(GOOD) + line.encode() + b"\n" + json_lines(GOOD)
    assert refusal(written(tmp_path, content)).startswith("2: not a line of JSON: ")


def test_missing_audio_without_a_duration_is_told_with_its_path(tmp_path: Path) -> None:
    path = written(tmp_path, json_lines(GOOD, {"audio": "none.wav", "text": "A"}))
    expected = f"2: {tmp_path / 'none.wav'}: audio file cannot be opened: No such file or directory"
    assert refusal(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "m.csv",
            'audio,text,duration\na.wav,A,1\nb.wav,"A "B" C",1\n',
            "3: ',' expected after '\"'; double the quotes",
        ),
        ("m.csv", 'audio,text,duration\na.wav,A,1\nb.wav,"A,1\n', "3: unexpected end of data; double the quotes"),
        ("m.csv", "audio,text,duration\na.wav,A, B,1\n", "2: has more columns than the header; put a text with commas"),
        ("m.csv", "audio,text,duration\na.wav\n", "2: 'text' is empty"),
        ("m.csv", "a.wav,A,1\nb.wav,B,2\n", "1: 'audio' is missing (there are: a.wav, a, 1)"),
        ("m.tsv", "audio,text,duration\na.wav,A,1\n", "1: 'audio' is missing (there are: audio,text,duration)"),
        ("m.csv", 'audio,text,duration\na.wav,"A\nB",1\nb.wav,,1\n', "4: 'text' is empty"),
    ],
)
def test_a_bad_row_of_a_table_is_told_with_its_line(tmp_path: Path, name: str, content: str, expected: str) -> None:
    assert refusal(written(tmp_path, content.encode(), name)).startswith(expected)


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz", "m.csv"])
@pytest.mark.parametrize("good_lines", [1, 3000])
def test_bytes_that_are_not_utf_8_are_told_with_their_line(tmp_path: Path, name: str, good_lines: int) -> None:
    rows = [GOOD] * good_lines + [{**GOOD, "text": "CAFÉ"}]
    content = table(rows) if name == "m.csv" else json_lines(*rows)
    path = written(tmp_path, content.decode().encode("latin-1"), name)
    line = len(rows) + (name == "m.csv")
    assert refusal(path) == f"{line}: byte 0xc9 is not UTF-8; save the manifest as UTF-8"


@pytest.mark.parametrize("name", ["m.tsv", "m.jsonl", "m.jsonl.gz"])
def test_utf_16_is_refused_once(tmp_path: Path, name: str) -> None:
    content = table([GOOD, GOOD], "\t") if name == "m.tsv" else json_lines(GOOD, GOOD)
    path = written(tmp_path, content.decode().encode("utf-16"), name)
    assert refusal(path) == "1: byte 0xff is not UTF-8; save the manifest as UTF-8"


def test_bad_lines_are_told_together_and_past_twenty_counted(tmp_path: Path) -> None:
    bad = {**GOOD, "text": ""}
    for bad_lines, more in ((2, []), (MOST_PROBLEMS, []), (MOST_PROBLEMS + 5, ["... and 5 more bad lines"])):
        path = written(tmp_path, json_lines(GOOD, *[bad] * bad_lines))
        with pytest.raises(AsrError) as caught:
            read_manifest(path)
        told = [f"{path}:{line}: 'text' is empty" for line in range(2, 2 + min(bad_lines, MOST_PROBLEMS))]
        assert str(caught.value).split("\n") == told + more


# Bad files


def test_a_missing_manifest_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl.gz").mkdir()
    assert refusal(tmp_path / "none.jsonl") == " manifest not found"
    assert refusal(tmp_path) == " manifest cannot be opened: Is a directory"
    assert refusal(tmp_path / "folder.jsonl.gz") == " manifest cannot be opened: Is a directory"


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.jsonl", b""), ("m.jsonl", b"\n \n\n"), ("m.jsonl.gz", b""), ("m.csv", b""), ("m.csv", b"audio,text\n")],
)
def test_a_manifest_without_an_utterance_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    assert refusal(written(tmp_path, content, name)) == " the manifest holds no utterance"


@pytest.mark.parametrize("damage", ["not gzip", "cut short", "changed"])
def test_a_damaged_gzip_is_refused(tmp_path: Path, damage: str) -> None:
    content = bytearray(gzip.compress(json_lines(*[{**GOOD, "id": str(number)} for number in range(1000)])))
    if damage == "not gzip":
        content = bytearray(json_lines(GOOD))
    elif damage == "cut short":
        del content[-20:]
    else:
        content[-6] ^= 0xFF  # of the checksum
    (tmp_path / "m.jsonl.gz").write_bytes(content)
    assert refusal(tmp_path / "m.jsonl.gz").startswith(" the manifest is damaged: ")


@given(data=st.binary(max_size=200), name=st.sampled_from(["m.jsonl", "m.csv", "m.tsv", "m.jsonl.gz"]))
def test_any_bytes_are_refused_with_the_name_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    with pytest.raises(AsrError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:")


def test_an_utterance_can_be_used_as_a_key_and_not_be_changed() -> None:
    utterance = read_manifest(SAMPLES / "manifest.jsonl")[0]
    assert {utterance: 1}[replace(utterance)] == 1
    with pytest.raises(AttributeError):
        utterance.text = "OTHER"  # type: ignore[misc]


@pytest.mark.parametrize(
    "names",
    [
        {"audio": "audio_filepath", "start": "offset"},
        {"audio": "file_name", "text": "transcription", "speaker": "speaker_id"},
        {"audio": "path", "text": "sentence", "speaker": "client_id"},
        {"audio": "wav", "text": "wrd", "speaker": "spk_id"},
        {"audio": "wav_filename", "text": "transcript"},
    ],
    ids=["NeMo", "Hugging Face", "Common Voice", "SpeechBrain", "DeepSpeech"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_the_names_of_others_are_read_as_ours(tmp_path: Path, names: dict[str, str], suffix: str) -> None:
    row = {names.get(name, name): value for name, value in GOOD.items()}
    content = json_lines(row) if suffix == "jsonl" else table([row], "\t" if suffix == "tsv" else ",")
    (theirs,) = read_manifest(written(tmp_path, content, f"a.{suffix}"))
    assert (theirs.audio_path, theirs.text) == (str(tmp_path / "a.wav"), "HELLO")
    assert (theirs.start_seconds, theirs.duration_seconds, theirs.speaker) == (0.25, 1.5, "ann")


def test_our_names_win_over_others(tmp_path: Path) -> None:
    (utterance,) = read_manifest(written(tmp_path, json_lines(GOOD | {"path": "b.wav", "sentence": "OTHER"})))
    assert (utterance.audio_path, utterance.text) == (str(tmp_path / "a.wav"), "HELLO")


def test_what_is_written_is_read_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = read_manifest(SAMPLES / "manifest.jsonl")
    utterances[0] = replace(utterances[0], text="naïve “quotes”\tand tabs", start_seconds=0.5, duration_seconds=1.25)
    utterances[1] = replace(utterances[1], id="caf\udce9", text="привет")
    monkeypatch.chdir(tmp_path)
    write_manifest(utterances, "written.jsonl")
    assert "привет" in Path("written.jsonl").read_text(encoding="utf-8")
    monkeypatch.chdir("/")
    again = read_manifest(tmp_path / "written.jsonl")
    for before, after in zip(utterances, again, strict=True):
        assert Path(after.audio_path).resolve() == Path(before.audio_path).resolve()
        same = {"audio_path": "", "manifest": "", "line": 0}
        assert replace(after, **same) == replace(before, **same)  # type: ignore[arg-type]


def test_what_only_pythons_json_reads_is_read(tmp_path: Path) -> None:
    ids = [123456789012345678901234, 123456789012345678901235, "caf\udce9"]
    rows = [{**GOOD, "id": name, "snr": float("nan")} for name in ids]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [utterance.id for utterance in read_manifest(path)] == list(map(str, ids))


@pytest.mark.parametrize("target", ["blobs/abc.tar", "blobs/abc"])
def test_a_link_to_a_tar_file_keeps_its_name(tmp_path: Path, target: str) -> None:
    (tmp_path / "blobs").mkdir()
    content = Path(RECORDING).read_bytes()
    with tarfile.open(tmp_path / target, "w") as file:
        info = tarfile.TarInfo("a//b.flac")
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    (tmp_path / "recording.000000.tar").symlink_to(tmp_path / target)
    utterance = Utterance("a", str(tmp_path / "recording.000000.tar" / "a") + "//b", "A", 0.0, 1.0, "", "", 1)
    write_manifest([utterance], tmp_path / "written.jsonl")
    (again,) = read_manifest(tmp_path / "written.jsonl")
    assert len(read_audio(again.audio_path, 16000)) > 0


def test_what_is_written_through_a_link_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "deeper")
    utterance = Utterance("a", RECORDING, "A", 0.0, 1.0, "", "", 1)
    write_manifest([utterance], tmp_path / "link" / "written.jsonl")
    for folder in ("link", "deep/deeper"):
        (again,) = read_manifest(tmp_path / folder / "written.jsonl")
        assert Path(again.audio_path).samefile(RECORDING)


WRITTEN = [
    Utterance(f"u{number}", RECORDING, text, number, 1.0, "", "", number)
    for number, text in enumerate(("ONE", "TWO"), start=1)
]


def test_a_manifest_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AsrError, match=r"manifest\.jsonl: cannot be written \(.+\); make room or"):
        write_manifest([], tmp_path / "file" / "manifest.jsonl")


def test_a_manifest_is_compressed_by_its_name_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.jsonl.gz"
    write_manifest(WRITTEN, path)
    assert gzip.decompress(path.read_bytes()).count(b"\n") == len(WRITTEN)
    assert [utterance.text for utterance in read_manifest(path)] == ["ONE", "TWO"]


def test_an_error_while_a_manifest_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    def broken() -> Iterator[Utterance]:
        yield WRITTEN[1]
        raise AsrError("no more")

    path = tmp_path / "manifest.jsonl"
    write_manifest(WRITTEN[:1], path)
    before = path.read_bytes()
    with pytest.raises(AsrError, match="no more"):
        write_manifest(broken(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_is_zero_is_a_name_too(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(json_lines(GOOD | {"id": 0, "speaker": 0}))
    (utterance,) = read_manifest(tmp_path / "m.jsonl")
    assert (utterance.id, utterance.speaker) == ("0", "0")


@pytest.mark.parametrize("name", ["list.txt", "mine", "talk.flac"])
def test_what_is_no_manifest_is_told_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a.wav\tHELLO\nb.wav\tTHERE\n")
    with pytest.raises(AsrError, match=r"is no manifest; call it \.csv, \.tsv or \.jsonl, with the columns [^\n]*$"):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.csv", "audio,words\na.wav,A\nb.wav,B\n", "1: 'text' is missing (there are: audio, words)"),
        ("m.json", json.dumps([GOOD, GOOD]), "1: holds one JSON text; `jq -c '.[]' FILE` writes an object a line"),
        ("m.json", json.dumps({"u1": GOOD}, indent=1), "1: holds one JSON text; `jq"),
        ("m.jsonl", json.dumps([GOOD, GOOD], indent=1), "1: holds one JSON text; `jq"),
    ],
)
def test_what_is_wrong_with_all_of_a_manifest_is_told_once(tmp_path: Path, name: str, content: str, told: str) -> None:
    assert refusal(written(tmp_path, content.encode(), name)).startswith(told)


def test_columns_may_be_capitals_and_are_parted_by_commas(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("Audio,Text,Duration\na.wav,Hello,1\n")
    assert read_manifest(path)[0].text == "Hello"
    path.write_text("audio;text\na.wav;Hello\n")
    for sign in ";\t":
        path.write_text(f"audio{sign}text\na.wav{sign}Hello\n")
        with pytest.raises(
            AsrError, match=r"'audio' is missing \(there are: .*\); part columns by commas, or by tabs in"
        ):
            read_manifest(path)


def test_empty_lines_above_the_header_count_as_lines_and_as_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("\n\naudio,text,duration\na.wav,Hello,1\n")
    assert read_manifest(path)[0].place == f"{path}:4"
    path.write_text("\naudio,words\na.wav,Hello\n")
    with pytest.raises(AsrError, match=r"m.csv:2: 'text' is missing"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", 'audio, text , duration\na.wav, "Hello, you", 1\n'),
        ("m.csv", "sep=,\naudio,text,duration\na.wav,Hello,1\n"),
        ("m.csv", "\nSEP=;\r\n\r\naudio;text;duration\r\na.wav;Hello, you;1\r\n"),
        ("m.csv", "audio,text,duration,,\n,,,,\n , ,,,\na.wav,Hello,1,,\n,,,,\n"),
        ("m.tsv", "audio\t text\tduration\n\t\t\na.wav\tHello\t1\n"),
    ],
)
def test_tables_are_read_as_people_and_spreadsheets_write_them(tmp_path: Path, name: str, content: str) -> None:
    (utterance,) = read_manifest(written(tmp_path, content.encode(), name))
    text = "Hello, you" if "you" in content else "Hello"
    line = next(number for number, line in enumerate(content.split("\n"), start=1) if "a.wav" in line)
    expected = Utterance("a", str(tmp_path / "a.wav"), text, 0.0, 1.0, "", str(tmp_path / name), line)
    assert utterance == expected


def test_two_columns_of_a_name_that_is_read_are_refused_and_others_are_not(tmp_path: Path) -> None:
    path = written(tmp_path, b"audio,text,Text,duration\na.wav,A,B,1\n", "m.csv")
    assert refusal(path) == "1: 2 columns are called 'text'; rename all but the one to read"
    path = written(tmp_path, b"audio,text,note,note,duration\na.wav,A,B,C,1\n", "m.csv")
    assert read_manifest(path)[0].text == "A"


@pytest.mark.parametrize(("name", "delimiter"), [("m.csv", ","), ("m.tsv", "\t")])
def test_a_quote_that_swallows_lines_is_told_with_both_ends(tmp_path: Path, name: str, delimiter: str) -> None:
    texts = ["One.", '"Come here he said.', "Nobody came.", 'Then he left."', "End."]
    lines = [f"{number}.wav{delimiter}{text}" for number, text in enumerate(texts)]
    path = written(tmp_path, f"audio{delimiter}text\n".encode() + "\n".join(lines).encode(), name)
    assert refusal(path) == "3: a quotation mark reaches to line 5; double it, or write the text in one line"


def test_an_open_quote_is_told_where_it_opens(tmp_path: Path) -> None:
    lines = [f"{number}.wav,HELLO,1" for number in range(1000)]
    lines[15] = '15.wav,"HELLO,1'
    (tmp_path / "m.csv").write_text("audio,text,duration\n" + "\n".join(lines))
    with pytest.raises(AsrError, match=r"m\.csv:17: unexpected end of data; double the quotes"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(("name", "delimiter"), [("m.csv", ","), ("m.tsv", "\t")])
def test_the_text_of_hours_fits_into_a_table(tmp_path: Path, name: str, delimiter: str) -> None:
    text = " ".join(["And, so, on."] * 20_000)
    row = delimiter.join(["a.wav", f'"{text}"', "9000"])
    path = written(tmp_path, f"{delimiter.join(['audio', 'text', 'duration'])}\n{row}\n".encode(), name)
    assert read_manifest(path)[0].text == text


def test_the_case_of_an_ending_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "M.CSV").write_text("audio,text,duration\na.wav,HELLO,1\n")
    with gzip.open(tmp_path / "M.JSONL.GZ", "wt") as file:
        file.write(json.dumps({"audio": "a.wav", "text": "HELLO", "duration": 1}))
    for name in ("M.CSV", "M.JSONL.GZ"):
        assert read_manifest(tmp_path / name)[0].text == "HELLO"


def test_half_a_character_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "text": "A\\ud800", "duration": 1}')
    with pytest.raises(AsrError, match=r"m\.jsonl:1: text='A\\ud800' holds half a character"):
        read_manifest(tmp_path / "m.jsonl")
