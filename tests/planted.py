"""Bugs that have been planted: what each changes, and the tests that must fail for it.

A test that cannot fail proves nothing. `test_planted.py` plants each of these into a copy of the tree and runs its
tests, which must fail. Where a text no longer occurs, the code has changed: then the same bug is written into the new
code.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    """A bug: in `file` of the package, `new` stands in the place of `old`. All `tests` must fail, together."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def bug(file: str, old: str, new: str, *tests: str) -> Planted:
    return Planted(file, old, new, tests)


FOLDER, RESUME, PAIRS = "runs/test_folder.py::", "runs/test_resume.py::", "data/test_pairs.py::"
BATCHES, SETS, STEP, TRAINER = (
    *("data/test_batches.py::", "data/test_datasets.py::"),
    *("training/test_step.py::", "training/test_trainer.py::"),
)
OPTIM, LOSS, ENGINE, SEARCH = (
    *("training/test_optim.py::", "training/test_loss.py::"),
    *("inference/test_engine.py::", "inference/test_search.py::"),
)

DISK = {
    "nothing is synced": bug(
        "files/atomic.py",
        "            os.fsync(file.fileno())\n",
        "",
        FOLDER + "test_nothing_takes_effect_before_its_bytes_are_on_disk",
    ),
    "a rename is not synced": bug(
        "files/atomic.py",
        "        sync(path.parent)\n",
        "",
        FOLDER + "test_nothing_takes_effect_before_its_bytes_are_on_disk",
    ),
    "a file is written in its place": bug(
        "files/atomic.py",
        "with explained_write_errors(path, len(content)), replacing(path) as file:",
        'with explained_write_errors(path, len(content)), path.open("wb") as file:',
        FOLDER + "test_a_crash_at_any_operation_leaves_the_old_state_or_the_new",
    ),
    "the hash of tensors is not compared": bug(
        "files/certified.py",
        ".hexdigest().encode() != stated:",
        ".hexdigest() is None:",
        FOLDER + "test_every_flipped_missing_or_added_byte_is_detected",
    ),
    "a lock holds nobody off": bug(
        "files/locks.py",
        "    except BlockingIOError:\n        return False",
        "    except BlockingIOError:\n        return True",
        FOLDER + "test_a_second_process_is_refused_until_the_first_is_gone",
    ),
    "what killed processes left stays": bug(
        "runs/folder.py",
        "                remove_temporaries(folder)",
        "                pass",
        FOLDER + "test_the_lock_removes_left_over_temporaries_and_nothing_else",
    ),
    "old checkpoints go before the new one is there": bug(
        "runs/folder.py",
        "        write_tensors(self._tensor_path(step), tensors, header)\n",
        "        for old in self.checkpoints()[: 1 - keep or None]:\n"
        "            self._tensor_path(old).unlink()\n"
        "        write_tensors(self._tensor_path(step), tensors, header)\n",
        FOLDER + "test_a_crash_at_any_operation_leaves_the_old_state_or_the_new",
    ),
    "the settings are rewritten before their hash is known": bug(
        "runs/folder.py",
        "{name: [*files[name], *new]}",
        "{name: files[name]}",
        FOLDER + "test_a_crash_at_any_operation_leaves_the_old_state_or_the_new",
    ),
    "answers are written as they come": bug(
        "cli/console.py",
        "yield opened.enter_context(replacing(target))",
        'yield opened.enter_context(path.open("wb"))',
        "cli/test_cli.py::test_an_error_half_way_leaves_the_old_output_file",
    ),
}

RESUMING = {
    "signals are heard between steps alone": bug(
        "training/step.py",
        "            for number, rows in self._local_parts(pairs, micro_batches):\n                check()\n",
        "            check()\n            for number, rows in self._local_parts(pairs, micro_batches):\n",
        RESUME + "test_a_stop_in_any_micro_batch_leaves_no_trace",
    ),
    "the moments of Adam are not restored": bug(
        "training/trainer.py",
        "= saved.to(parameter.device, copy=True)",
        '= saved.to(parameter.device, copy=True) * (slot == "step")',
        RESUME + "test_resuming_from_any_kept_checkpoint_gives_the_same_run",
    ),
    "the average begins anew when a run goes on": bug(
        "training/trainer.py",
        'with_prefix(tensors, "ema.") or dict(self.model.named_parameters())',
        "dict(self.model.named_parameters())",
        RESUME + "test_resuming_from_any_kept_checkpoint_gives_the_same_run",
    ),
    "rows of steps that are repeated stay": bug(
        "runs/resumption.py",
        "        folder.truncate_metrics(step or 0, report)\n",
        "",
        RESUME + "test_resuming_from_any_kept_checkpoint_gives_the_same_run",
    ),
    "a validation is logged twice": bug(
        "training/trainer.py",
        "if not (may_be_logged and key in",
        "if not (may_be_logged is None and key in",
        RESUME + "test_a_validation_row_is_not_repeated_when_a_sitting_dies_between_it_and_its_checkpoint",
    ),
    "the order of an epoch comes from a state": bug(
        "data/batches.py",
        "    random = np.random.default_rng([seed, epoch, window] if window else [seed, epoch])\n",
        "    random = np.random\n",
        BATCHES + "test_a_plan_is_the_same_whatever_the_global_random_state",
    ),
    "pieces are in an order that depends on the process": bug(
        "text/vocabulary.py",
        "key=lambda t: (-counts[t], t))",
        "key=lambda t: (-counts[t], hash(t)))",
        RESUME + "test_a_run_in_another_process_language_hash_seed_and_folder_has_the_same_bits",
    ),
    "another beta of Adam": bug(
        "training/optim.py",
        "betas=(config.beta1, config.beta2)",
        "betas=(config.beta1, config.beta2 + 0.001)",
        "runs/test_golden.py::test_a_hundred_losses_are_those_that_were_recorded",
    ),
    "dropout comes from a state": bug(
        "training/step.py",
        "                torch.manual_seed(_seed_of(self.config.seed, step, number))\n",
        "",
        TRAINER + "test_dropout_is_a_function_of_seed_step_and_micro_batch",
    ),
    "other data are accepted": bug(
        "runs/resumption.py",
        '        refuse_other_data(facts.get("data", {}), corpus.sha256, folder.path)\n',
        "",
        RESUME + "test_one_changed_line_of_the_data_is_refused",
    ),
    "other settings are accepted": bug(
        "runs/resumption.py",
        "refuse_changes(changes, accept_changes=accept_changes)",
        "refuse_changes(changes, accept_changes=True)",
        RESUME + "test_a_flagged_change_is_refused_alone_and_recorded_when_accepted",
    ),
    "the last of equally good weights are kept": bug(
        "training/state.py",
        "is_best = new > best or",
        "is_best = new >= best or",
        TRAINER + "test_of_equally_good_weights_the_first_are_kept_unless_a_tie_is_decided",
    ),
}

LEARNING = {
    "an update that is no number is applied": bug(
        "training/step.py",
        "optimizer.found_inf = 1 - numbers",
        "optimizer.found_inf = 0 * numbers",
        STEP + "test_a_gradient_that_is_not_finite_changes_nothing_even_if_nobody_looks",
    ),
    "gradients are divided by another number than that of the tokens": bug(
        "training/step.py",
        "torch._foreach_div_(gradients, num_tokens)",
        "torch._foreach_div_(gradients, num_tokens + 1)",
        STEP + "test_a_step_in_any_parts_bucketed_or_packed_is_the_textbook_one",
    ),
    "each process numbers its parts for itself": bug(
        "training/step.py",
        "[(number, parts[number]) for number in range(self.process.rank,",
        "[(number // self.process.world_size, parts[number]) for number in range(self.process.rank,",
        "training/test_distributed.py::test_two_processes_train_like_one_and_one_or_two_go_on_where_the_others_stopped",
    ),
    "the average forgets its random start no sooner": bug(
        "training/optim.py",
        "weight = 1 - min(decay, (1 + step) / (10 + step))",
        "weight = 1 - decay",
        OPTIM + "test_the_average_moves_by_hand",
    ),
    "short gradients are lengthened": bug(
        "training/optim.py",
        "(max_norm / (norm + 1e-6)).clamp(max=1.0)",
        "max_norm / (norm + 1e-6)",
        OPTIM + "test_gradients_are_shortened_together_and_only_if_too_long",
    ),
    "the last step has rate zero": bug(
        "training/optim.py",
        "/ (num_steps + 1 - warmup_steps)",
        "/ (num_steps - warmup_steps)",
        OPTIM + "test_every_step_of_a_run_has_a_positive_rate",
    ),
    "smoothing is left out of one gradient": bug(
        "training/loss.py",
        "                grad_weight -= label_smoothing / weight.size(0) * hidden_sum\n",
        "                pass\n",
        LOSS + "test_gradients_equal_torch_also_when_scaled",
    ),
    "the end of a target goes in": bug(
        "data/batches.py",
        "np.where(is_token, tgt_out[:, :-1], Tokenizer.pad_id)",
        "np.where(is_token | True, tgt_out[:, :-1], Tokenizer.pad_id)",
        BATCHES + "test_a_batch_written_by_hand_is_padded_and_shifted",
    ),
    "targets see what comes after them": bug(
        "model/decoder.py",
        "self.self_attention(x, mask=own_segments, is_causal=True)",
        "self.self_attention(x, mask=own_segments, is_causal=False)",
        ENGINE + "test_cached_decoding_matches_full_forward",
    ),
}

READING = {
    "a line ends at any character for it": bug(
        "data/pairs.py",
        '.replace("\\r\\n", "\\n").split("\\n")',
        '.replace("\\r\\n", "\\n").splitlines() + [""]',
        PAIRS + "test_a_character_within_a_line_is_text",
    ),
    "a carriage return alone ends a line": bug(
        "data/pairs.py",
        '.replace("\\r\\n", "\\n").split("\\n")',
        '.replace("\\r\\n", "\\n").replace("\\r", "\\n").split("\\n")',
        PAIRS + "test_one_carriage_return_is_removed_and_the_one_before_it_is_text",
    ),
    "half an archive is read": bug(
        "data/compression.py",
        '                    raise EOFError("it is truncated")',
        "                    return",
        PAIRS + "test_a_compressed_file_cut_anywhere_is_refused",
    ),
    "parts share targets": bug(
        "data/pairs.py",
        "*([] if may_share_targets else [pairs.tgt])",
        "*([] if may_share_targets or pairs else [pairs.tgt])",
        PAIRS + "test_a_split_keeps_all_rows_shares_no_text_and_does_not_depend_on_the_order",
    ),
    "another download is accepted": bug(
        "data/download.py",
        "if (digest := sha256_of(content)) != file.sha256:",
        "if not (digest := sha256_of(content)):",
        SETS + "test_other_bytes_than_the_table_names_never_reach_the_cache",
    ),
    "a damaged file in the cache is used": bug(
        "data/download.py",
        "if path.is_file() and sha256_of_file(path) == file.sha256:",
        "if path.is_file() and sha256_of_file(path):",
        SETS + "test_a_damaged_file_in_the_cache_is_fetched_again",
    ),
    "windows of a large corpus overlap": bug(
        "data/batches.py",
        "(random.integers(self.num_windows, size=len(first)) + number)",
        "(random.integers(self.num_windows, size=len(first)) + 0 * number)",
        "data/test_large.py::test_windows_are_even_samples_others_in_every_epoch_and_together_hold_every_pair_once",
    ),
}

ANSWERING = {
    "padding of the source is seen": bug(
        "inference/state.py",
        "        if is_hidden.any():\n",
        "        if is_hidden.all():\n",
        ENGINE + "test_cached_decoding_matches_full_forward",
    ),
    "a hypothesis goes on with the past of another": bug(
        "inference/state.py",
        "parents = parents if self.num_steps else torch.zeros_like(parents)",
        "parents = torch.zeros_like(parents)",
        ENGINE + "test_a_beam_of_random_descent_matches_full_forward",
    ),
    "slots are dropped that some descend from": bug(
        "inference/state.py",
        "self._ancestry[:, :, : self.num_slots].any(dim=1)",
        "self._ancestry[:, :, : self.num_slots].all(dim=1)",
        ENGINE + "test_a_beam_of_random_descent_matches_full_forward",
    ),
    "codes are cut instead of rounded": bug(
        "inference/linear.py",
        ".round_()",
        ".trunc_()",
        "inference/test_linear.py::test_an_int8_map_is_the_arithmetic_of_codes",
    ),
    "lengths are normalized by one token more": bug(
        "inference/search.py",
        "base = (5 + length) / 6",
        "base = (6 + length) / 6",
        "inference/test_predictor.py::test_scores_are_those_of_a_full_pass_over_the_output",
    ),
    "an output is one token too long": bug(
        "inference/search.py",
        "enumerate(rooms) if room == 1]",
        "enumerate(rooms) if room == 0]",
        SEARCH + "test_an_output_ends_at_its_own_longest_length",
    ),
    "a nucleus leaves out the token that reaches it": bug(
        "inference/search.py",
        "is_beyond = cumulative - probabilities >= config.top_p * cumulative[:, -1:]",
        "is_beyond = cumulative - 0.5 * probabilities >= config.top_p * cumulative[:, -1:]",
        SEARCH + "test_tokens_are_sampled_as_often_as_they_are_likely",
    ),
    "a beam stops before its best output": bug(
        "inference/beam_search.py",
        "bounds = (beams.log_probs[:, 0] / norm_at_limit).tolist()",
        "bounds = beams.log_probs[:, 0].tolist()",
        SEARCH + "test_stopping_early_never_changes_an_output",
    ),
    "text is not escaped in a page": bug(
        "inference/explain_page.py",
        "json_in_html(content), 1)",
        "json.dumps(content), 1)",
        "inference/test_explain.py::test_a_text_is_data_and_nothing_else",
    ),
    "confidences are those of no calibration": bug(
        "inference/forced_decoding.py",
        "_forced_passes(model, sources, outputs, 1.0, calibration.temperature, with_attention=True)",
        "_forced_passes(model, sources, outputs, 1.0, 1.0, with_attention=True)",
        "inference/test_forced_decoding.py"
        "::test_confidences_are_the_softmax_of_the_logits_at_the_temperature_of_the_calibration",
    ),
    "a certificate does not look at log-probabilities": bug(
        "export/certificate.py",
        "return has_same_scores and not any(",
        "return not any(",
        "export/test_export.py::test_other_log_probabilities_are_found",
    ),
}

BUGS = DISK | RESUMING | LEARNING | READING | ANSWERING
