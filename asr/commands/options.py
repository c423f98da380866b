"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from asr.errors import AsrError
from asr.files import real_path
from asr.tarfiles import split_path

if TYPE_CHECKING:
    from collections import Counter

    from asr.decoder import Decode
    from asr.manifest import Utterance
    from asr.model import CTCModel
    from asr.text import Normalize

__all__ = [
    "DEVICES",
    "FORMATS",
    "Commands",
    "add_inference_options",
    "add_language_model_options",
    "check_output",
    "choose_device",
    "find_lm_conflict",
    "format_names",
    "given_path",
    "given_text",
    "make_decode",
    "positive",
]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

FORMATS = ("text", "json", "srt", "vtt", "tsv", "ctm", "TextGrid")

LM_SETTINGS = ("rescore", "beam_size", "lm_weight", "word_score", "prior_weight")

DEVICES = "cpu, cuda or auto (a GPU where there is one)"


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help=f"{DEVICES}; default: auto")
    parser.add_argument(
        "--batch-seconds", type=positive, default=160.0, metavar="N", help="audio computed at once (default: 160)"
    )


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def given_text(text: str) -> str:
    """What an option names; raises ArgumentTypeError for nothing, which a shell's variable that is not set gives."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty; name something, or leave the option out")
    return text


def given_path(text: str) -> Path:
    return Path(given_text(text))


def add_language_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hotword",
        action="append",
        metavar="WORD[:BOOST]",
        help="a likely word, and by how many nats (default: 11, by sound too 4.5; with --lm 5, by sound too 1)",
    )
    group = parser.add_argument_group(
        "language model", 'needs flashlight-text: pip install "bigru-asr[lm]", Python 3.10 to 3.12'
    )
    group.add_argument(
        "--lm", type=given_text, metavar="FILE", help="`packaged`, or an ARPA file: beam search over its words"
    )
    group.add_argument(
        "--rescore",
        type=given_text,
        metavar="FILE",
        help="a model of `asr lm train`, to choose among the best texts, or `none`; beside the packaged ARPA file "
        "`packaged` is the default, else `none`",
    )
    group.add_argument("--lexicon", metavar="FILE", type=Path, help="the words to choose from, one a line")
    group.add_argument("--beam-size", type=int, metavar="N", help="hypotheses kept at every step (default: 300)")
    group.add_argument(
        "--lm-weight",
        type=float,
        metavar="W",
        help="of the language model beside the model (default: 1.2; of pieces 0.8)",
    )
    group.add_argument("--word-score", type=float, metavar="S", help="added for every word (default: 0)")
    group.add_argument(
        "--prior-weight", type=float, metavar="P", help="of the letters' frequency, which is taken off (default: 0.5)"
    )


def make_decode(options: argparse.Namespace, model: CTCModel) -> Decode | None:
    """A decoder with the language model and the hotwords that are given; None for plain greedy decoding."""
    decode = _make_beam_decoder(options, model) if options.lm is not None else None
    if options.hotword:
        from asr.decoder import decode_greedy
        from asr.hotwords import HotwordDecoder, parse_hotword, usual_boost

        hears = model.pronunciations is not None
        boost = usual_boost(with_language_model=options.lm is not None, with_phonemes=hears)
        hotwords = dict(parse_hotword(text, model.vocabulary, boost) for text in options.hotword)
        decode = decode or decode_greedy
        return HotwordDecoder(decode, model.vocabulary, hotwords, pronunciations=model.pronunciations)
    return decode


def _make_beam_decoder(options: argparse.Namespace, model: CTCModel) -> Decode:
    import torch

    from asr.beam import BeamDecoder
    from asr.ngrams import read_sentences

    settings = {name: getattr(options, name) for name in LM_SETTINGS}
    given = {name: value for name, value in settings.items() if value is not None}
    words = None
    if options.lexicon is not None:
        lines = read_sentences([options.lexicon], _of_one_word(options.lexicon, model.vocabulary.normalize))
        words = [word for line in lines for word in line.split()]
    processes = torch.get_num_threads()
    return BeamDecoder.for_model(model, options.lm, lexicon=words, processes=processes, **given)


def _of_one_word(lexicon: Path, normalize: Normalize) -> Normalize:
    """`normalize` that raises AsrError for a line of a lexicon with more than a word, whose spelling would be words."""

    def normalize_word(line: str, dropped: Counter[str]) -> str:
        if len(line.split()) > 1:
            raise AsrError(f"{lexicon}: {line.strip()!r} is not one word; leave spellings out (awk '{{print $1}}')")
        return normalize(line, dropped)

    return normalize_word


def find_lm_conflict(options: argparse.Namespace) -> str | None:
    given = [getattr(options, name) is not None for name in ("lexicon", *LM_SETTINGS)]
    if options.lm is None and any(given):
        return "--rescore, --lexicon, --beam-size, --lm-weight, --word-score and --prior-weight need --lm"
    return None


def format_names(text: str) -> list[str]:
    names = list(dict.fromkeys("text" if name == "txt" else name for name in text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} must be one of {', '.join(FORMATS)}")
    return names


def choose_device(name: str) -> str:
    """A device that is there; `auto` takes the GPU where there is one."""
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    if name.split(":")[0] == "cuda" and not has_gpu:
        raise AsrError(f"--device {name}: no GPU is available here; use --device cpu")
    there = ["cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name not in there:
        raise AsrError(f"--device {name} must be {DEVICES}; here: {', '.join(there if has_gpu else there[:1])}")
    return name


def check_output(
    path: Path, option: str, utterances: Iterable[Utterance], *, read: Iterable[str | Path | None] = ()
) -> None:
    """Raise AsrError where a file that an option names would replace a file that utterances come from.

    read: other files that it may not replace; `packaged` and None name none.
    """
    if not path.exists():
        return
    names = {name for utterance in utterances for name in (utterance.manifest, utterance.audio_path)}
    files = (parts[0] if (parts := split_path(name)) else name for name in names)
    if real_path(str(path)) in map(real_path, files):
        raise AsrError(f"{option} {path}: would replace the data themselves; choose another file")
    if any(other is not None and os.path.exists(other) and os.path.samefile(path, other) for other in read):
        raise AsrError(f"{option} {path}: would replace a file that is read here; choose another")
