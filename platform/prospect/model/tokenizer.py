"""Tokenizers: of a pretrained base, or fitted to the training text for the tiny model."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prospect.dialogue.state import StepState
from prospect.dialogue.vocabulary import GRAMMAR_TOKENS

_BOS, _STOP = "<s>", "<stop>"

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def fit_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts`, deterministic; any other text still encodes, in more tokens.

    Args:
        texts: what the model will read and write; more often said means shorter.
        vocab_size: upper bound, the grammar's tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_BOS, _STOP, *GRAMMAR_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    grammar = [f"S1->start; S2->complete\nS1 ({state.label}) x" for state in StepState]
    tokenizer.train_from_iterator([*texts, *grammar * 10], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_STOP,
        pad_token="[PAD]",
        additional_special_tokens=list(GRAMMAR_TOKENS),
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast
