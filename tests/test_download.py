"""Downloads over a real connection to a server on loopback that misbehaves in every way we know."""

import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from asr.corpora.archive import unpack
from asr.corpora.download import fetch, md5_of
from asr.errors import AsrError

CONTENT = bytes(range(256)) * 4096  # 1 MiB: more than the socket buffers swallow before a drop is seen
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers one request after the other as `script` says, then as it should; notes the ranges asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.sent = 0
        self.retry_after = ""
        self.ranges: list[str | None] = []
        self.asked_again = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/corpus.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        if self.server.ranges:
            self.server.asked_again.set()
        self.server.ranges.append(asked)
        action = self.server.script.pop(0) if self.server.script else "good"
        if action.isdecimal():
            self.refuse(int(action))
        elif action == "stall":
            self.answer(200, CONTENT, send=1000)
            self.server.asked_again.wait(60)
        elif action == "nolength":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT)
        elif action == "endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # who reads it may have had enough
                while self.server.sent < 100 * len(CONTENT):
                    self.server.sent += self.wfile.write(CONTENT)
        elif asked and "norange" not in action:
            self.resume(int(asked.removeprefix("bytes=").removesuffix("-")), action)
        else:
            self.answer(200, CONTENT, send=len(CONTENT) // 2 if "drop" in action else None, wrong="wrong" in action)

    def resume(self, start: int, action: str) -> None:
        if start >= len(CONTENT):
            return self.refuse(416)
        shift = 5 if action == "shifted" else 0
        extent = f"bytes {start + shift}-{len(CONTENT) - 1}/{len(CONTENT)}"
        self.answer(206, CONTENT[start:], send=1 if "drop" in action else None, extent=extent)

    def refuse(self, status: int) -> None:
        self.send_response(status)
        if self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()

    def answer(
        self, status: int, body: bytes, send: int | None = None, wrong: bool = False, extent: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if extent:
            self.send_header("Content-Range", extent)
        self.end_headers()
        self.wfile.write((b"!" + body[1:] if wrong else body)[:send])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited, which are not."""
    seconds: list[float] = []
    monkeypatch.setattr("asr.corpora.download.time.sleep", seconds.append)
    return seconds


def get(server: Server, path: Path, **options: object) -> Path:
    return fetch(server.url, path, **{"md5": MD5, "backoff_seconds": 0.001, "progress": False} | options)  # type: ignore[arg-type]


def test_a_file_arrives_whole_under_its_own_name_in_a_new_folder(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "new" / "corpus.tar.gz")
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["corpus.tar.gz"]


def test_a_file_that_is_already_right_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "corpus")
    get(server, tmp_path / "corpus")
    assert len(server.ranges) == 1


def test_a_file_with_a_wrong_checksum_under_the_final_name_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus").write_bytes(b"old")
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT


def test_a_connection_dropped_in_the_middle_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.script = ["drop"]
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_download_killed_earlier_asks_only_for_the_rest(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.part").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_server_that_ignores_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.script = ["norange"]
    (tmp_path / "corpus.part").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT


def test_a_range_other_than_the_one_asked_for_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.script = ["shifted"]
    (tmp_path / "corpus.part").write_bytes(CONTENT[:1000])
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT


def test_a_complete_part_is_taken_although_the_server_answers_416(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT
    assert server.ranges[1] is None


def test_a_server_that_does_not_tell_the_length_is_served_too(server: Server, tmp_path: Path) -> None:
    server.script = ["nolength"]
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT


def test_a_stream_without_an_end_does_not_fill_the_disk(server: Server, tmp_path: Path) -> None:
    server.script = ["endless"]
    assert get(server, tmp_path / "corpus", size=len(CONTENT)).read_bytes() == CONTENT
    assert server.sent < 50 * len(CONTENT)


def test_one_wrong_byte_is_noticed_and_the_file_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.script = ["wrong"]
    assert get(server, tmp_path / "corpus").read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_a_checksum_wrong_twice_is_an_error_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.script = ["wrong", "wrong"]
    with pytest.raises(AsrError, match=f"the checksum is .* after two downloads, but {MD5} is published"):
        get(server, tmp_path / "corpus")
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_down_twice_is_asked_a_third_time(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = ["503", "503"]
    assert get(server, tmp_path / "corpus", backoff_seconds=2.0).read_bytes() == CONTENT
    assert waits == [2.0, 4.0]


@pytest.mark.parametrize(
    ("header", "wait"), [("7", 7.0), ("86400", 120.0), ("soon", 2.0), ("-1", 2.0), ("1 May 2026 1:2 +" + "9" * 20, 2.0)]
)
def test_retry_after_is_honoured_within_two_minutes(
    server: Server, tmp_path: Path, waits: list[float], header: str, wait: float
) -> None:
    server.script, server.retry_after = ["429"], header
    get(server, tmp_path / "corpus", backoff_seconds=2.0)
    assert waits == [wait]


def test_retry_after_may_be_a_date_in_the_past(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script, server.retry_after = ["503"], "Wed, 21 Oct 2015 07:28:00 GMT"
    get(server, tmp_path / "corpus", backoff_seconds=2.0)
    assert waits == [2.0]


def test_a_missing_file_is_an_error_at_once(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.script = ["404"]
    with pytest.raises(AsrError, match=r"corpus.tar.gz: the server answers 404 \(Not Found\); check the address"):
        get(server, tmp_path / "corpus")
    assert (len(server.ranges), waits) == (1, [])


def test_a_server_that_stays_down_is_given_up_and_the_part_is_kept(server: Server, tmp_path: Path) -> None:
    server.script = ["drop", *["503"] * 9]
    with pytest.raises(AsrError, match=r"3 attempts in a row failed.*503.*run the same command again to go on"):
        get(server, tmp_path / "corpus", attempts=3)
    assert (tmp_path / "corpus.part").stat().st_size == len(CONTENT) // 2


def test_attempts_that_bring_new_bytes_do_not_count_as_failures(server: Server, tmp_path: Path) -> None:
    server.script = ["drop"] * 9
    assert get(server, tmp_path / "corpus", attempts=2).read_bytes() == CONTENT


def test_a_server_that_drops_and_cannot_resume_is_given_up(server: Server, tmp_path: Path) -> None:
    server.script = ["drop norange"] * 9
    with pytest.raises(AsrError, match=r"3 attempts in a row failed.*the connection broke after"):
        get(server, tmp_path / "corpus", attempts=3)
    assert len(server.ranges) == 3


def test_a_connection_that_falls_silent_times_out_and_is_resumed(server: Server, tmp_path: Path) -> None:
    server.script = ["stall"]
    assert get(server, tmp_path / "corpus", timeout_seconds=1).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]


def test_a_port_where_nobody_listens_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"2 attempts in a row failed.*refused"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", md5=MD5, attempts=2, backoff_seconds=0.001)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "corpus.tar.gz"])
def test_only_web_addresses_are_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="only addresses that begin with http"):
        fetch(url, tmp_path / "x", md5=MD5)


@pytest.mark.parametrize(
    "url",
    ["http://a..b/corpus", "http://127.0.0.1:port/corpus", "http://127.0.0.1:9/\ncorpus"],
)
def test_an_address_that_cannot_be_is_one_sentence_at_once(url: str, tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(AsrError, match=r"cannot be fetched: .*; check the address"):
        fetch(url, tmp_path / "corpus", md5=MD5, progress=False)
    assert waits == []


def test_a_disk_too_small_for_file_and_contents_is_said_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=3_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(AsrError, match=r"5\.00 GB needed .* only 3\.00 GB free"):
        get(server, tmp_path / "corpus", room_bytes=5_000_000_000)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AsrError, match="cannot be made"):
        get(server, tmp_path / "file" / "corpus")


def test_a_part_that_cannot_be_written_is_one_sentence_and_no_network_failure(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.part").mkdir()
    server.script = ["norange"]
    with pytest.raises(AsrError, match=r"corpus\.part: cannot be written"):
        get(server, tmp_path / "corpus")
    assert len(server.ranges) == 1


def test_the_bar_goes_to_stderr_and_starts_where_the_part_ends(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.part").write_bytes(CONTENT[: len(CONTENT) // 2])
    get(server, tmp_path / "corpus", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "50%" in captured.err
    assert "1.05M/1.05M" in captured.err


def make_archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def file_member(name: str, size: int = 5) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def link_member(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tree(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_an_archive_is_unpacked_beside_what_is_there(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", file_member("corpus/new/b.txt"), file_member("corpus/README"))
    (tmp_path / "out/corpus/old").mkdir(parents=True)
    unpack(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == ["corpus", "corpus/README", "corpus/new", "corpus/new/b.txt", "corpus/old"]


def test_what_a_killed_unpacking_left_is_removed_by_the_next(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", file_member("corpus/b.txt"))
    left = tmp_path / "out" / ".unpacking-a.tar.gz" / "corpus"
    left.mkdir(parents=True)
    (left / "half").touch()
    unpack(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path / "out") == ["corpus", "corpus/b.txt"]


@pytest.mark.parametrize(
    "member",
    [
        file_member("../evil"),
        file_member("corpus/../../evil"),
        link_member("corpus/link", "/etc/passwd"),
        link_member("corpus/link", "../../../evil"),
        link_member("corpus/link", "../../evil", tarfile.LNKTYPE),
        link_member("corpus/device", "", tarfile.CHRTYPE),
        link_member("corpus/pipe", "", tarfile.FIFOTYPE),
    ],
    ids=["parent", "hidden parent", "absolute link", "link out", "hard link out", "device", "pipe"],
)
def test_an_archive_that_reaches_outside_its_folder_is_refused_and_leaves_nothing(
    member: tarfile.TarInfo, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", file_member("corpus/good"), member)
    with pytest.raises(AsrError, match=r"a\.tar\.gz: cannot be unpacked"):
        unpack(archive, tmp_path / "in" / "out", progress=False)
    assert tree(tmp_path) == ["a.tar.gz", "in", "in/out"]


def test_an_absolute_path_in_an_archive_stays_inside(tmp_path: Path) -> None:
    absolute = tmp_path / "evil"
    archive = make_archive(tmp_path / "a.tar.gz", file_member(str(absolute)))
    unpack(archive, tmp_path / "out", progress=False)
    assert not absolute.exists()


def test_a_file_cannot_be_written_through_a_link_in_the_archive(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", link_member("door", ".."), file_member("door/evil"))
    with pytest.raises(AsrError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path) == ["a.tar.gz", "out"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", "cut"], ids=["empty", "not gzip", "cut off"])
def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(content: bytes | str, tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", file_member("corpus/a", 100_000), file_member("corpus/b"))
    archive.write_bytes(archive.read_bytes()[:150] if content == "cut" else bytes(content))  # type: ignore[arg-type]
    with pytest.raises(AsrError, match=r"a\.tar\.gz: cannot be unpacked"):
        unpack(archive, tmp_path / "out", progress=False)
    assert tree(tmp_path) == ["a.tar.gz", "out"]


def test_a_python_without_safe_unpacking_is_told_which_versions_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(AsrError, match=r"use 3\.10\.12, 3\.11\.4 or newer"):
        unpack(tmp_path / "a.tar.gz", tmp_path)


def test_md5_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert md5_of(tmp_path / "a") == MD5
