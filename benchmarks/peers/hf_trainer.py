"""Hugging Face Seq2SeqTrainer, sentences grouped by length: as many a batch as a planned batch has on average."""

import tempfile

import gate as peers
import transformers
from marian import Pairs, build_model, collate
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

gate, work = peers.begin(f"Hugging Face transformers {transformers.__version__}, Seq2SeqTrainer")
model = build_model(work.facts["vocabulary"])
gate.facts = {"version": transformers.__version__, "parameters": peers.count_parameters(model)}
num_tokens = []  # of each batch that was collated


def collate_counting(examples):
    arguments, count = collate(work, examples)
    num_tokens.append(count)
    return arguments


class Ticks(TrainerCallback):
    num_steps = 0

    def on_step_end(self, args, state, control, **_more):  # noqa: ARG002
        gate.tick(num_tokens[self.num_steps])
        self.num_steps += 1


arguments = Seq2SeqTrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=work.facts["mean_pairs_per_batch"],
    max_steps=1_000_000,
    label_smoothing_factor=peers.LABEL_SMOOTHING,
    learning_rate=peers.LEARNING_RATE,
    adam_beta1=peers.BETAS[0],
    adam_beta2=peers.BETAS[1],
    adam_epsilon=peers.EPSILON,
    max_grad_norm=0.0,
    train_sampling_strategy="group_by_length",
    remove_unused_columns=False,
    report_to=[],
    logging_strategy="no",
    save_strategy="no",
    disable_tqdm=True,
    dataloader_pin_memory=False,
    use_cpu=True,
)
Seq2SeqTrainer(
    model=model, args=arguments, train_dataset=Pairs(work), data_collator=collate_counting, callbacks=[Ticks()]
).train()
