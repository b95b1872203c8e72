"""Which model is served, and which encoder it takes."""

from pathlib import Path

from prospect.earlier import read_saved as read_earlier
from prospect.errors import FingerprintError
from prospect.model.saved import SavedModel, read_saved
from prospect.serving.config import ServeConfig
from prospect.settings import with_setting
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings


def encoder_settings(saved: SavedModel) -> VisionSettings | None:
    """Settings of the encoder that a model was trained on; None where it does not say which."""
    vision = saved.manifest.get("vision")
    return None if vision is None else VisionSettings(**read_earlier("vision", vision))


def find_model(config: ServeConfig) -> Path:
    """Folder of the served model.

    Raises:
        ProspectError: there is no such model, or it was trained with another encoder than the one given.
    """
    from prospect.tracking.tracking import Tracking  # with MLflow

    folder = Tracking(config.tracking, config.storage.root).resolve(config.serving.model)
    if config.encoder_is_given:
        _require_encoder(folder, config.vision)
    return folder


def pin_model(config: ServeConfig) -> ServeConfig:
    """Name the served model's version in place of its alias: an engine that starts later serves the same one."""
    from prospect.tracking.tracking import Tracking  # with MLflow

    if not config.serving.model.startswith("models:/"):
        return config
    name, version = Tracking(config.tracking, config.storage.root).version_of(config.serving.model)
    return with_setting(config, "serving.model", f"models:/{name}/{version}")


def _require_encoder(folder: Path, vision: VisionSettings) -> None:
    given, trained = encoder_fingerprint(vision), read_saved(folder).fingerprint
    if trained not in {given, *vision.equivalent_to}:
        raise FingerprintError(
            f"`vision` ({vision.model}, {vision.weights}) is encoder {given}, and model {folder} was trained on "
            f"embeddings of {trained}: leave `vision` out, the model names its encoder; or declare them equivalent "
            f"with vision.equivalent_to=[{trained}]",
            field="vision",
        )
