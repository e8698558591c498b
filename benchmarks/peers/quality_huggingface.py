"""Hugging Face Seq2SeqTrainer and `generate`, for quality.py."""

from pathlib import Path

import gate as peers
import minutes
import torch
from marian import Pairs, build_model, collate
from transformers import GenerationConfig, MarianMTModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback


def pairs_of(work: peers.Work, batch_tokens: int) -> int:
    """How many pairs of the mean length make a batch of so many tokens, by the longer side."""
    longer = [max(len(src), len(tgt)) for src, tgt in zip(work.src, work.tgt, strict=True)]
    return round(batch_tokens * len(longer) / sum(longer))


class UntilTheEnd(TrainerCallback):
    def __init__(self, clock: minutes.Clock, model: MarianMTModel) -> None:
        self.clock, self.model = clock, model

    def on_step_begin(self, args, state, control, **_more):  # noqa: ARG002
        if self.clock.num_steps == 0:
            self.clock.start()  # the lengths of all pairs are known, and they are grouped

    def on_step_end(self, args, state, control, **_more):  # noqa: ARG002
        control.should_training_stop = self.clock.tick(self.model.save_pretrained)


def train(folder: Path, num_minutes: float, rate: float, batch_tokens: int, threads: int) -> None:
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    work = peers.Work(folder / "work")
    model = build_model(work.facts["vocabulary"], minutes.DROPOUT)
    clock = minutes.Clock(folder / "huggingface", num_minutes, rate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=peers.BETAS, eps=peers.EPSILON, weight_decay=0.0)

    Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(folder / "huggingface"),
            per_device_train_batch_size=pairs_of(work, batch_tokens),
            max_steps=10_000_000,
            label_smoothing_factor=peers.LABEL_SMOOTHING,
            max_grad_norm=minutes.MAX_GRAD_NORM,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
        ),
        train_dataset=Pairs(work),
        data_collator=lambda examples: collate(work, examples)[0],
        callbacks=[UntilTheEnd(clock, model)],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: clock.learning_rate)),
    ).train()


@torch.inference_mode()
def answer(folder: Path, snapshot: Path, lines: list[str], beam_size: int) -> list[str]:  # noqa: ARG001
    model = MarianMTModel.from_pretrained(snapshot).eval()
    config = GenerationConfig(
        pad_token_id=peers.PAD_ID,
        bos_token_id=peers.BOS_ID,
        eos_token_id=peers.EOS_ID,
        decoder_start_token_id=peers.BOS_ID,
        num_beams=beam_size,
        do_sample=False,
        length_penalty=1.0,
        early_stopping=beam_size > 1,
    )
    order = sorted(range(len(lines)), key=lambda row: -len(lines[row].split()))
    answers = [""] * len(lines)
    for first in range(0, len(order), 64):
        rows = order[first : first + 64]
        ids = [[*minutes.ids_of(lines[row]), peers.EOS_ID] for row in rows]
        src = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in ids], batch_first=True, padding_value=peers.PAD_ID
        )
        found = model.generate(
            input_ids=src,
            attention_mask=(src != peers.PAD_ID).long(),
            generation_config=config,
            max_new_tokens=2 * src.size(1) + 20,
        )
        for row, pieces in zip(rows, found[:, 1:].tolist(), strict=True):
            end = pieces.index(peers.EOS_ID) if peers.EOS_ID in pieces else len(pieces)
            answers[row] = " ".join(f"t{piece}" for piece in pieces[:end] if piece > peers.EOS_ID)
    return answers


minutes.main(train, answer)
