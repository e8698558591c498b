"""What outputs are made of: against all texts over an alphabet, and against Python's own reading of UTF-8."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from test_search import EOS, SPECIAL, Script, log_probs, uniform_numbers

from small_model import random_predictor
from transduce.data.seen import Seen
from transduce.inference.alphabet import Alphabet, unfinished
from transduce.inference.beam_search import beam_search
from transduce.inference.config import DecodingConfig
from transduce.inference.constraints import Constraints, ForbiddenText, Rules
from transduce.inference.predictor import Predictor
from transduce.inference.rules import rules_of
from transduce.inference.search import greedy_search, sample
from transduce.model.config import TransformerConfig
from transduce.runs.run import write_whole_characters
from transduce.text.config import NUM_FIXED_IDS, TokenizerConfig
from transduce.text.tokenizer import Tokenizer

CHARACTERS = TokenizerConfig(source="characters", target="characters", joint=False)
LETTERS = Tokenizer.learn(CHARACTERS, ["abx"], ["ab"])  # no token for any other letter
# Of a fine-tuned model: b is a token, and was in no target.
SEEN = Seen(frozenset("abx"), frozenset("aäö日"), 5, frozenset("äö日".encode()))
TINY = TransformerConfig(d_model=16, d_ff=24, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, max_len=40)


def whole(predictor: Predictor) -> Predictor:
    write_whole_characters(predictor, predictor.report)
    return predictor


def predictor_of(tokenizer: Tokenizer, seen: Seen | None, *, seed: int = 1, **decoding: object) -> Predictor:
    """A model that has learnt nothing: it likes bytes as much as any token."""
    bare = random_predictor(TINY, tokenizer, DecodingConfig(**decoding), seed=seed)
    return Predictor(bare.model, tokenizer, bare.decoding, seen=seen)


def random_score(seed: int):
    def score(sentence: int, prefix: tuple[int, ...]) -> list[float]:
        random = np.random.default_rng([seed, sentence, *prefix])
        return (2 * random.standard_normal(LETTERS.num_target_ids)).tolist()

    return score


def every_text(characters: str, max_len: int) -> list[list[int]]:
    """The ids of every text over these characters that has room, with its end."""
    texts = ("".join(letters) for length in range(max_len) for letters in product(characters, repeat=length))
    return [ids[:-1] for ids in LETTERS.encode_target([*texts]) if len(ids) <= max_len]


def log_prob_of(score, sentence: int, ids: list[int]) -> float:
    ends = [*ids, EOS]
    return sum(log_probs(score(sentence, (SPECIAL.bos, *ends[:n])))[i] for n, i in enumerate(ends))


def test_a_wide_beam_is_exhaustive_search_among_whole_characters_of_the_alphabet() -> None:
    alphabet = Alphabet.of(LETTERS, SEEN)
    own = alphabet.including("bß😀", "ß😀")
    config, max_lens = DecodingConfig(beam_size=200, length_penalty=0.0), [5, 4]
    for seed in range(3):
        script = Script(random_score(seed), 2)
        rules = [Rules(eos_id=EOS, alphabet=alphabet), Rules(eos_id=EOS, alphabet=own)]
        limits = torch.tensor(max_lens)
        outputs = beam_search(script.step, script, limits, SPECIAL, config=config, num_best=5, rules=rules)
        for sentence, characters in enumerate(("aäö日", "aäö日bß😀")):
            texts = every_text(characters, max_lens[sentence])
            ranked = sorted(texts, key=lambda ids: -log_prob_of(random_score(seed), sentence, ids))[:5]
            assert [output.ids for output in outputs[sentence]] == ranked
            expected = [log_prob_of(random_score(seed), sentence, ids) for ids in ranked]
            assert [output.log_prob for output in outputs[sentence]] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beam_size", [0, 1, 3])
def test_outputs_hold_their_constraints_and_whole_characters_at_any_length(beam_size: int) -> None:
    """`beam_size` 0 stands for sampling."""
    alphabet = Alphabet.of(LETTERS, SEEN)
    token_bytes = LETTERS.target_bytes()
    forbidden = tuple(ForbiddenText(text.encode(), token_bytes) for text in ("aä", "日日"))
    required = tuple(tuple(ids[:-1]) for ids in LETTERS.encode_target(["日a"])) if beam_size == 3 else ()
    config = DecodingConfig(beam_size=max(1, beam_size), temperature=float(not beam_size))
    limits = torch.arange(5, 13)
    for seed in range(8):
        script = Script(random_score(seed), len(limits), max(1, beam_size))
        rules = [Rules(eos_id=EOS, alphabet=alphabet, forbidden=forbidden, required=required)] * len(limits)
        arguments = (script.step, script, limits, SPECIAL)
        if beam_size == 3:
            outputs = [best for best, *_ in beam_search(*arguments, config=config, rules=rules)]
        elif beam_size:
            outputs = greedy_search(*arguments, config=config, rules=rules)
        else:
            uniforms = uniform_numbers(len(limits), 12, seed=seed)
            outputs = sample(*arguments, config=config, rules=rules, uniforms=uniforms)
        for output in outputs:
            # What is forbidden may leave nothing but an end within a character, which no text has.
            ids = output.ids[: len(output.ids) - len(unfinished(*output.ids[-3:]))]
            text = b"".join(token_bytes[i] for i in ids).decode()  # raises if it is not UTF-8
            assert set(text) <= set("aäö日")
            assert "aä" not in text
            assert "日日" not in text
            assert not required or "日a" in text


@pytest.mark.parametrize("joint", [True, False])
def test_samples_of_a_model_have_its_targets_characters_alone(joint: bool) -> None:
    sources, targets = ["abc def", "fed cab"] * 4, ["AB1 CD", "DC BA2"] * 4
    for kind in ("characters", "words", "bpe", "unigram"):
        config = TokenizerConfig(source=kind, target=kind, joint=joint, vocab_size=300)
        tokenizer = Tokenizer.learn(config, sources, targets)
        seen = Seen(frozenset("abcdef "), frozenset().union(*targets), 8, target_bytes=frozenset())
        predictor = predictor_of(tokenizer, seen, temperature=1.0)
        ids = [i for n_best in predictor.predict_n_best(["abc", "fed ab"] * 20, 2) for best in n_best for i in best.ids]
        assert len(ids) > 200
        assert min(ids) >= NUM_FIXED_IDS, "no target was spelled in bytes"
        free = Predictor(predictor.model, tokenizer, predictor.decoding)
        assert min(i for best in free.predict_n_best(["abc"] * 20, 1) for i in best[0].ids) < NUM_FIXED_IDS


def test_a_character_that_no_training_source_had_can_be_copied_and_mates_cannot_write_it() -> None:
    predictor = predictor_of(LETTERS, SEEN, temperature=1.0, max_len_extra=20)
    texts = ["abß", "ab", "a\x1b\x00b"] * 100
    together = predictor.predict(texts)
    assert [set().union(*together[row::3]) - set("aäö日") for row in range(3)] == [{"ß"}, set(), set()]
    predictor.decoding = DecodingConfig(beam_size=3)
    assert predictor.predict(texts[:6]) == [predictor.predict([text])[0] for text in texts[:6]]


def test_a_run_with_no_record_writes_utf_8_all_the_same_and_says_that_it_has_none() -> None:
    reports: list[str] = []
    predictor = predictor_of(LETTERS, None, temperature=1.0, max_len_extra=20)
    predictor.report = reports.append
    texts = ["ab", "xx"] * 50
    assert any("\ufffd" in output for output in predictor.predict(texts))
    outputs = whole(predictor).predict_n_best(texts, 2)
    token_bytes = LETTERS.target_bytes()
    written = [b"".join(token_bytes[i] for i in best.ids).decode() for n_best in outputs for best in n_best]
    assert not any({"\n", "\ufffd"} & set(text) for text in written)
    assert {len(character.encode()) for character in "".join(written)} == {1, 2, 3, 4}
    assert len(reports) == 1
    assert "no record" in reports[0]


def test_the_log_probability_of_an_output_stays_the_models() -> None:
    predictor = predictor_of(LETTERS, SEEN, beam_size=3, length_penalty=0.0)
    texts = ["ab", "xxa"]
    outputs = [n_best[0] for n_best in predictor.predict_n_best(texts, 1)]
    forced = [sum(annotation.log_probs) for annotation in predictor.annotate(texts, outputs)]
    assert [output.log_prob for output in outputs] == pytest.approx(forced, rel=1e-4)


@pytest.mark.parametrize("kind", ["characters", "words", "bpe", "unigram"])
@pytest.mark.parametrize("decoding", [{"beam_size": 1}, {"beam_size": 4}, {"temperature": 1.0}], ids=str)
def test_an_output_begins_with_the_text_of_its_prefix(kind: str, decoding: dict[str, float]) -> None:
    targets = ["Ich habe ein Haus", "Ich hatte es", "Er hat ein Auto  dort", "日本 ist weit"] * 5
    tokenizer = Tokenizer.learn(
        TokenizerConfig(source="characters", target=kind, joint=False, vocab_size=320), ["ab"], targets
    )
    seen = Seen(frozenset("ab"), frozenset().union(*targets), 5, target_bytes=frozenset())
    prefixes = ["Ich ha", "Ich habe", "Ich habe ", "I", " ", "Er  ", "日", "日本 i", "Zürich", "Wir "]
    for made in (seen, None):
        predictor = whole(predictor_of(tokenizer, made, max_len_extra=30, **decoding))
        outputs = predictor.predict(["ab"] * len(prefixes), [Constraints(prefix=prefix) for prefix in prefixes])
        for prefix, output in zip(prefixes, outputs, strict=True):
            assert output.startswith(prefix)
            assert "\ufffd" not in output


def test_a_prefix_that_ends_within_a_word_or_with_a_space_goes_on_as_the_model_likes_it() -> None:
    """By a model that has learnt one sentence by heart, each word as one token with the space before it."""
    targets = ["Ich habe ein Haus"] * 5
    tokenizer = Tokenizer.learn(
        TokenizerConfig(source="characters", target="bpe", joint=False, vocab_size=400), ["ab"], targets
    )
    (ids,) = tokenizer.encode_target(targets[:1])
    assert tokenizer.target_tokens(ids) == ["▁Ich", "▁habe", "▁ein", "▁Haus", "</s>"]

    def by_heart(_sentence: int, prefix: tuple[int, ...]) -> list[float]:
        logits = [0.0] * tokenizer.num_target_ids
        if list(prefix[1:]) == ids[: len(prefix) - 1]:
            logits[ids[len(prefix) - 1]] = 9.0
        return logits

    predictor = predictor_of(tokenizer, Seen(frozenset("ab"), frozenset(targets[0]), 5, frozenset()))
    for prefix in ("I", "Ich", "Ich ", "Ich ha", "Ich habe ", "Ich habe ein H"):
        rules = rules_of(Constraints(prefix=prefix), predictor.decoding, predictor.tokenizer, predictor.alphabet)
        script = Script(by_heart, 1)
        (output,) = greedy_search(
            script.step, script, torch.tensor([9]), SPECIAL, config=predictor.decoding, rules=[rules]
        )
        assert output.ids == ids[:-1], prefix


def test_a_required_text_with_spaces_at_its_ends_is_a_word() -> None:
    targets = ["ein Auto fahren", "ein Autobahn fahren", "Autobahn"] * 5
    tokenizer = Tokenizer.learn(
        TokenizerConfig(source="characters", target="bpe", joint=False, vocab_size=320), ["ab"], targets
    )
    seen = Seen(frozenset("ab"), frozenset().union(*targets), 5, frozenset())
    for seed in range(5):
        predictor = predictor_of(tokenizer, seen, seed=seed, beam_size=5, max_len_extra=9)
        for output in predictor.predict(["ab", "b", "a"], [Constraints(required=(" Auto ",))] * 3):
            assert " Auto " in f" {output} "
            assert "  Auto" not in output


def test_probabilities_are_finite() -> None:
    predictor = predictor_of(LETTERS, SEEN, beam_size=3)
    assert all(math.isfinite(best.log_prob) for n_best in predictor.predict_n_best(["ab"], 3) for best in n_best)
