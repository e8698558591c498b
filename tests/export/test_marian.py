"""A Marian model of the transformers library and the run made of it say the same: ids, logits, answers, text."""

import dataclasses
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from calling import command, content_of
from crashing import count_operations, is_killed_at, moments
from transduce.errors import DamagedFileError, MissingInputError, RunFolderError, TransduceError
from transduce.export.marian import import_marian
from transduce.inference.config import DecodingConfig
from transduce.inference.predictor import Predictor
from transduce.model.positional import sinusoidal_table
from transduce.runs.folder import RunFolder
from transduce.runs.run import load
from transduce.text.tokenizer import Tokenizer

# The library recommends a package that normalises punctuation, and that this code does without.
pytestmark = pytest.mark.filterwarnings("ignore:Recommended")

WORDS = {
    "one": "ein", "two": "zwei", "old": "alt", "red": "rot", "big": "groß", "dog": "Hund", "cat": "Kater",
    "man": "Mann", "sees": "sieht", "runs": "läuft",
}  # fmt: skip
SHAPE = {
    "d_model": 20, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 5, "decoder_attention_heads": 5,
    "encoder_ffn_dim": 28, "decoder_ffn_dim": 28, "max_position_embeddings": 48, "activation_function": "swish",
    "scale_embedding": True, "dropout": 0.0, "init_std": 20**-0.5,
}  # fmt: skip
MAX_LENGTH = 30  # of an answer, with what the library's begin with
HOSTILE = (
    "two dogs|one old cat|| |  two   dogs |two\tdogs\xa0run|▁two|中文 dog|Ünïcödé|two\0dogs|ﬁ ½ Å|e\u0301|\ufeffdog|"
    "\ufffd|>>deu<< two dogs|>>deu<<two|>>deu<<| >>deu<< two|two >>deu<<|>>deu<<>>deu<< dog|>|>>|<<|>><|👩\u200d👩|"
    f"{'dog' * 50}|…“”’|a-b_c.d,e"
).split("|")
NAMES = ["config.json", "generation_config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json"]
OF_POSITIONS = "model.decoder.embed_positions.weight"
NAMES_OF_CONTROLS = ["</s>", "a </s> b", "<pad>", "<pad><pad>", "<unk>", "<s>", "two<unk>dogs"]


def pairs(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Some words in a row, and their translation in the other order."""
    drawn = random.Random(seed)
    sources = [drawn.choices(list(WORDS), k=drawn.randint(1, 5)) for _ in range(count)]
    return [" ".join(words) for words in sources], [" ".join(WORDS[word] for word in words[::-1]) for words in sources]


def learn_pieces(folder: Path) -> dict[str, int]:
    """Writes both models of pieces; returns the ids that Marian has for the pieces of either, padding last."""
    vocabulary = {"</s>": 0, "<unk>": 1}
    for name, lines in zip(("source.spm", "target.spm"), pairs(300, seed=1), strict=True):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=written, vocab_size=45, hard_vocab_limit=False, minloglevel=2
        )
        (folder / name).write_bytes(written.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        for i in range(3, processor.get_piece_size()):
            vocabulary.setdefault(processor.id_to_piece(i), len(vocabulary))
    for name in (">>deu<<", ">>fra<<", "<pad>"):
        vocabulary[name] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    return vocabulary


def new_model(vocab_size: int, **shape: Any) -> Any:
    """A random model in which nothing is zero or one by accident."""
    pad = vocab_size - 1
    torch.manual_seed(2)
    config = transformers.MarianConfig(
        vocab_size=vocab_size, pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0, **(SHAPE | shape)
    )
    model = transformers.MarianMTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "layer_norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.final_logits_bias.normal_()
        model.model.shared.weight[pad].normal_(std=0.3)
    model.generation_config.update(
        num_beams=3, length_penalty=0.7, max_length=MAX_LENGTH, bad_words_ids=[[pad]], renormalize_logits=True
    )
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the library's form, trained for a few seconds so that most of its answers end."""
    folder = tmp_path_factory.mktemp("marian")
    model = new_model(len(learn_pieces(folder)))
    model.save_pretrained(folder)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    for step in range(90):
        src, tgt = pairs(24, seed=step)
        batch = tokenizer(src, text_target=tgt, return_tensors="pt", padding=True)
        labels = batch.pop("labels")
        model(**batch, labels=labels.masked_fill(labels == model.config.pad_token_id, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.MarianMTModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def their_tokenizer(folder: Path) -> Any:
    return transformers.MarianTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_marian(folder, tmp_path_factory.mktemp("runs") / "imported").path


@pytest.fixture(scope="module")
def ours(run: Path) -> Predictor:
    return load(run, device="cpu")


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def change_json(path: Path, **changes: Any) -> None:
    """Sets values in a file; None takes one out."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def their_id(i: int, vocab_size: int) -> int:
    """What Marian calls our id: controls are ours 0, 1, 2; its end is its 0, its padding (and begin) its last."""
    return (vocab_size - 1, vocab_size - 1, 0)[i] if i < 3 else i - 2


def our_ids(ids: list[int], vocab_size: int) -> list[int]:
    return [{0: 2, vocab_size - 1: 0}.get(i, i + 2) for i in ids]


def their_logits(theirs: Any, sources: list[list[int]], answers: Tensor) -> Tensor:
    """(B, T, ids of ours): columns of the library's logits in our order, for a batch of padded sources."""
    size, pad = theirs.config.vocab_size, theirs.config.pad_token_id
    longest = max(map(len, sources))
    src = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in sources])
    with torch.no_grad():
        logits = theirs(src, attention_mask=src != pad, decoder_input_ids=answers).logits
    return logits[..., [their_id(i, size) for i in range(size + 1)]]


def both_logits(theirs: Any, ours: Predictor, their_tokenizer: Any) -> tuple[Tensor, Tensor]:
    size = theirs.config.vocab_size
    sources = their_tokenizer(pairs(7, seed=1000)[0])["input_ids"]
    answers = torch.randint(1, size - 1, (7, 11), generator=torch.Generator().manual_seed(3))
    answers[:, 0] = size - 1
    src = [our_ids(ids, size) for ids in sources]
    longest = max(map(len, src))
    tgt_in = torch.tensor([[1, *our_ids(row[1:], size)] for row in answers.tolist()])
    with torch.no_grad():
        hidden = ours.model(torch.tensor([ids + [0] * (longest - len(ids)) for ids in src]), tgt_in)
        return their_logits(theirs, sources, answers), ours.model.logits(hidden)


def test_logits_of_all_pieces_are_the_librarys(theirs: Any, ours: Predictor, their_tokenizer: Any) -> None:
    expected, found = both_logits(theirs, ours, their_tokenizer)
    torch.testing.assert_close(found[..., 2:], expected[..., 2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("renormalize", [True, False])
def test_probabilities_are_those_the_library_searches_by(
    renormalize: bool, folder: Path, theirs: Any, their_tokenizer: Any, tmp_path: Path
) -> None:
    changed = copied(folder, tmp_path)
    change_json(changed / "generation_config.json", renormalize_logits=renormalize)
    ours = load(import_marian(changed, tmp_path / "run").path, device="cpu")
    expected, found = both_logits(theirs, ours, their_tokenizer)
    expected[..., 1] = -torch.inf  # our begin symbol is no piece of theirs
    if renormalize:
        expected[..., 0] = -torch.inf
    pieces = slice(2, None)
    torch.testing.assert_close(
        found.log_softmax(-1)[..., pieces], expected.log_softmax(-1)[..., pieces], rtol=0, atol=1e-4
    )


def test_the_begin_symbol_takes_nothing_from_any_sum(theirs: Any, ours: Predictor, their_tokenizer: Any) -> None:
    _, logits = both_logits(theirs, ours, their_tokenizer)
    without = logits.clone()
    without[..., 1] = -torch.inf
    assert torch.equal(logits.log_softmax(-1)[..., 2:], without.log_softmax(-1)[..., 2:])


@pytest.mark.parametrize(("beam_size", "length_penalty"), [(1, 1.0), (3, 0.7), (4, 0.0), (5, 1.0)])
def test_answers_are_the_librarys(
    beam_size: int, length_penalty: float, theirs: Any, ours: Predictor, their_tokenizer: Any
) -> None:
    decoding = dataclasses.replace(ours.decoding, beam_size=beam_size, length_penalty=length_penalty)
    predictor = Predictor(ours.model, ours.tokenizer, decoding)
    sources = pairs(24, seed=1001)[0]
    answers = predictor.search(ours.tokenizer.encode_source(sources))
    num_ended = 0
    for source, found in zip(sources, answers, strict=True):
        batch = their_tokenizer([source], return_tensors="pt")
        settings = {"num_beams": beam_size, "length_penalty": length_penalty}
        if beam_size > 1:
            settings["early_stopping"] = True
        (expected,) = theirs.generate(**batch, **settings)[:, 1:].tolist()
        if len(expected) < MAX_LENGTH - 1:  # longer ones the library ends for nothing, we at their cost
            num_ended += 1
            assert [*found[0].ids, 2] == our_ids(expected, theirs.config.vocab_size)
    assert num_ended >= 18
    assert len({tuple(found[0].ids) for found in answers}) >= 15


def test_the_search_is_set_as_the_model_says(ours: Predictor, folder: Path, tmp_path: Path) -> None:
    assert ours.decoding == DecodingConfig(
        beam_size=3, length_penalty=0.7, length_norm="power", max_len_ratio=0.0, max_len_extra=MAX_LENGTH - 1
    )
    older = copied(folder, tmp_path)
    (older / "generation_config.json").unlink()
    change_json(older / "config.json", num_beams=6, max_length=20)
    found = load(import_marian(str(older), str(tmp_path / "run")).path, device="cpu").decoding
    assert (found.beam_size, found.length_penalty, found.max_len(7)) == (6, 1.0, 19)


def test_what_has_no_counterpart_here_is_told(folder: Path, tmp_path: Path) -> None:
    changed, told = copied(folder, tmp_path), []
    change_json(changed / "generation_config.json", no_repeat_ngram_size=3, early_stopping=False)
    import_marian(changed, tmp_path / "run", told.append)
    assert len(told) == 1 and "no_repeat_ngram_size = 3" in told[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_ids_are_the_librarys(text: str, theirs: Any, ours: Predictor, their_tokenizer: Any) -> None:
    size = theirs.config.vocab_size
    assert ours.tokenizer.encode_source([text]) == [our_ids(their_tokenizer(text)["input_ids"], size)]
    assert ours.tokenizer.encode_target([text]) == [our_ids(their_tokenizer(text_target=text)["input_ids"], size)]


@pytest.mark.parametrize("text", NAMES_OF_CONTROLS)
def test_names_of_control_ids_are_text(text: str, theirs: Any, ours: Predictor, their_tokenizer: Any) -> None:
    (ids,) = ours.tokenizer.encode_source([text])
    as_text = their_tokenizer(text, split_special_tokens=True)["input_ids"]
    assert ids == our_ids(as_text, theirs.config.vocab_size)
    assert ids[-1] == 2 and min(ids[:-1]) > 2


def test_a_language_code_that_the_model_does_not_know_is_text(ours: Predictor) -> None:
    known, bare, *unknown = ours.tokenizer.encode_source([">>fra<< dog", "dog", ">>xyz<< dog", ">>fra << dog"])
    assert len(known) == 1 + len(bare) and known[1:] == bare
    assert all(len(ids) > len(known) for ids in unknown)  # in the library: one unknown piece


def test_any_ids_decode_to_the_librarys_text(theirs: Any, ours: Predictor, their_tokenizer: Any) -> None:
    size = theirs.config.vocab_size
    drawn = random.Random(4)
    for _ in range(200):
        ids = [drawn.randrange(1, size) for _ in range(drawn.randint(0, 12))]
        expected = their_tokenizer.decode(ids, skip_special_tokens=True, use_source_tokenizer=False)
        assert ours.tokenizer.decode_target(our_ids(ids, size)) == expected
        assert ours.tokenizer.decode_source(our_ids(ids, size)) == their_tokenizer.decode(ids, skip_special_tokens=True)


def test_a_saved_tokenizer_is_the_same_and_needs_no_other_file(ours: Predictor) -> None:
    loaded = Tokenizer.from_json(ours.tokenizer.to_json())
    assert loaded.to_json() == ours.tokenizer.to_json()
    assert loaded.encode_source(HOSTILE) == ours.tokenizer.encode_source(HOSTILE)
    assert loaded.encode_target(HOSTILE) == ours.tokenizer.encode_target(HOSTILE)
    assert loaded.config.joint and loaded.num_target_ids == loaded.source_vocab_size


def test_lines_in_portions_have_the_same_ids(ours: Predictor) -> None:
    ids, lens = ours.tokenizer.source_encoder()(HOSTILE)
    rows = ours.tokenizer.encode_source(HOSTILE)
    assert ids.tolist() == [i for row in rows for i in row]
    assert lens.tolist() == [len(row) for row in rows]


def test_every_verb_takes_an_imported_run(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command("import", folder, "-o", run).status == 0
    answered = command("predict", run, stdin=b"two old dogs\n>>deu<< one red cat\n")
    assert answered.status == 0 and len(answered.lines) == 2
    src, tgt = pairs(5, seed=1002)
    for name, lines in (("src", src), ("tgt", tgt)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    assert command("evaluate", run, "--source", tmp_path / "src", "--target", tmp_path / "tgt").status == 0
    for verb in ("describe", "verify"):
        assert command(verb, run).status == 0
    assert "imported" in RunFolder.open(run).facts


def test_a_run_in_use_is_refused_and_untouched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="contains other files"):
        import_marian(folder, tmp_path / "run")
    assert content_of(tmp_path / "run") == {"notes.txt": b"mine"}


def fine_tuned(run: Path, to: Path, *overrides: object) -> tuple[RunFolder, list[str], list[str]]:
    src, tgt = pairs(12, seed=1003)
    (to / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(src, tgt, strict=True)))
    (to / "config.toml").write_text(
        f'[data]\ntrain = ["{to}/pairs.tsv"]\nmax_len = 40\n[training]\nsteps = 2\nlog_every = 1\n'
        "[model]\ndropout = 0.0\n"
        "[optim]\nschedule = 'constant'\nlearning_rate = 0.001\nwarmup_steps = 0\nweight_decay = 0.5\n"
    )
    words = ["train", to / "config.toml", "--run-dir", to / "tuned", "--init-from", run, *overrides]
    outcome = command(*words, "--device", "cpu")
    assert outcome.status == 0, outcome.err
    return RunFolder.open(to / "tuned"), src, tgt


def test_fine_tuning_begins_at_the_librarys_loss(run: Path, theirs: Any, their_tokenizer: Any, tmp_path: Path) -> None:
    tuned, src, tgt = fine_tuned(run, tmp_path, "--training.label_smoothing", "0.0")
    batch = their_tokenizer(src, text_target=tgt, return_tensors="pt", padding=True)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = theirs(**batch, labels=labels).logits
    logits[..., -1] = -torch.inf  # the library leaves padding out of this model's sums
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=theirs.config.pad_token_id)
    first, second = (row["loss"] for row in tuned.metrics() if row["kind"] == "training")
    assert first == pytest.approx(expected.item(), abs=1e-4)
    assert second < first


def test_fine_tuning_moves_each_bias_by_its_rate_and_decays_none(run: Path, tmp_path: Path) -> None:
    tuned, *_ = fine_tuned(run, tmp_path, "--training.label_smoothing", "0.1")
    before, after = (folder.read_model()[0]["output_bias"] for folder in (RunFolder.open(run), tuned))
    assert 0 < (after - before).abs().max() <= 2 * 0.001 + 1e-5  # Adam: a step is at most the rate
    assert before[1] < -90 and after[1] < -90


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def their_sinusoids() -> Tensor:
    """All sines, then all cosines, as the library has it."""
    table = sinusoidal_table(SHAPE["max_position_embeddings"], SHAPE["d_model"])
    return torch.cat((table[:, 0::2], table[:, 1::2]), dim=1)


OTHER_FORMS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "the embedding under the name of the output matrix": lambda t: t.update(
        {"lm_head.weight": t.pop("model.shared.weight")}
    ),
    "the embedding twice": lambda t: t.update({"lm_head.weight": t["model.shared.weight"].clone()}),
    "sinusoids": lambda t: t.update({OF_POSITIONS: their_sinusoids()}),
}


@pytest.mark.parametrize("edit", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_other_forms_of_the_same_file_are_the_same_model(edit: Any, folder: Path, run: Path, tmp_path: Path) -> None:
    changed = copied(folder, tmp_path)
    edit_tensors(changed / "model.safetensors", edit)
    found, expected = import_marian(changed, tmp_path / "run").read_model()[0], RunFolder.open(run).read_model()[0]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_of_links_as_in_a_cache_of_models_is_imported(folder: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for path in folder.iterdir():
        (tmp_path / "cache" / path.name).symlink_to(path)
    found, expected = (
        import_marian(tmp_path / "cache", tmp_path / "run").read_model()[0],
        RunFolder.open(run).read_model()[0],
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("d_model", [10, 9])
def test_models_of_other_shapes_have_the_librarys_logits(
    activation: str, d_model: int, folder: Path, tmp_path: Path
) -> None:
    changed = copied(folder, tmp_path)
    heads = d_model // 3 if d_model % 2 else 2
    shape = {"d_model": d_model, "encoder_attention_heads": heads, "decoder_attention_heads": heads}
    model = new_model(
        len(json.loads((folder / "vocab.json").read_text())), activation_function=activation, **shape
    ).eval()
    model.half().save_pretrained(changed)  # as the larger ones are published
    tokenizer = transformers.MarianTokenizer.from_pretrained(changed)
    ours = load(import_marian(changed, tmp_path / "run").path, device="cpu")
    expected, found = both_logits(model.float(), ours, tokenizer)
    torch.testing.assert_close(found[..., 2:], expected[..., 2:], rtol=0, atol=1e-3)  # sinusoids of 16 bits


def spoil(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def set_in(name: str, **changes: Any) -> Callable[[Path], object]:
    return lambda folder: change_json(folder / name, **changes)


def tensors_with(edit: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder / "model.safetensors", edit)


def missing(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def a_pipe(name: str) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return put


def endless(name: str) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return put


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSED: list[tuple[Callable[[Path], object], type, str]] = [
    (set_in("config.json", model_type="bart"), TransduceError, "model_type is 'bart'"),
    (set_in("config.json", normalize_before=True), TransduceError, "normalize_before is True"),
    (set_in("config.json", normalize_embedding=True), TransduceError, "normalize_embedding is True"),
    (set_in("config.json", scale_embedding=None), TransduceError, "scale_embedding is False"),
    (set_in("config.json", tie_word_embeddings=False), TransduceError, "tie_word_embeddings is False"),
    (set_in("config.json", activation_function="tanh"), TransduceError, "'tanh': .*swish, silu, gelu, relu"),
    (set_in("config.json", decoder_ffn_dim=29), TransduceError, r"encoder_ffn_dim \(28\) and decoder_ffn_dim \(29\)"),
    (set_in("config.json", decoder_vocab_size=3), TransduceError, r"decoder_vocab_size \(3\) differ"),
    (set_in("config.json", d_model=None), TransduceError, "model.d_model is None"),
    (set_in("config.json", d_model=21), TransduceError, r"model.d_model \(21\)"),
    (set_in("config.json", d_model=25), DamagedFileError, "shape .*, not "),
    (set_in("config.json", decoder_layers=3), DamagedFileError, "it has no model.decoder.layers.2"),
    (set_in("config.json", decoder_layers=1), TransduceError, "model.decoder.layers.1.* is in no model"),
    (set_in("config.json", eos_token_id=5), DamagedFileError, "</s> is 0, in config.json it is 5"),
    (set_in("config.json", activation_function=["swish"]), TransduceError, r"\['swish'\]: .*swish, silu"),
    (set_in("generation_config.json", max_length="30"), TransduceError, "max_length is '30': it must be a whole"),
    (set_in("generation_config.json", max_length=1), TransduceError, "max_length is 1: it must be"),
    (tensors_with(lambda t: t["model.decoder.layers.1.fc2.bias"].fill_(torch.nan)), DamagedFileError, "NaN or inf"),
    (set_in("generation_config.json", num_beams=0), TransduceError, "beam_size is 0"),
    (set_in("vocab.json", **{"<unk>": None}), DamagedFileError, "its ids should be"),
    (set_in("vocab.json", more=1000), DamagedFileError, "its ids should be"),
    (spoil("config.json", b"[1]"), DamagedFileError, "JSON object"),
    (spoil("vocab.json", b'{"</s>": 0'), DamagedFileError, "JSON object"),
    (spoil("source.spm", b""), DamagedFileError, "source.spm: not a SentencePiece model"),
    (spoil("target.spm", b"nothing"), DamagedFileError, "target.spm: not a SentencePiece model"),
    (spoil("model.safetensors", b"nothing"), DamagedFileError, "model.safetensors is damaged"),
    (lambda folder: os.truncate(folder / "model.safetensors", 3000), DamagedFileError, "model.safetensors is damaged"),
    (tensors_with(lambda t: t.pop("model.encoder.layers.0.fc1.bias")), DamagedFileError, "no model.encoder.layers.0"),
    (tensors_with(lambda t: t.pop("final_logits_bias")), DamagedFileError, "no final_logits_bias"),
    (tensors_with(lambda t: t.update({"model.more": torch.ones(20)})), TransduceError, "model.more is in no model"),
    (tensors_with(lambda t: t.update({OF_POSITIONS: torch.ones(48, 20)})), TransduceError, "is not sinusoidal"),
    (missing("config.json"), MissingInputError, "config.json: no such file"),
    (missing("vocab.json"), MissingInputError, "vocab.json: no such file"),
    (missing("target.spm"), MissingInputError, "target.spm: no such file"),
    (missing("model.safetensors"), MissingInputError, "model.safetensors: no such file"),
    (as_pickle, TransduceError, "a pickle, which is never read.*save_pretrained"),
    *((a_pipe(name), DamagedFileError, f"{name} is damaged: .* a pipe or") for name in NAMES),
    *((endless(name), DamagedFileError, f"{name} is damaged: .* or a device") for name in NAMES),
    (set_in("config.json", encoder_layers=10**9), TransduceError, "num_encoder_layers is 1000000000: .* at most 128"),
    (set_in("config.json", d_model=10**10), TransduceError, "d_model is 10000000000: .* at most 16,384"),
    (set_in("config.json", max_position_embeddings=10**9), TransduceError, "max_len is 1000000000: .* at most 65,536"),
    (set_in("vocab.json", **{"\ud800": 7}), DamagedFileError, "vocab.json is damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("spoiled", "kind", "told"), REFUSED, ids=[told for _, _, told in REFUSED])
def test_what_cannot_be_imported_is_refused_in_a_line_before_anything_is_written(
    spoiled: Callable[[Path], object], kind: type, told: str, folder: Path, tmp_path: Path
) -> None:
    changed = copied(folder, tmp_path)
    spoiled(changed)
    with pytest.raises(TransduceError, match=told) as refused:
        import_marian(changed, tmp_path / "run")
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["ctranslate2", "onnx", "huggingface"])
def test_export_refuses_an_imported_model_before_anything_is_written(
    format: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    (tmp_path / "lines").write_text("two dogs\n")
    monkeypatch.setattr(Path, "mkdir", too_late)
    found = command("export", run, "--format", format, "-o", tmp_path / "out", "--source", tmp_path / "lines")
    assert found.status == 2
    assert "use the files of the original model" in found.err


def test_without_sentencepiece_the_error_says_what_to_install(ours: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TransduceError, match=r"pip install 'transduce\[export\]'"):
        Tokenizer.from_json(ours.tokenizer.to_json()).encode_source(["dog"])


@pytest.mark.parametrize("sample", [3, pytest.param(None, marks=pytest.mark.proof)])
def test_an_import_killed_at_any_moment_leaves_nothing_or_the_run_and_can_be_given_again(
    folder: Path, run: Path, tmp_path: Path, sample: int | None
) -> None:
    def contents(place: Path) -> dict[str, bytes]:
        return {name: content for name, content in content_of(place).items() if name != "run.lock"}

    total = count_operations(lambda: import_marian(folder, tmp_path / "whole"))
    for at, is_late in moments(total, sample):
        out = tmp_path / f"{at}-{is_late}" / "out"
        assert is_killed_at(at, partial(import_marian, folder, out), is_late=is_late)
        if not out.exists():
            import_marian(folder, out)
        assert contents(out) == contents(run)
        assert [path.name for path in out.parent.iterdir()] == ["out"]
