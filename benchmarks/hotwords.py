"""What --hotword brings: how many rare names are found, and what it costs the other utterances.

    python benchmarks/hotwords.py MANIFEST KNOWN_TEXT [--model FILE] [--boost NATS] [--lm FILE]

The hotwords are all words of the manifest's references, of six letters or more, that the text never holds. All of them
are given to all utterances. Aims: more of them found than without; the WER of the utterances that hold none at most 0.2
points higher.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import find_model, make_parser, report, start

from asr.beam import BeamDecoder
from asr.decoder import Decode, decode_greedy
from asr.folders import read_data
from asr.hotwords import HotwordDecoder, usual_boost
from asr.metrics import pool, word_errors
from asr.ngrams import read_sentences
from asr.tuning import Example, compute_log_probs
from asr.vocabulary import Vocabulary
from asr.words import join_words

SHORTEST_NAME = 6


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("known_text", type=Path, help="text whose words are not rare; plain, .gz or .xz")
    parser.add_argument("--boost", type=float, help="nats (default: that of asr transcribe)")
    parser.add_argument("--lm", help="beam search of 50 hypotheses with this language model, or `packaged`")
    options = start(parser)
    with tempfile.TemporaryDirectory() as folder:
        model = find_model(options.model, Path(folder))
    utterances = read_data(options.manifest)[: 20 if options.quick else None]
    examples = compute_log_probs(model, utterances, with_phonemes=True)
    known_sentences = read_sentences([options.known_text], model.vocabulary.normalize)
    known = {word for sentence in known_sentences for word in sentence.split()}
    names = {word for reference, _ in examples for word in reference.split() if len(word) >= SHORTEST_NAME} - known
    plain: Decode = HotwordDecoder(decode_greedy, model.vocabulary, {}, pronunciations=model.pronunciations)
    if options.lm:
        plain = BeamDecoder.for_model(model, options.lm, beam_size=50)
    hears = model.pronunciations is not None
    usual = usual_boost(with_language_model=bool(options.lm), with_phonemes=hears)
    boost = usual if options.boost is None else options.boost
    decoders: dict[str, Decode] = {
        "without": plain,
        "with": HotwordDecoder(
            plain, model.vocabulary, dict.fromkeys(names, boost), pronunciations=model.pronunciations
        ),
    }
    references = [reference for reference, _ in examples]
    others = [index for index, reference in enumerate(references) if not names & set(reference.split())]
    found, rates = {}, {}
    for name, decode in decoders.items():
        texts = decoded(examples, decode, model.vocabulary)
        counts = [word_errors(reference, text) for reference, text in zip(references, texts, strict=True)]
        found[name], said = recall(references, texts, names)
        rates[name] = pool([counts[index] for index in others]).rate
        print(f"{name} hotwords: {found[name]} of {said} names; WER {pool(counts).rate:.2%}, others {rates[name]:.2%}")
    print(f"{len(names)} hotwords, {len(examples)} utterances, {len(others)} of them without a hotword")
    report("names found with hotwords / without", found["with"] / max(1, found["without"]), at_least=1.01)
    report("WER of the others, points more", 100 * (rates["with"] - rates["without"]), at_most=0.2)


def decoded(examples: Sequence[Example], decode: Decode, vocabulary: Vocabulary) -> list[str]:
    """The text of each utterance."""
    texts = []
    for _, rows in examples:
        found = (decode(torch.from_numpy(row)[None], torch.tensor([len(row)])) for row in rows)
        texts.append(join_words(vocabulary.decode(tokens.token_ids) for (tokens,) in found))
    return texts


def recall(references: Sequence[str], texts: Sequence[str], names: set[str]) -> tuple[int, int]:
    """How many names that were said are in the texts, and how many were said."""
    found = said = 0
    for reference, text in zip(references, texts, strict=True):
        spoken = Counter(word for word in reference.split() if word in names)
        written = Counter(word for word in text.split() if word in names)
        found += (spoken & written).total()
        said += spoken.total()
    return found, said


if __name__ == "__main__":
    main()
