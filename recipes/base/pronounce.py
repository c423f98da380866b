"""A pronouncing dictionary of the words of language models and manifests, by the rules of flite, a package of Debian's.

    sudo apt-get install flite
    python recipes/base/pronounce.py WORDS... -o lexicon.txt

WORDS are language models in ARPA form (.arpa, .arpa.gz), manifests and folders. Each line of lexicon.txt has a word, a
tab and its phonemes, as in `QUILTER<tab>k w ih l t er`. flite has the CMU dictionary, and rules for words that it
lacks; the few words of which it says nothing are pronounced like others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

from asr.errors import AsrError, errors_told
from asr.folders import read_data
from asr.newfiles import new_text_file
from asr.ngrams import read_arpa_unigrams
from asr.pronunciation import Pronunciations
from asr.text import normalize_transcript

SAID = {"A": ["ax"]}
"""Words that flite names in place of saying them."""


def main() -> None:
    """Pronounce what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    if options.output.resolve() in (Path(path).resolve() for path in options.words):
        raise AsrError(f"{options.output}: would replace what the words are taken from; choose another file")
    words = sorted({word for path in options.words for word in read_words(path)})
    with ThreadPool() as pool:
        said = dict(zip(words, pool.map(pronounce, words)))
    known = Pronunciations({word: phonemes for word, phonemes in said.items() if phonemes})
    with new_text_file(options.output) as file:
        file.writelines(f"{word}\t{' '.join(known.pronounce(word))}\n" for word in words)
    print(f"{len(words)} words, of which flite says nothing of {list(said.values()).count([])}", file=sys.stderr)


def read_words(path: str) -> Iterator[str]:
    """The words of a language model or of data, some more than once."""
    if path.lower().endswith((".arpa", ".arpa.gz")):
        yield from (word for word, _ in read_arpa_unigrams(path))
    else:
        for utterance in read_data(path):
            yield from normalize_transcript(utterance.text).split()


def pronounce(word: str) -> list[str]:
    """The phonemes of a word, without stress; none where flite says nothing."""
    if word in SAID:
        return SAID[word]
    answer = subprocess.run(["t2p", word.lower()], check=True, capture_output=True, text=True).stdout
    return [phoneme.rstrip("012") for phoneme in answer.split() if phoneme != "pau"]


if __name__ == "__main__":
    with errors_told():
        main()
