"""The recipe from nothing to a WER, on a LibriSpeech of six real utterances behind a server on this machine."""

import functools
import hashlib
import http.server
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asr.cli import main
from asr.corpora.librispeech import SUBSETS, Subset

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
