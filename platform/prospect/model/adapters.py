"""From a base language model to a trainable DST model: extra tokens, heads, LoRA, NF4."""

import importlib
import logging
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from prospect.dialogue.vocabulary import GRAMMAR_TOKENS, Vocabulary, extend_tokenizer
from prospect.errors import CheckpointError, ConfigError
from prospect.model.backbones import Backbone, backbone_of, tiny_config
from prospect.model.bases import base_folder, load_tokenizer, load_weights, read_config
from prospect.model.interface import DSTModel
from prospect.model.settings import LoraSettings, ModelSettings
from prospect.model.tokenizer import fit_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEW_MODULES = ["mm_projector", "speaking_decision_head", "dst_update_head", "dst_state_head"]


def build_tokenizer(settings: ModelSettings, texts: Iterable[str], cache: Path) -> Any:
    """The base's tokenizer with the grammar's tokens; for `tiny` one fitted to `texts`."""
    if settings.tiny_type:
        return fit_tokenizer(texts, settings.tiny.vocab_size)
    tokenizer = load_tokenizer(settings.base, cache)
    extend_tokenizer(tokenizer)
    return tokenizer


def build_model(
    settings: ModelSettings,
    tokenizer: Any,
    *,
    vision_dim: int,
    tokens_per_frame: int,
    fingerprint: str,
    cache: Path,
    seed: int = 0,
) -> DSTModel:
    """Build an untrained DST model on top of its base, with new parts initialised from `seed`.

    Args:
        settings: base and architecture.
        tokenizer: from `build_tokenizer`.
        vision_dim: D of the embedding store.
        tokens_per_frame: I of the embedding store.
        fingerprint: of the embedding store; it stays with the model.
        cache: folder for converted packaged weights.
        seed: of every random initialisation.

    Raises:
        CheckpointError: the base cannot be loaded, or no backbone is made for its class.
    """
    torch.manual_seed(seed)
    folder = "" if settings.tiny_type else base_folder(settings.base, cache)
    base = read_config(settings.base, folder) if folder else _tiny_config(settings, tokenizer)
    backbone = backbone_of(base, settings.base)
    config = backbone.config.from_base(
        base,
        settings,
        vision_dim=vision_dim,
        tokens_per_frame=tokens_per_frame,
        fingerprint=fingerprint,
        grammar_ids=dict(zip(GRAMMAR_TOKENS, tokenizer.convert_tokens_to_ids(list(GRAMMAR_TOKENS)), strict=True)),
        trained_steps={},
    )
    dtype = getattr(torch, settings.dtype)
    if folder:
        model = _on_base(settings.base, folder, backbone, config, dtype)
        vocabulary = max(len(tokenizer), base.get_text_config().vocab_size)
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    else:
        model = cast_parameters(backbone.model(config), dtype)
    model.drop_vision()
    model.config.stop_ids = sorted(Vocabulary(tokenizer, _stop_ids(model)).stop_ids)
    return model


def _on_base(name: str, folder: str, backbone: Backbone, config: Any, dtype: torch.dtype) -> DSTModel:
    model, missing = load_weights(name, folder, backbone.model, config, dtype)
    foreign = sorted(weight for weight in missing if weight.split(".")[0] not in NEW_MODULES)
    if foreign:
        raise CheckpointError(
            f"`model.base` ({name}) has weights that do not fit its config.json: {foreign[0]} is missing.",
            field="model.base",
        )
    if config.projector == "linear":
        _begin_at_connector(name, model)
    if config.whiten_frames:
        model.mm_projector.fix_whitening(torch.zeros(config.vision_dim), torch.eye(config.vision_dim))
    return model


def _begin_at_connector(name: str, model: DSTModel) -> None:
    """Let the projector begin as the base's own projection of frames, where it takes such embeddings."""
    weight, connector = model.mm_projector.projection.weight, model.connector
    if connector is not None and connector.weight.shape == weight.shape:
        weight.data.copy_(connector.weight.data)
        return
    takes = "has no connector" if connector is None else f"has a connector of embeddings of {connector.in_features}"
    log.warning("the projector begins at random: %s %s, and these have %d", name, takes, weight.shape[1])


def cast_parameters(model: DSTModel, dtype: torch.dtype) -> DSTModel:
    """Cast parameters, not buffers: rounding the rotary frequencies would turn far positions by radians."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _tiny_config(settings: ModelSettings, tokenizer: Any) -> PreTrainedConfig:
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return tiny_config(settings, vocab_size=len(tokenizer), **tokens)


def _stop_ids(model: PreTrainedModel) -> list[int]:
    """All ids that end a generation; Llama-3.2-Instruct has three."""
    found: list[int] = []
    for ids in (model.config.get_text_config().eos_token_id, getattr(model.generation_config, "eos_token_id", None)):
        found += ids if isinstance(ids, list) else [ids] if ids is not None else []
    return found


def adapt(model: DSTModel, settings: ModelSettings) -> "DSTModel | PeftModel":
    """Freeze or quantise the base and add LoRA, as `settings.adaptation` says.

    Raises:
        ConfigError: `qlora` without bitsandbytes.
    """
    for name in NEW_MODULES:
        model.get_submodule(name).requires_grad_(name in learning_modules(model))
    for module in model.vision:
        module.requires_grad_(False)
    if settings.adaptation == "full":
        return model
    if settings.adaptation == "qlora":
        quantize(model)
    return add_lora(model, settings.lora)


def learning_modules(model: DSTModel) -> list[str]:
    """The new modules that are trained; the token back-end decides by rows of `lm_head`, so its heads are not."""
    unused = [] if model.config.decision_backend == "heads" else ["speaking_decision_head", "dst_update_head"]
    if model.config.projector == "none":
        unused.append("mm_projector")
    return [name for name in NEW_MODULES if name not in unused]


def add_lora(model: DSTModel, settings: LoraSettings) -> "PeftModel":
    """Add LoRA to the text trunk's seven projections, which a vision tower has some of too.

    Projector, heads and the grammar's token rows are trained in full.
    """
    from peft import LoraConfig, get_peft_model  # takes a second or two, which other models need not wait for

    rows = sorted((model.config.grammar_ids or {}).values())
    # A tied `lm_head` shares the embedding's rows; an untied one needs its own for the token back-end.
    tokens = {"embed_tokens": rows} | ({} if model.config.tie_word_embeddings else {"lm_head": rows})
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"(.*\.)?{re.escape(model.text_path)}\.layers\..*\.({'|'.join(PROJECTIONS)})",
        modules_to_save=learning_modules(model),
        trainable_token_indices=tokens,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # asked by peft
        return get_peft_model(model, config)


def quantize(model: DSTModel) -> None:
    """Convert the seven projections of every layer to NF4 with quantised scales, 4.13 bits a weight.

    Weights on the CPU are quantised here, others when they move to the device.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    nn4 = bitsandbytes()
    for layer in model.text.layers:
        for path in [name for name, _ in layer.named_modules() if name.split(".")[-1] in PROJECTIONS]:
            plain = layer.get_submodule(path)
            linear = nn4.Linear4bit(
                plain.in_features, plain.out_features, bias=False, compute_dtype=plain.weight.dtype, quant_type="nf4"
            )
            linear.weight = nn4.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
            # On some CPUs the first evaluation would convert the weights for good to a layout without gradients.
            linear.support_avx512bf16_for_cpu = False
            layer.set_submodule(path, linear.to(model.device))
    cast(Any, model).is_loaded_in_4bit = True  # peft reads this


def round_to_4_bits(model: DSTModel) -> None:
    """Round the projections to NF4 values in their own dtype, which QLoRA's adapters were trained on.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    bitsandbytes()
    functional = importlib.import_module("bitsandbytes.functional")
    for layer in model.text.layers:
        for name, module in layer.named_modules():
            if name.split(".")[-1] in PROJECTIONS:
                rounded = functional.quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
                module.weight.data.copy_(functional.dequantize_4bit(*rounded))


def bitsandbytes() -> Any:
    """The module `bitsandbytes.nn`.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes.nn")
    except ImportError as error:
        raise ConfigError(
            "`model.adaptation` (qlora) needs the package bitsandbytes, which is missing: install it, or choose lora.",
            field="model.adaptation",
        ) from error


def keep_trained_in_float32(model: torch.nn.Module) -> None:
    """Cast trainable weights to float32, because bfloat16 loses small updates; forward passes then need autocast."""
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.float()


def is_adapted(model: torch.nn.Module) -> "TypeGuard[PeftModel]":
    """Whether the model has LoRA adapters; checked by attribute, which needs no import of peft."""
    return hasattr(model, "get_base_model")


def unwrap(model: "DSTModel | PeftModel") -> DSTModel:
    """The DST model itself, with or without LoRA around it."""
    return cast(DSTModel, model.get_base_model()) if is_adapted(model) else cast(Any, model)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
