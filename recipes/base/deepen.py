"""A model file with one more recurrent layer on top, or several, which change nothing until they are trained.

python recipes/base/deepen.py asr/models/base.safetensors runs/deeper.safetensors [LAYERS]

Of a model that reads phonemes, the new layer is one that reads.

The new layer's candidate state reads nothing at first: h̃ = tanh(0), so its output is zero and the residual sum is as
it was, yet the gradient of its input weights is not zero (compare Chen et al., Net2Net, ICLR 2016).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from asr import load_model
from asr.errors import errors_told
from asr.model import CTCModel
from asr.modelfile import save_model


def deepen(model: CTCModel) -> CTCModel:
    """A copy with one more layer, which writes the same log-probabilities. Its cells must be GRUs."""
    encoder = model.config.encoder
    counted = "num_layers" if model.reader is None else "reader_layers"
    config = replace(model.config, encoder=replace(encoder, **{counted: getattr(encoder, counted) + 1}))
    deeper = CTCModel(config, model.vocabulary, model.pronunciations, phonemes_by_mmi=model.phonemes_by_mmi)
    deeper.load_state_dict(model.state_dict(), strict=False)  # all but the new layer's
    layer = (deeper.encoder if deeper.reader is None else deeper.reader).layers[-1]
    with torch.no_grad():
        for cell in (layer.forward_cell, layer.backward_cell):
            for weights in (cell.weight_ih_l0, cell.bias_ih_l0, cell.bias_hh_l0):
                weights[2 * cell.hidden_size :] = 0  # the candidate's rows are the last third
    return deeper.eval()


def main() -> None:
    """Deepen what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file, or `packaged`")
    parser.add_argument("deeper", type=Path, help="gets the deeper model")
    parser.add_argument("layers", type=int, nargs="?", default=1, help="how many more (default: 1)")
    options = parser.parse_args()
    if options.layers < 1:
        parser.error("layers must be at least 1")
    torch.manual_seed(1)
    model = deepen(load_model(options.model))
    for seed in range(2, options.layers + 1):
        torch.manual_seed(seed)
        model = deepen(model)
    save_model(model, options.deeper)


if __name__ == "__main__":
    with errors_told():
        main()
