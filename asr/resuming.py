"""Where a training goes on, and whether its recipe may."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from asr.checkpoints import LAST_CHECKPOINT, MODEL_NAME, find_checkpoint
from asr.config import TrainConfig, VocabularyConfig
from asr.errors import AsrError
from asr.newfiles import check_new_file
from asr.ranks import is_started_again
from asr.recipe import load_config

__all__ = ["find_resume_point"]

log = logging.getLogger(__name__)


def find_resume_point(config: TrainConfig, resume: bool) -> Path | None:
    """The checkpoint to go on from; None where a run begins.

    Raises AsrError for an output folder that cannot be written or whose run would be overwritten, for a name that the
    run's config.yaml could not hold, where there is nothing to resume, and for a recipe that differs from the run's in
    what a resume cannot change.
    """
    output_dir = Path(config.output_dir)
    for name in (config.output_dir, config.initial_model, *config.data.train, *config.data.valid):
        _check_is_text(name)
    if "::" in config.output_dir:
        raise AsrError(f"output_dir={config.output_dir} must not hold ::, which Lightning takes for a chain of systems")
    if str(output_dir).startswith("data:"):
        raise AsrError(f"output_dir={config.output_dir} must not begin with data:, an address to Lightning")
    model_file = output_dir / MODEL_NAME
    check_new_file(model_file)
    checkpoint = find_checkpoint(output_dir)
    if checkpoint is None and (not resume or is_started_again()):
        if model_file.exists():
            raise AsrError(f"{model_file}: is there already and would be replaced; set another output_dir=")
        return None
    if not resume:
        raise AsrError(f"{config.output_dir} holds a run; continue it with --resume, or set another output_dir=")
    if checkpoint is None:
        missing = output_dir / LAST_CHECKPOINT
        raise AsrError(f"{missing} not found: there is nothing to resume; start without --resume")
    _check_compatible(load_config(checkpoint.parent / "config.yaml"), config)
    return checkpoint


def _check_is_text(name: str) -> None:
    """Raise AsrError for the name of a file that is bytes of another encoding."""
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise AsrError(f"{name!a}: must be written in UTF-8, as config.yaml and curves are; rename it") from error


def _check_compatible(before: TrainConfig, now: TrainConfig) -> None:
    """Raise AsrError where `now` differs from `before`, the recipe of the run, in what a resume cannot change."""
    trained = f"{now.output_dir} was trained with"
    has_same_vocabulary = _without_path(before.vocabulary) == _without_path(now.vocabulary)
    for section, is_same in (("model", before.model == now.model), ("vocabulary", has_same_vocabulary)):
        if not is_same:
            raise AsrError(f"{trained} another {section} section; see its config.yaml")
    if bool(before.initial_model) != bool(now.initial_model):
        raise AsrError(f"{trained} initial_model={before.initial_model}; resume it with that")
    if before.initial_model != now.initial_model:
        log.warning("began with %s; what is in %s is not taken", before.initial_model, now.initial_model)
    for name in ("name", "frozen_layers"):
        if (value := getattr(before.optimizer, name)) != getattr(now.optimizer, name):
            raise AsrError(f"{trained} optimizer.{name}={value}; resume it with that")
    if (before.trainer.average_decay > 0) != (now.trainer.average_decay > 0):
        kept = f"trainer.average_decay={before.trainer.average_decay}"
        raise AsrError(f"{trained} {kept}; resume it with an average or without one as then")
    was_mmi, is_mmi = (each.model.encoder.phoneme_layer and each.optimizer.mmi_share > 0 for each in (before, now))
    if was_mmi != is_mmi:
        kept = f"optimizer.mmi_share={before.optimizer.mmi_share}"
        raise AsrError(f"{trained} {kept}; resume it with a share above 0 or with 0 as then")


def _without_path(section: VocabularyConfig) -> VocabularyConfig:
    """Without where a dictionary lies, for it may have moved; the checkpoint tells whether it is the same."""
    return replace(section, pronunciations="a dictionary") if section.pronunciations else section
