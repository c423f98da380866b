"""The recipe from nothing to a WER, on a LibriSpeech of six real utterances behind a server on this machine."""

import functools
import hashlib
import http.server
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import librosa
import numpy
import pytest
import torch
from command_line import Outcome

from asr import load_model
from asr.audio import read_audio
from asr.cli import main
from asr.corpora.librispeech import SUBSETS, Subset
from asr.manifest import Utterance, read_manifest, write_manifest
from asr.metrics import character_errors
from asr.modelfile import PACKAGED_MODEL, save_model
from asr.transcription import Recording, transcribe_recordings

ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples"


def make_archive(folder: Path, subset: str) -> Path:
    """<subset>.tar.gz as OpenSLR has it, of the samples."""
    tree = folder / "tree" / subset / "LibriSpeech" / subset
    for line in (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        speaker, chapter, _ = fields["id"].split("-")
        chapter_folder = tree / speaker / chapter
        chapter_folder.mkdir(parents=True)
        shutil.copy(SAMPLES / fields["audio"], chapter_folder)
        transcript = chapter_folder / f"{speaker}-{chapter}.trans.txt"
        transcript.write_text(f"{fields['id']} {fields['text']}\n", encoding="utf-8")
    archive = folder / f"{subset}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree.parent, arcname="LibriSpeech")
    return archive


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    site = tmp_path / "site"
    (site / "31").mkdir(parents=True)
    for name in ("train-clean-5", "dev-clean-2"):
        archive = make_archive(site / "31", name)
        checksum = hashlib.md5(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(SUBSETS, name, Subset(name, 31, checksum, archive.stat().st_size))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_mini_recipe_goes_from_download_to_wer(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    subsets = ["train-clean-5", "dev-clean-2"]
    assert main(["download", "librispeech", "--subsets", *subsets, "--dir", "data", "--mirror", mirror]) == 0
    assert main(["prepare", "librispeech", "data", "--output-dir", "data/manifests"]) == 0
    smaller = ["trainer.epochs=1", "trainer.valid_every_epochs=1", "model.encoder.hidden_size=16", "data.num_workers=0"]
    assert main(["train", str(ROOT / "recipes/librispeech/mini.yaml"), *smaller]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/mini/model.safetensors"
    manifest = "data/manifests/dev-clean-2.jsonl.gz"
    assert main(["evaluate", "runs/mini/model.safetensors", manifest, "--hypotheses", "hypotheses.jsonl"]) == 0
    assert "WER" in capsys.readouterr().out
    assert len(Path("hypotheses.jsonl").read_text(encoding="utf-8").splitlines()) == 6


def run_script(name: str, *arguments: str | Path | float, folder: str = "base") -> None:
    command = [sys.executable, ROOT / "recipes" / folder / name, *map(str, arguments)]
    subprocess.run(command, check=True, timeout=300)


@pytest.mark.parametrize("script", ["base/mp3_copies.py", "finetune/take_minutes.py"])
def test_a_script_tells_what_it_cannot_read_in_a_sentence(script: str, tmp_path: Path) -> None:
    arguments = [tmp_path / "none.jsonl", *(["5"] if "minutes" in script else []), tmp_path / "out"]
    command = [sys.executable, ROOT / "recipes" / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'none.jsonl'}: manifest not found")
    assert done.stderr.count("\n") == 1


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A script in this process."""

    def run(script: str, *arguments: str | Path) -> Outcome:
        path = ROOT / "recipes" / script
        monkeypatch.syspath_prepend(path.parent)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        code: int | str | None = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("script", sorted((ROOT / "recipes").glob("*/*.py")), ids=lambda script: script.name)
def test_every_script_tells_how_it_is_called(call: Call, script: Path) -> None:
    told = call(str(script), "--help")
    assert (told.code, told.errors) == (0, "")
    assert told.output.startswith(f"usage: {script.name} ")


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        ("base/deepen.py", [], "arguments are required: model, deeper"),
        ("base/deepen.py", ["packaged", "deeper.safetensors", "0"], "layers must be at least 1"),
        ("base/publish.py", [], "arguments are required: model"),
        ("finetune/plot.py", [], "arguments are required: picture"),
        ("finetune/take_minutes.py", ["m.csv", "0", "part.jsonl"], "0 must be a number above 0"),
        ("base/cut_at_pauses.py", ["m.csv", "p.jsonl", "--model", "packaged", "--max-seconds", "0"], "above 0"),
    ],
)
def test_a_script_that_is_called_otherwise_tells_why(
    call: Call, script: str, arguments: list[str], reason: str
) -> None:
    told = call(script, *arguments)
    assert told.code == 2
    assert reason in told.errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("base/cut_at_pauses.py", "{manifest} {manifest} --model packaged"),
        ("base/mp3_copies.py", "{manifest} {folder}"),
        ("base/pronounce.py", "{manifest} -o {manifest}"),
        ("base/speak.py", "{text} {folder} --held-out {folder}/manifest.jsonl"),
        ("base/splice.py", "{manifest} {folder}"),
        ("finetune/take_minutes.py", "{manifest} 1 {manifest}"),
    ],
)
def test_a_script_does_not_write_over_its_data(call: Call, tmp_path: Path, script: str, arguments: str) -> None:
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(read_manifest(SAMPLES / "manifest.jsonl"), manifest)
    before = manifest.read_bytes()
    (tmp_path / "text.txt").write_text("THESE ARE FOUR WORDS\n")
    names = {"manifest": manifest, "folder": tmp_path, "text": tmp_path / "text.txt"}
    told = call(script, *arguments.format(**names).split())
    assert told.code == 1
    assert "would replace " in told.errors
    assert told.errors.count("\n") == 1
    assert manifest.read_bytes() == before


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """The samples, cut wherever they can be."""
    path = tmp_path_factory.mktemp("pieces") / "pieces.jsonl"
    run_script("cut_at_pauses.py", SAMPLES / "manifest.jsonl", path, "--model", PACKAGED_MODEL, "--max-seconds", "2")
    return read_manifest(path)


def test_a_folder_is_cut_at_its_pauses_and_nothing_is_written_where_nothing_is_left(call: Call, tmp_path: Path) -> None:
    folder, pieces = tmp_path / "folder", tmp_path / "new" / "pieces.jsonl"
    folder.mkdir()
    shutil.copy(SAMPLES / "84-121123-0001.flac", folder / "a.flac")
    (folder / "a.txt").write_text("1984")
    told = call("base/cut_at_pauses.py", folder, pieces, "--model", "packaged")
    assert told.code == 1
    assert told.errors.splitlines()[-1].startswith(f"{folder}: every utterance was left out; ")
    assert not pieces.exists()
    (folder / "a.txt").write_text("But in less than five minutes the staircase groaned beneath an extraordinary weight")
    assert call("base/cut_at_pauses.py", folder, pieces, "--model", "packaged").code == 0
    assert read_manifest(pieces)[0].id == "a-0"


@pytest.mark.parametrize("words", [("0", "2"), ("4", "2")])
def test_no_chunk_of_a_splice_is_without_words(call: Call, tmp_path: Path, words: tuple[str, str]) -> None:
    told = call("base/splice.py", SAMPLES / "manifest.jsonl", tmp_path / "new", "--words", *words)
    assert told.code == 2
    assert "--words must be at least 1, the fewest first" in told.errors


def test_nothing_is_spliced_where_nothing_is_left(call: Call, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("1984")
    told = call("base/splice.py", tmp_path, tmp_path / "new")
    assert told.code == 1
    assert told.errors.splitlines()[-1].startswith("every utterance was left out; ")
    assert not (tmp_path / "new" / "manifest.jsonl").exists()


def pieces_of(pieces: list[Utterance], whole: Utterance) -> list[Utterance]:
    return [piece for piece in pieces if piece.id.rsplit("-", 1)[0] == whole.id]


def test_pieces_follow_one_another_through_their_utterance_and_its_text(pieces: list[Utterance]) -> None:
    wholes = read_manifest(SAMPLES / "manifest.jsonl")
    assert len(pieces) > len(wholes)
    for whole in wholes:
        parts = pieces_of(pieces, whole)
        assert " ".join(part.text for part in parts) == whole.text
        ends = numpy.cumsum([part.duration_seconds for part in parts])
        assert [part.start_seconds for part in parts] == pytest.approx([0.0, *ends[:-1]], abs=2e-3)
        assert ends[-1] == pytest.approx(whole.duration_seconds, abs=2e-3)
        assert {os.path.realpath(part.audio_path) for part in parts} == {os.path.realpath(whole.audio_path)}


def test_an_utterance_is_cut_only_where_it_is_quiet(pieces: list[Utterance]) -> None:
    for whole in read_manifest(SAMPLES / "manifest.jsonl"):
        samples = read_audio(whole.audio_path, 16000)
        for piece in pieces_of(pieces, whole)[1:]:
            place = round(piece.start_seconds * 16000)
            around = samples[place - 800 : place + 800]
            assert around.square().mean() < samples.square().mean() / 100


def errors(utterances: list[Utterance]) -> int:
    """Characters that the packaged model gets wrong."""
    recordings = [Recording(one.audio_path, one.id, one.start_seconds, one.duration_seconds) for one in utterances]
    texts = [str(transcript) for transcript in transcribe_recordings(load_model(), recordings)]
    return sum(character_errors(one.text, text).errors for one, text in zip(utterances, texts, strict=True))


def test_pieces_are_recognised_as_well_as_the_whole(pieces: list[Utterance]) -> None:
    """A word on the wrong side of a cut would be deleted here and inserted there. A piece says less of its words than a
    sentence does, so a few letters may be worse.
    """
    wholes = read_manifest(SAMPLES / "manifest.jsonl")
    assert errors(pieces) <= errors(wholes) + 0.05 * sum(len(whole.text) for whole in wholes)


@pytest.fixture(scope="module")
def spliced(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """The samples, of as many speakers, each put together anew of four or five words at a time."""
    folder = tmp_path_factory.mktemp("spliced")
    run_script("splice.py", SAMPLES / "manifest.jsonl", folder, "--words", 4, 5)
    return read_manifest(folder / "manifest.jsonl")


@pytest.mark.slow
def test_spliced_utterances_say_the_words_of_their_speaker_in_another_order(spliced: list[Utterance]) -> None:
    wholes = read_manifest(SAMPLES / "manifest.jsonl")
    new = {one.text for one in spliced} - {one.text for one in wholes}
    assert len(new) >= len(wholes) / 2, "of two chunks every other draw leaves the order"
    for whole in wholes:
        own = [one for one in spliced if one.speaker == whole.speaker]
        assert sorted(" ".join(one.text for one in own).split()) == sorted(whole.text.split())
        seconds = sum(len(read_audio(one.audio_path, 16000)) / 16000 for one in own)
        assert 0.7 * whole.duration_seconds < seconds <= whole.duration_seconds, "silence at its ends is left out"


def test_a_splice_is_cut_between_words(spliced: list[Utterance]) -> None:
    """A word on either side of a cut would be misheard on both."""
    wholes = read_manifest(SAMPLES / "manifest.jsonl")
    assert errors(spliced) <= errors(wholes) + 0.15 * sum(len(whole.text) for whole in wholes)


@pytest.mark.parametrize("num_layers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_deeper_model_writes_the_same_and_its_new_layers_learn(tmp_path: Path, num_layers: int) -> None:
    run_script("deepen.py", PACKAGED_MODEL, tmp_path / "deeper.safetensors", *["2"][: num_layers - 1])
    save_model(load_model(), tmp_path / "half.safetensors")  # its weights of eight bits, rounded once more
    model, deeper = (load_model(tmp_path / f"{name}.safetensors") for name in ("half", "deeper"))
    assert model.reader is not None
    assert deeper.reader is not None
    assert len(deeper.reader.layers) == len(model.reader.layers) + num_layers
    samples = read_audio(SAMPLES / "84-121123-0001.flac", 16000)
    batch = samples[None], torch.tensor([len(samples)])
    log_probs, _ = deeper(*batch)
    torch.testing.assert_close(log_probs, model(*batch)[0], rtol=0, atol=1e-5)
    log_probs[..., 0].sum().backward()
    for new in deeper.reader.layers[-num_layers:]:
        for cell in (new.forward_cell, new.backward_cell):
            assert cell.weight_ih_l0.grad.norm() > 0


def test_an_mp3_copy_says_what_its_original_says(tmp_path: Path) -> None:
    run_script("mp3_copies.py", SAMPLES / "manifest.jsonl", tmp_path / "copies")
    originals = read_manifest(SAMPLES / "manifest.jsonl")
    copies = read_manifest(tmp_path / "copies" / "manifest.jsonl")
    assert [copy.text for copy in copies] == [original.text for original in originals]
    for original, copy in zip(originals, copies, strict=True):
        assert Path(copy.audio_path).suffix == ".mp3"
        energies = [
            librosa.feature.rms(y=read_audio(path, 16000).numpy())[0] for path in (original.audio_path, copy.audio_path)
        ]
        shortest = min(map(len, energies))
        assert abs(len(energies[0]) - len(energies[1])) < 6
        best = max(
            numpy.corrcoef(energies[0][: shortest - 5], energies[1][shift:][: shortest - 5])[0, 1] for shift in range(5)
        )
        assert best > 0.95


STAND_INS = {
    "hibari.py": """
import numpy
class Hibari:
    def __call__(self, text, speed, seed):
        return numpy.sin(numpy.arange(2 * 24000 / speed) / 10).astype("float32")
""",
    "flite": f"""#!{sys.executable}
import sys, numpy, soundfile
stretch = float(sys.argv[sys.argv.index("--setf") + 1].removeprefix("duration_stretch="))
samples = numpy.sin(numpy.arange(2 * 16000 * stretch) / 10)
soundfile.write(sys.argv[sys.argv.index("-o") + 1], samples, 16000)
""",
}
"""Two seconds of a tone at their normal tempo, in place of the programs that speak."""


def test_synthetic_speech_is_of_the_text_in_every_voice_and_without_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, code in STAND_INS.items():
        (tmp_path / name).write_text(code, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    sentences = [f"SENTENCE NUMBER {letter} IS {'A ' * words}WORD" for letter in "ABCDEFGH" for words in range(9)]
    samples = read_manifest(SAMPLES / "manifest.jsonl")
    short = [replace(samples[0], id=letter, text=f"Do you say {letter}?") for letter in "ABCDEFGHIJKLMNOPQRST"]
    said = [utterance.text for utterance in samples] + [f"DO YOU SAY {utterance.id}" for utterance in short]
    (tmp_path / "text.txt").write_text("\n".join([*said, "TOO SHORT", *sentences]), encoding="utf-8")
    write_manifest(samples, tmp_path / "valid.jsonl")
    write_manifest(short, tmp_path / "other.jsonl")
    held_out = [tmp_path / "valid.jsonl", tmp_path / "other.jsonl"]
    manifests = []
    for folder in (tmp_path / "one", tmp_path / "again"):
        run_script("speak.py", tmp_path / "text.txt", folder, "--hours", 60 / 3600, "--held-out", *held_out)
        manifests.append((folder / "manifest.jsonl").read_text(encoding="utf-8"))
    assert manifests[0] == manifests[1]
    spoken = read_manifest(tmp_path / "one" / "manifest.jsonl")
    assert len({utterance.text for utterance in spoken}) == len(spoken)
    assert {utterance.text for utterance in spoken} <= set(sentences)
    assert {utterance.speaker for utterance in spoken} == {
        f"synthetic-{voice}" for voice in ("hibari", "slt", "rms", "awb", "kal16")
    }
    assert 60 <= sum(utterance.duration_seconds for utterance in spoken) < 63
    for utterance in spoken:
        seconds = len(read_audio(utterance.audio_path, 16000)) / 16000
        assert seconds == pytest.approx(utterance.duration_seconds, abs=0.01)
        assert 2 / 1.2 - 0.1 < seconds < 2 / 0.85 + 0.1, "whatever the size of the speaker"


def test_a_text_without_a_sentence_to_speak_is_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("TOO SHORT\n")
    told = call("base/speak.py", tmp_path / "text.txt", tmp_path / "new")
    assert told.code == 1
    assert told.errors == "no sentence of 4 to 25 words that is not held out; give other text\n"
    assert not (tmp_path / "new" / "manifest.jsonl").exists()


@pytest.mark.slow
def test_more_minutes_hold_the_utterances_of_fewer(tmp_path: Path) -> None:
    parts = []
    for minutes in (0.1, 0.3, 60):
        run_script("take_minutes.py", SAMPLES / "manifest.jsonl", minutes, tmp_path / "part.jsonl", folder="finetune")
        parts.append(read_manifest(tmp_path / "part.jsonl"))
    seconds = [sum(utterance.duration_seconds for utterance in part) for part in parts]
    ids = [{utterance.id for utterance in part} for part in parts]
    assert 6 <= seconds[0] < 18 <= seconds[1] < seconds[2]
    assert ids[0] < ids[1] < ids[2] == {utterance.id for utterance in read_manifest(SAMPLES / "manifest.jsonl")}


def test_the_curve_of_the_docs_is_drawn_from_its_results(tmp_path: Path) -> None:
    run_script("plot.py", tmp_path / "curve.svg", folder="finetune")
    assert "<svg" in (tmp_path / "curve.svg").read_text()
