"""The sabotages that must not go unseen, as data: what is changed, what is run, and what must be said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INFERENCE: Final = "llm_compression/inference"
MULTIMODAL: Final = "llm_compression/multimodal"
PAIRED: Final = "llm_compression/harness/paired"
HARNESS: Final = "llm_compression/harness/spec"
SPEC: Final = ".kiro/specs/multimodal-encoder-system"


Command = tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """A text that stands once in a file, and what takes its place; without a text the whole file goes."""

    file: str
    old: str = ""
    new: str = ""


@dataclass(frozen=True)
class Sabotage:
    """One way to be wrong or slow.

    Attributes:
        name: What is done.
        edits: How.
        check: Commands, as arguments of the interpreter; all succeed without the sabotage, and one must fail with it.
        says: A regular expression that the output must then match: the test, gate or criterion that saw it.
    """

    name: str
    edits: tuple[Edit, ...]
    check: tuple[Command, ...]
    says: str


def _tests(*selection: str) -> tuple[Command, ...]:
    return (("-m", "pytest", "-q", "-p", "no:cacheprovider", *selection),)


def _spec_after(*selection: str) -> tuple[Command, ...]:
    """The spec joined with the evidence of some tests, without asking for the others."""
    pytest, evidence = ("-m", "pytest", "-q", "-p", "no:cacheprovider"), "reports/evidence"
    return (
        *(((*pytest, *selection, "--evidence", f"{evidence}/some.json"),) if selection else ()),
        (*pytest, "tests", "benchmarks/gates", "--collect-only", "-qq", "--evidence", f"{evidence}/collected.json"),
        ("-m", "llm_compression.harness.spec.matrix"),
    )


_CORE: Final = _tests("tests/unit/test_inference_core.py", "tests/property/test_properties_core.py")
_TO_LIMIT: Final = _tests("benchmarks/gates/test_ratio.py", "-k", "latency-b16-to-limit")
_OVER_LIMIT: Final = r"latency-b16-to-limit[a-z0-9-]*: latency_to_limit [\d.]+, expected <="
_IMAGES: Final = _tests("tests/property/test_properties_images.py")

_DECODING: Final = _tests("tests/unit/test_decoding.py")

SABOTAGES: Final = (
    Sabotage(
        "exact GELU for quick_gelu",
        (
            Edit(
                f"{INFERENCE}/inference_core.py",
                "self.fc1 = Linear(hidden_size, intermediate_size, activation=activation)",
                'self.fc1 = Linear(hidden_size, intermediate_size, activation="gelu")',
            ),
        ),
        _CORE,
        "test_the_activation_is_between_the_products",
    ),
    Sabotage(
        "post-norm for pre-norm",
        (Edit(f"{INFERENCE}/inference_core.py", 'num_heads, norm == "pre"', "num_heads, False"),),
        _CORE,
        "test_properties_core.py",
    ),
    Sabotage(
        "a swapped q and k",
        (Edit(f"{INFERENCE}/layer_weights.py", 'of("q", "k", "v")', 'of("k", "q", "v")'),),
        _CORE,
        "test_properties_core.py",
    ),
    Sabotage(
        "fingerprints that weigh all words alike",
        (
            Edit(
                f"{INFERENCE}/fingerprints.py", "return z ^ z >> np.uint64(31) | np.uint64(1)", "return np.ones_like(z)"
            ),
        ),
        _tests("tests/property/test_properties_fingerprints.py"),
        "test_no_rearrangement_goes_unseen",
    ),
    Sabotage(
        "fingerprints without the upper halves",
        (Edit(f"{INFERENCE}/fingerprints.py", "np.dot(halves, _MULTIPLIERS)", "0"),),
        _tests("tests/unit/test_fingerprints.py"),
        "test_two_words_that_change_places",
    ),
    # of the two forms of attention one is not chosen on any given machine
    Sabotage(
        "no scale in attention by two products",
        (Edit(f"{INFERENCE}/attention.py", "torch.bmm(q * head_dim**-0.5, ", "torch.bmm(q, "),),
        _tests("tests/parity/test_paths.py", "-k", "bmm"),
        "test_every_path_gives_the_rows_of_the_reference",
    ),
    Sabotage(
        "no scale in the fused attention",
        (
            Edit(
                f"{INFERENCE}/attention.py",
                "attn_mask=mask, is_causal=causal)",
                "attn_mask=mask, is_causal=causal, scale=1.0)",
            ),
        ),
        _tests("tests/parity/test_paths.py", "-k", "fused"),
        "test_every_path_gives_the_rows_of_the_reference",
    ),
    Sabotage(
        "no way for zero images in attention by two products",
        (
            Edit(
                f"{INFERENCE}/attention.py",
                "x.reshape(n * heads, x.shape[2], head_dim)",
                "x.reshape(n * heads, -1, head_dim)",
            ),
        ),
        _tests("tests/unit/test_attention.py"),
        "test_no_rows",
    ),
    Sabotage(
        "the odd images of a batch in shares left out",
        (Edit(f"{INFERENCE}/shares.py", "    if shared < len(x):\n", "    if False:\n"),),
        _tests("tests/parity/test_paths.py", "-k", "shares"),
        "test_every_path_gives_the_rows_of_the_reference",
    ),
    Sabotage(
        "a transposed projection not transposed",
        (Edit("llm_compression/convert/key_maps.py", 'Entry("visual.proj", "transpose")', 'Entry("visual.proj")'),),
        _tests("tests/parity/test_checkpoint_layouts.py", "-k", "tiny or small or openai"),
        "test_checkpoint_layouts.py",
    ),
    Sabotage(
        "a missing tensor left random",
        (
            Edit(
                f"{INFERENCE}/weight_loader.py",
                "for name, shape in expected.items() if name not in self.tensors]",
                "for name, shape in expected.items() if False]",
            ),
            Edit(
                f"{INFERENCE}/placement.py",
                "waiting = _Waiting(slots)",
                "waiting = _Waiting([slot for slot in slots if all(name in loader.tensors for name in slot.names)])",
            ),
            Edit(f"{INFERENCE}/encoder.py", 'torch.device("meta")', 'torch.device("cpu")'),
        ),
        _tests("tests/unit/test_vision_encoder_refusals.py", "tests/property/test_properties_weights.py"),
        "test_every_mismatch|test_removed|missing",
    ),
    Sabotage(
        "the crop off by one",
        (
            Edit(
                f"{MULTIMODAL}/image_processor.py",
                "left, top = self._offset(new_width), self._offset(new_height)",
                "left, top = self._offset(new_width), max(0, self._offset(new_height) - 1)",
            ),
        ),
        _IMAGES,
        "test_properties_images.py",
    ),
    Sabotage(
        "normalisation dropped",
        (Edit(f"{MULTIMODAL}/image_processor.py", "(scaled - np.float32(m)) / np.float32(s)", "scaled + 0 * m * s"),),
        _IMAGES,
        "test_properties_images.py",
    ),
    Sabotage(
        "a cached answer for a repeated input",
        (
            Edit(
                f"{MULTIMODAL}/vision_encoder.py",
                "                embeddings = self._embed(part)\n",
                "                kept = self.__dict__.setdefault('kept', {})\n"
                "                key = part.numpy().tobytes()\n"
                "                if key not in kept:\n"
                "                    kept[key] = self._embed(part)\n"
                "                embeddings = kept[key]\n",
            ),
        ),
        _tests("tests/unit/test_vision_encoder.py"),
        "test_a_repeated_input_is_computed_again",
    ),
    Sabotage(
        "a sleep of 10 % of the latency in encode",
        (
            Edit(
                f"{MULTIMODAL}/vision_encoder.py",
                "                embeddings = self._embed(part)\n",
                "                import time\n\n"
                "                started = time.perf_counter()\n"
                "                embeddings = self._embed(part)\n"
                "                time.sleep(0.1 * (time.perf_counter() - started))\n",
            ),
        ),
        # the sabotage is committed on top of what is sound; without it the two are the same
        (("-m", "benchmarks.regression.run", "--base", "HEAD~1", "--models", "b32", "--budget", "240", "--confirm"),),
        r"latency.*REGRESSED|REGRESSED.*latency",
    ),
    # on a machine that is too slow for the limit itself, too
    Sabotage(
        "a sleep of 15 % of the latency",
        (
            Edit(
                f"{MULTIMODAL}/vision_encoder.py",
                "                embeddings = self._embed(part)\n",
                "                import time\n\n"
                "                started = time.perf_counter()\n"
                "                embeddings = self._embed(part)\n"
                "                time.sleep(0.15 * (time.perf_counter() - started))\n",
            ),
        ),
        _TO_LIMIT,
        _OVER_LIMIT,
    ),
    Sabotage(
        "a linear layer that never packs",
        (
            Edit(
                f"{INFERENCE}/linear.py",
                'possible = ("packed", "plain") if packs(device, dtype) else ("plain",)',
                'possible = ("plain",)',
            ),
        ),
        # of B/32: with the tokens of B/16 float32 on AVX2 takes a tenth longer, which the gate leaves
        _tests("benchmarks/gates/test_ratio.py", "-k", "latency-b32-to-limit"),
        r"latency-b32-to-limit[a-z0-9-]*: latency_to_limit [\d.]+, expected <=",
    ),
    Sabotage(
        "60 MB kept per call",
        (
            Edit(
                f"{MULTIMODAL}/vision_encoder.py",
                "                embeddings = self._embed(part)\n",
                "                embeddings = self._embed(part)\n"
                "                self.__dict__.setdefault('kept', []).append(torch.ones(15_000_000))\n",
            ),
        ),
        _tests("benchmarks/gates/test_growth.py", "-k", "growth-b32"),
        r"growth-b32: memory_growth [\d.]+, expected < 5",
    ),
    Sabotage(
        "a scale that the sum does not divide by",
        (Edit(f"{INFERENCE}/layer_weights.py", "alpha=1 / QUICK_GELU_SCALE", "alpha=1"),),
        _CORE,
        "test_properties_core.py",
    ),
    Sabotage(
        "a changed file opened again without a look",
        (Edit(f"{INFERENCE}/encoder.py", "if found != sha256:", "if False:"),),
        _tests("tests/unit/test_encoder.py", "-k", "is_not_taken"),
        "test_another_file_is_not_taken",
    ),
    Sabotage(
        "a copy in another dtype",
        (
            Edit(
                f"{INFERENCE}/encoder.py",
                '"dtype": str(self.dtype).removeprefix("torch.")',
                '"dtype": "bfloat16" if self.dtype == torch.float32 else "float32"',
            ),
        ),
        _tests("tests/unit/test_encoder.py", "-k", "copy"),
        "test_a_copy_gives_the_same_bits",
    ),
    Sabotage(
        "a packed weight cast in silence",
        (
            Edit(
                f"{INFERENCE}/packed_module.py",
                'self._refuse_if_packed("moved or cast"',
                '"".format("moved or cast"',
            ),
        ),
        _tests("tests/unit/test_packed_module.py"),
        "test_a_packed_core_refuses_as_a_whole",
    ),
    Sabotage(
        "a gate deleted",
        (Edit("benchmarks/gates/test_memory.py"),),
        _tests("tests/unit/test_gates.py::test_every_gate_of_the_spec_has_exactly_one_test"),
        "memory-b16",
    ),
    Sabotage(
        "a gate skipped",
        (
            Edit(
                "benchmarks/gates/test_text.py",
                '@pytest.mark.metric("file_size")\n',
                '@pytest.mark.skip(reason="later")\n@pytest.mark.metric("file_size")\n',
            ),
        ),
        _spec_after("benchmarks/gates/test_text.py", "-k", "size-shapes"),
        "size-shapes.*skipped",
    ),
    Sabotage(
        "a limit loosened without the snapshot",
        (Edit(f"{SPEC}/requirements.md", "| load-b16 | load | < 500 |", "| load-b16 | load | < 5000 |"),),
        _spec_after(),
        "gate load-b16 changed since",
    ),
    Sabotage(
        "a loosened reference machine",
        (Edit(f"{SPEC}/requirements.md", "| latency_p90 | b16 | 450 |", "| latency_p90 | b16 | 4500 |"),),
        _spec_after(),
        "reference latency_p90 b16 changed since",
    ),
    Sabotage(
        "a task ticked without proof",
        (
            Edit(
                f"{SPEC}/requirements.md",
                "### Requirement 2: ",
                "9. THE VisionConfig SHALL name its family.\n\n### Requirement 2: ",
            ),
            Edit(
                f"{SPEC}/tasks.md",
                "## 2. ",
                "- [x] 1.4 Name the family\n  - _Requirements: 1.9_\n\n## 2. ",
            ),
        ),
        _spec_after(),
        r"task 1\.4 is ticked, but not proven",
    ),
    Sabotage(
        "the load average in what a machine is",
        (
            Edit(
                f"{HARNESS}/evidence.py",
                '"processor": _processor(),',
                '"processor": _processor(),\n        "load": os.getloadavg()[0],',
            ),
        ),
        _tests("tests/unit/test_evidence.py", "tests/unit/test_plugin.py", "-k", "machine or load"),
        "test_a_run_under_another_load_keeps_the_first",
    ),
    Sabotage(
        "only the outcomes of the process that writes",
        (
            Edit(
                f"{HARNESS}/plugin.py",
                "        if told is None:\n",
                '        if told is None or hasattr(report, "node"):\n',
            ),
        ),
        _tests("tests/unit/test_plugin_workers.py", "-k", "worker"),
        "test_what_fails_in_a_worker_is_no_longer_passed",
    ),
    Sabotage(
        "the outcome of a test without its subtests",
        (
            Edit(
                f"{HARNESS}/plugin.py",
                'if report.outcome != "passed" or (report.when == "call" and not part):',
                'if not part and (report.outcome != "passed" or report.when == "call"):',
            ),
        ),
        _tests("tests/unit/test_plugin.py", "-k", "subtests"),
        "test_the_worst_of_a_tests_subtests_counts",
    ),
    Sabotage(
        "a pass for a subtest that passed before the test was interrupted",
        (Edit(f"{HARNESS}/plugin.py", '(report.when == "call" and not part)', 'report.when == "call"'),),
        _tests("tests/unit/test_plugin.py", "-k", "subtests"),
        "interrupted behind one that passed",
    ),
    Sabotage(
        "git where a hook's environment points",
        (Edit("llm_compression/harness/git.py", 'if not name.startswith("GIT_") or', "if True or"),),
        _tests("tests/unit/test_git.py", "-k", "hook"),
        "test_a_hooks_environment_redirects_nothing",
    ),
    Sabotage(
        "the base of the first main branch that is there",
        (
            Edit(
                "llm_compression/harness/paired/worktrees.py",
                " if all(_contains(root, base, other) for other in bases.values())]",
                "]",
            ),
        ),
        _tests("tests/unit/test_regression_worktrees.py", "-k", "main_branch"),
        "test_an_old_main_branch_never_gives_the_base_unseen",
    ),
    Sabotage(
        "tokenizer_config.json passed over",
        (
            Edit(
                "llm_compression/convert/tokenizer_files.py",
                'self.values["normalizer"] = wanted',
                'self.values["normalizer"] = found',
            ),
        ),
        _tests("tests/unit/test_tokenizer_files.py"),
        "test_any_options_give_the_ids_of_transformers",
    ),
    Sabotage(
        "an unknown key of a configuration passed over",
        (
            Edit(
                "llm_compression/convert/config_keys.py",
                "if key not in known and value is not None",
                "if key not in known and value is NotImplemented",
            ),
        ),
        _tests("tests/unit/test_published_configs.py", "-k", "unknown_key"),
        "test_an_unknown_key_is_refused_by_name",
    ),
    Sabotage(
        "an earlier model's tokenizer left beside a model without one",
        (
            Edit(
                "llm_compression/convert/converter.py",
                "if content is None and not (takes_texts and file.is_file()):",
                "if content is None:",
            ),
        ),
        _tests("tests/unit/test_tokenizer_files.py", "-k", "earlier_tokenizer"),
        "test_an_earlier_tokenizer_does_not_answer_for_a_model_without_one",
    ),
    Sabotage(
        "metadata that cost a picture",
        (Edit(f"{MULTIMODAL}/png_chunks.py", "if kind in _ESSENTIAL or not _may_be_skipped(kind):", "if True:"),),
        _DECODING,
        "test_damage_of_ancillary_chunks",
    ),
    Sabotage(
        "Pillow's own switch for truncated images",
        (
            Edit(f"{MULTIMODAL}/pillow_readers.py", '"LOAD_TRUNCATED_IMAGES" in code.co_names and', "False and"),
            Edit(
                f"{MULTIMODAL}/pillow_readers.py",
                "with nullcontext() if ISOLATED else switch_held_off():",
                "with nullcontext():",
            ),
        ),
        _DECODING,
        "test_switches_of_other_libraries",
    ),
    Sabotage(
        "a row lost at the edge of a shard",
        (
            Edit("llm_compression/embed/rows.py", "if read != stop - start:", "if False:"),
            Edit(
                "llm_compression/embed/rows.py",
                "min(batch.num_rows, stop - row)",
                "min(batch.num_rows, stop - row - 1)",
            ),
        ),
        _tests("tests/unit/test_embed_sources.py", "-k", "table"),
        "test_any_split_of_a_table_gives_its_rows",
    ),
    Sabotage(
        "base and head change places in a comparison",
        (Edit(f"{PAIRED}/duets.py", '("base", "head", "control")', '("head", "base", "control")'),),
        _tests("tests/unit/test_duets.py"),
        "test_the_head_is_the_head",
    ),
    Sabotage(
        "a control that is the base's own checkout",
        (
            Edit(
                f"{PAIRED}/duets.py",
                """        side = self._sides[name]
        try:
            request""",
                """        side = self._sides["base" if name == "control" else name]
        try:
            request""",
            ),
        ),
        _tests("tests/unit/test_duets.py"),
        "test_three_processes_of_three_checkouts",
    ),
    Sabotage(
        "a turn that could be answered from a cache",
        (Edit("benchmarks/regression/probe.py", "        self._next_image += images\n", ""),),
        _tests("tests/unit/test_regression_rounds.py", "-k", "twice"),
        "test_no_image_twice_in_a_row",
    ),
    Sabotage(
        "turns in the same order always",
        (
            Edit(
                f"{PAIRED}/turns.py",
                "for place in order.sample(range(len(processes)), len(processes)):",
                "for place in range(len(processes)):",
            ),
        ),
        _tests("tests/unit/test_duets.py"),
        "test_three_processes_of_three_checkouts",
    ),
    Sabotage(
        "the median against the mean of base and control",
        (
            Edit(
                f"{PAIRED}/duets.py",
                "change = (median(head - base for base, head, _ in logs) + "
                "median(head - control for _, head, control in logs)) / 2",
                "change = median(head - (base + control) / 2 for base, head, control in logs)",
            ),
        ),
        _tests("tests/unit/test_compare.py"),
        "test_false_alarms_and_power_are_simulated",
    ),
    Sabotage(
        "a vector of zeros for an image that cannot be read",
        (Edit("llm_compression/embed/tables.py", "nulls[list(why)] = True", "nulls[:] = False"),),
        _tests("tests/unit/test_embed_run.py", "-k", "one_row_for_each or stream"),
        "test_one_row_for_each_row",
    ),
    Sabotage(
        "a shard written in place",
        (Edit("llm_compression/embed/shards.py", "with whole_file(path) as partial:", "for partial in (path,):"),),
        _tests("tests/unit/test_embed_run.py", "-k", "interrupted_write"),
        "test_an_interrupted_write_leaves_no_shard",
    ),
    Sabotage(
        "an error of a row swallowed",
        (
            Edit(
                "llm_compression/embed/tables.py",
                "ERROR: pa.array([None if reason is None else reason.code for reason in reasons], pa.string()),",
                "ERROR: pa.array([None for reason in reasons], pa.string()),",
            ),
        ),
        _tests("tests/unit/test_embed_run.py", "-k", "one_row_for_each or stream"),
        "test_one_row_for_each_row|test_a_stream_of_record_batches",
    ),
    Sabotage(
        "the last of two keys taken",
        (Edit("llm_compression/json_text.py", "json.loads(text, object_pairs_hook=_object)", "json.loads(text)"),),
        _tests("tests/unit/test_one_meaning.py", "-k", "stands_twice"),
        "test_a_key_that_stands_twice_is_refused_wherever_it_is",
    ),
    Sabotage(
        "a checkpoint that changed while it was read",
        (Edit("llm_compression/convert/converter.py", "    checkpoint.require_unchanged()\n"),),
        _tests("tests/unit/test_one_meaning.py", "-k", "checkpoint_that_changes"),
        "test_a_checkpoint_that_changes_while_it_is_read",
    ),
    Sabotage(
        "a caller's switch of oneDNN left alone",
        (Edit("llm_compression/settings.py", "lambda: _MKLDNN.enabled,", "lambda: True,"),),
        _tests("tests/unit/test_settings.py", "-k", "kernels_and_precision"),
        "test_what_computes_has_kernels_and_precision_of_its_own",
    ),
    Sabotage(
        "a text's embedding lost with its image's",
        (
            Edit(
                "llm_compression/embed/encoding.py",
                "embed_texts(texts, towers.texts,",
                "embed_texts([None if row in found.reasons else text for row, text in enumerate(texts)], towers.texts,",
            ),
        ),
        _tests("tests/unit/test_embed_texts.py", "-k", "both_towers"),
        "test_both_towers",
    ),
    Sabotage(
        "an actor with another encoder",
        (Edit("llm_compression/embed/ray_engine.py", "if found[name] != self._settings[name]]", "if not found]"),),
        _tests("tests/unit/test_embed_engines.py", "-k", "another_encoder"),
        "test_a_machine_with_another_encoder_is_refused",
    ),
)
