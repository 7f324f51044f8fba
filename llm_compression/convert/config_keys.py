"""Keys of other projects' configuration files that change no row: data, and the check that refuses every other one.

A key is read, or it is here, or the source is refused with its name: what an unknown key changes is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from llm_compression.errors import CheckpointError

# What transformers writes for any model: names, versions, training, generation, and how outputs are returned.
HUGGINGFACE: Final = frozenset(
    {
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"),
        *("return_dict", "use_return_dict", "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16"),
        *("tf_legacy_loss", "finetuning_task", "task_specific_params", "id2label", "label2id", "num_labels"),
        *("problem_type", "tokenizer_class", "prefix", "tie_word_embeddings", "tie_encoder_decoder", "use_cache"),
        *("is_encoder_decoder", "cross_attention_hidden_size", "gradient_checkpointing"),
        *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "_experts_implementation"),
        *("initializer_range", "initializer_factor", "xla_device", "output_past"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id"),
        *("attention_dropout", "dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
        *("bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "diversity_penalty", "do_sample"),
        *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
        *("forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "min_length"),
        *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores"),
        *("remove_invalid_values", "renormalize_logits", "repetition_penalty", "return_dict_in_generate"),
        *("temperature", "top_k", "top_p", "typical_p"),
    }
)
CLIP: Final = HUGGINGFACE | {"logit_scale_init_value", "projection_dim"}
# Settings of a pooler that no encoder here uses, and what multilingual BERT says of its training.
BERT: Final = HUGGINGFACE | {
    *("directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
    *("pooler_size_per_head", "pooler_type"),
}
# Keys that lead to another architecture, and the values that do not; null stands for an absent key everywhere.
HUGGINGFACE_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "chunk_size_feed_forward": (0,),
    "per_layer_config": ({},),
    "position_embedding_type": ("absolute",),
}

# open_clip's model_cfg: how training starts and what a forward pass returns.
OPEN_CLIP_MODEL: Final = frozenset(
    {"text_cfg", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "output_dict"}
    | {"cast_dtype"}
)

# sentence-transformers: names, versions, what scores are made of, prompts that only a call by name puts in front.
SENTENCE_TRANSFORMERS: Final = frozenset({"__version__", "similarity_fn_name", "prompts", "model_type"})
# Of sentence_bert_config.json: for which inputs the forward pass is which, and padding.
SENTENCE_BERT: Final = frozenset({"modality_config", "module_output_name", "unpad_inputs"})
SENTENCE_BERT_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "transformer_task": ("feature-extraction",),
    **dict.fromkeys(("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs"), ({},)),
    **dict.fromkeys(("config_args", "config_kwargs", "processing_kwargs"), ({},)),
    **dict.fromkeys(("query_length", "document_length", "query_expansion"), ()),
}
POOLING: Final = frozenset({"word_embedding_dimension", "embedding_dimension", "include_prompt"})
NORMALIZE_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding",),
}

# tokenizer_config.json: names, decoding, chat, what fast tokenizers do not know, and padding, which is masked here.
TOKENIZER: Final = frozenset(
    {
        *("tokenizer_class", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"),
        *("processor_class", "model_max_length", "backend", "is_local", "local_files_only", "use_fast", "from_slow"),
        *("legacy", "clean_up_tokenization_spaces", "errors", "chat_template", "trim_offsets", "add_prefix_space"),
        *("do_basic_tokenize", "never_split", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of"),
        *("pad_token_type_id", "return_token_type_ids", "max_len", "wordpieces_prefix", "clean_text"),
        *("full_tokenizer_file", "device_map", "_commit_hash", "transformers_version", "torch_dtype", "dtype"),
    }
)
TOKENIZER_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "padding_side": ("right",),
    "split_special_tokens": (False,),
    "init_inputs": ([],),
    "add_bos_token": (False,),
    "add_eos_token": (False,),
}


def refuse_unknown(
    where: Path | str,
    values: Mapping[str, Any],
    read: Collection[str],
    harmless: Collection[str],
    supported: Mapping[str, tuple[Any, ...]] | None = None,
) -> None:
    """Refuse what would change a row in a way that is not known, by its name.

    Args:
        where: The file, and the part of it.
        values: What stands there.
        read: Keys that are read.
        harmless: Keys that change no row.
        supported: Values that change no row, by key.

    Raises:
        CheckpointError: A key has a value that is not supported, or is unknown and not null.
    """
    supported = supported or {}
    for key, allowed in supported.items():
        value = values.get(key)
        if key not in read and value is not None and value not in allowed:
            expected = " or ".join(repr(one) for one in allowed) or "none"
            raise CheckpointError(f"{where}: {key}: {value!r}, expected {expected}")
    known = {*read, *harmless, *supported}
    if unknown := {key: value for key, value in values.items() if key not in known and value is not None}:
        shown = ", ".join(f"{key}: {value!r}" for key, value in sorted(unknown.items()))
        raise CheckpointError(
            f"{where}: unknown settings {shown[:400]}; what they change is not known: take out those that change no "
            "embedding"
        )
