"""bigru-asr: speech recognition with a bidirectional GRU and CTC.

The stages, in the order of the flow; a file imports only from files above it:

    errors         AsrError: what the user can mend
    config         every setting, one dataclass per stage
    recipe         a YAML file and overrides → settings
    newfiles       bytes, text               → a file that is whole or not there
    locks          one process at a time
    files          a folder                  → the files in it and below
    tarfiles       a path into a tar file    → an open file
    sources        a path, a pipe, samples   → an open file
    streams        an open file              → its bytes; one with another header
    wav            a WAV file                → one whose header tells all its samples
    mp3            an MP3                    → one that tells its length
    flac           a FLAC file               → how many are joined in it
    ogg            an Ogg file               → how many are joined in it, whether it is cut short
    containers     an open file              → one that libsndfile reads whole, or a refusal
    audio          any audio file            → waveforms (batch, samples)
    pauses         sound of any length       → stretches between pauses
    live           sound that is coming in   → waveforms
    words          a text                    ↔ its words
    text           a text                    → its normal form
    vocabulary     transcripts               ↔ token ids; BLANK_ID
    analogy        words, their phonemes     → the phonemes of other words
    pronunciation  words                     → phonemes
    features       waveforms                 → features (batch, frames, num_mels)
    augment        waveforms, features       → harder ones, in training only
    recurrence     the GRU pair with a backward pass of its own, for training on a CPU
    encoder        features                  → encodings (batch, steps, size)
    devices        what computes, and in which precision
    model          waveforms                 → log_probs (batch, steps, vocabulary)
    decoder        log_probs                 → token ids
    placing        token ids, phonemes       → the steps that each token lasts
    likelihood     log_probs, token ids      → how probable these are
    ngrams         text                      → a language model
    transcript     token ids                 → words with times and confidence, segments
    metrics        references, hypotheses    → WER, CER
    threads        how many threads a computation takes, lent and given back
    quantization   weights                   ↔ eight bits each
    modelfile      model                     ↔ one .safetensors
    surgery        a model                   → a copy with another vocabulary, phonemes, dropout or reader
    averaging      model files               → a model of their mean weights
    cuts           an utterance              → a lhotse cut
    tables         CSV, TSV                  → rows
    manifest       CSV, JSON lines, cuts     → utterances
    check          utterances                → examples to learn from, and what is wrong with the rest
    corpora        the name of a corpus      → folders → manifests
        download, archive, chapters, librispeech
    shards         utterances                ↔ tar files of a thousand recordings
    kaldi          a folder of Kaldi's       → utterances
    folders        a manifest or a folder    → utterances
    survey         utterances                → a page about them
    plan           durations                 → the batches of an epoch
    counters       how far a training is, where it resumes exactly
    data           examples                  → batches by duration
    monitor        what TensorBoard shows of a training
    engine         Lightning kept quiet, and its errors put in words
    muon           an optimizer for recurrent layers
    optimizers     weights                   → an optimizer and its schedule
    mmi            log_probs of phonemes     → how probable all sequences of them are together
    splitting      a batch that is too large → its log_probs, in parts
    learning       what a training step, a validation and the optimizer are
    checkpoints    what a training leaves on the disk
    ranks          the processes that share a training
    resuming       a recipe                  → the checkpoint that its run goes on from
    guards         what may go wrong in a training without ending it
    initial        a recipe                  → a model to begin from
    plotting       what TensorBoard shows   → a picture of it
    training       a recipe                  → a model file
    longform       a recording of any length → log_probs
    recognition    parts of recordings       → their words
    transcription  recordings                → transcripts
    alignment      recording, its text       → transcript
    forks          a function                → its results, from many processes
    sentences      text                      → its probability, by a GRU
    text_batches   text                      → batches of tokens to learn from
    text_training  what trainings on text share
    lm_training    text                      → a GRU language model
    units          recordings                → sentences that nobody said, as a model would hear them
    reading        text, recordings, a model → a model that writes better
    search         log_probs, spelled words  → hypotheses
    spelling       a language model's words  → how a model writes and pronounces them
    rescoring      log_probs                 → the best of the hypotheses
    beam           log_probs, language model → token ids
    hotwords       token ids, likely words   → token ids
    tuning         a valid set               → the weights of a language model
    formats        transcripts               → text, JSON, SRT, WebVTT, TSV, CTM, TextGrid
    evaluation     model, manifest           → error rates
    batchsize      a recipe                  → how fast batches of each size are, and which fit
    overfitting    a recipe, few utterances  → whether it can learn
    finetuning     a model file, recordings  → a model file
    verification   the packaged model        → the texts it was published with, or others
    report         an evaluation, a survey  → a page for a browser
        analysis, picture, media, page, model_errors, recordings
    commands       what each of `asr`'s commands takes, and the function it calls
        options, progress, outputs, prepare, train, evaluate, transcribe, language_model, learn_text
    cli            the `asr` command
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.alignment import align
    from asr.beam import BeamDecoder
    from asr.errors import AsrError
    from asr.hotwords import HotwordDecoder
    from asr.model import CTCModel
    from asr.modelfile import load_model
    from asr.transcript import Transcript, Word
    from asr.transcription import Failure, transcribe, transcribe_files, transcribe_live

__all__ = [
    "AsrError",
    "BeamDecoder",
    "CTCModel",
    "Failure",
    "HotwordDecoder",
    "Transcript",
    "Word",
    "__version__",
    "align",
    "load_model",
    "transcribe",
    "transcribe_files",
    "transcribe_live",
]

__version__ = "0.1.0"

_HOMES = {
    "AsrError": "errors",
    "BeamDecoder": "beam",
    "CTCModel": "model",
    "Failure": "transcription",
    "HotwordDecoder": "hotwords",
    "Transcript": "transcript",
    "Word": "transcript",
    "align": "alignment",
    "load_model": "modelfile",
    "transcribe": "transcription",
    "transcribe_files": "transcription",
    "transcribe_live": "transcription",
}


if not TYPE_CHECKING:  # else a type checker would believe in any name

    def __getattr__(name: str) -> Any:
        """Import torch only when it is needed, so that `asr --help` answers at once."""
        if name not in _HOMES:
            raise AttributeError(f"module 'asr' has no attribute {name!r}")
        return getattr(import_module(f"asr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """What tab completion offers: also what was not yet needed."""
    return sorted({*globals(), *_HOMES})
