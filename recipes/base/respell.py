"""A model file that writes pieces of words in place of letters, its upper layers at half the rate, as a start to train.

python recipes/base/respell.py asr/models/base.safetensors runs/respelled.safetensors MANIFEST...

The pieces are learned from the manifests' texts. Each begins with what the model knows of its last letter, for that is
where it ends, and those of several letters a little less probable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace

import torch

from asr import load_model
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.text import BLANK_ID, SentencePieceVocabulary

SIZE, TIME_REDUCTION_AFTER = 256, 2


def respell(model: CTCModel, sentences: Iterable[str]) -> CTCModel:
    """A copy of a model of characters with pieces learned from its normal transcripts, and a time reduction."""
    vocabulary = SentencePieceVocabulary.train(sentences, SIZE)
    encoder = replace(model.config.encoder, time_reduction_after=TIME_REDUCTION_AFTER)
    respelled = CTCModel(replace(model.config, encoder=encoder), vocabulary)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("head.")}
    respelled.load_state_dict(weights, strict=False)
    old_ids = {token: token_id for token_id, token in enumerate(model.vocabulary.tokens)}
    with torch.no_grad():
        for token_id, piece in enumerate(vocabulary.tokens):
            old_id = BLANK_ID if token_id == BLANK_ID else old_ids[piece[-1].replace("\u2581", " ")]
            respelled.head.weight[token_id] = model.head.weight[old_id]
            respelled.head.bias[token_id] = model.head.bias[old_id] - float(len(piece) > 1 and token_id != BLANK_ID)
    return respelled.eval()


def main() -> None:
    """Respell what the command line names."""
    source, target, *manifests = sys.argv[1:]
    model = load_model(source)
    texts = (model.vocabulary.normalize(one.text) for manifest in manifests for one in read_manifest(manifest))
    save_model(respell(model, texts), target)


if __name__ == "__main__":
    main()
