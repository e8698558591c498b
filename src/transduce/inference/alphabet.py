"""The alphabet of outputs: characters of the training targets and of the text at hand, each of them whole.

A vocabulary with bytes can write any text, and label smoothing gives every byte some probability in any place. So ids
that neither training nor the text at hand needs are never chosen, and the bytes of a character follow one another. What
remains is not renormalized: the log-probability of an output stays the model's.
"""

import math
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transduce.data.seen import Seen
from transduce.text.config import FIRST_BYTE_ID, NUM_FIXED_IDS
from transduce.text.tokenizer import Tokenizer

LONGEST_CHARACTER = 4  # bytes
MOST_UNFINISHED = LONGEST_CHARACTER - 1
_LEADS = {2: 0xC0, 3: 0xE0, 4: 0xF0}  # the first byte of a character of so many bytes is at least this one
_MOST_SPANS = 16  # of ids that are masked one after another: faster than a bias on all, up to about so many


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The ids that may follow: where a character begins, those not banned; within one, bytes that complete it."""

    token_bytes: Sequence[bytes]  # by id
    banned: frozenset[int]
    characters: frozenset[str] = frozenset()
    # Characters of several bytes that are written byte by byte, and beginnings of them; None: all that UTF-8 has.
    spelled: frozenset[bytes] | None = frozenset()
    _biases: dict[bytes, Tensor] = field(default_factory=dict, init=False, repr=False)  # of `bias_within` so far

    @classmethod
    def of(cls, tokenizer: Tokenizer, seen: Seen | None) -> "Alphabet | None":
        """The alphabet of a model: any character, if its training is not recorded; None if it has no bytes."""
        if tokenizer.config.target == "sentencepiece":
            return None
        token_bytes = tokenizer.target_bytes()
        if seen is None:
            # No character begins with these bytes; a newline would end the line that an output is.
            no_leads = [ord("\n"), *range(0x80, 0xC2), *range(0xF5, 0x100)]
            banned = frozenset([tokenizer.pad_id, tokenizer.bos_id, *(FIRST_BYTE_ID + byte for byte in no_leads)])
            return cls(token_bytes, banned, spelled=None)
        nothing = cls(token_bytes, frozenset(range(len(token_bytes))) - {tokenizer.eos_id})
        # Where tokens carry the space before a word, the first one of a line does, too.
        characters = seen.target_characters.union("" if tokenizer.config.target == "characters" else " ")
        return nothing.including(characters, (c for c in characters if seen.target_bytes.issuperset(c.encode())))

    def including(self, characters: Iterable[str], in_bytes: Iterable[str]) -> "Alphabet":
        """The alphabet with more characters: of tokens, and such as are written in bytes."""
        spelled = [character.encode() for character in in_bytes]
        characters = self.characters.union(characters)
        if self.spelled is None or (characters == self.characters and not spelled):
            return self
        tokens = (i for i in self.banned if i >= NUM_FIXED_IDS)
        freed = {i for i in tokens if characters.issuperset(self.token_bytes[i].decode())}
        freed |= {FIRST_BYTE_ID + text[0] for text in spelled}
        beginnings = (text[:length] for text in spelled for length in range(2, len(text) + 1))
        return replace(self, banned=self.banned - freed, characters=characters, spelled=self.spelled.union(beginnings))

    def including_ids(self, ids: Sequence[int]) -> "Alphabet":
        """The alphabet with what these ids, a text's, write."""
        text = b"".join(self.token_bytes[i] for i in ids).decode()
        return self.including(text, b"".join(self.token_bytes[i] for i in ids if i < NUM_FIXED_IDS).decode())

    @property
    def longest_character(self) -> int:
        """The most ids that one character takes."""
        return 1 if self.spelled == frozenset() else LONGEST_CHARACTER

    @cached_property
    def spans(self) -> list[slice]:
        """The banned ids, neighbors together."""
        ends = (i + 1 for i in sorted(self.banned) if i + 1 not in self.banned)
        return list(map(slice, (i for i in sorted(self.banned) if i - 1 not in self.banned), ends))

    @cached_property
    def bias(self) -> Float[Tensor, " vocab"]:
        """The term added to scores where a character begins: 0, or -inf for banned ids."""
        return torch.zeros(len(self.token_bytes)).index_fill(0, torch.tensor(sorted(self.banned)), -math.inf)

    def bias_within(self, begun: bytes) -> Float[Tensor, " 256"]:
        """The term added to the scores of the second and later bytes of a character: 0, or -inf."""
        if begun not in self._biases:
            texts = [begun + bytes([byte]) for byte in range(256)]
            # Python reads bytes that begin a character as one error, and others as several.
            if self.spelled is None:
                fits = [len(text.decode(errors="replace")) == 1 for text in texts]
            else:
                fits = [text in self.spelled for text in texts]
            self._biases[begun] = torch.tensor(fits).log()
        return self._biases[begun]

    def tables(self, num_ids: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `restrict` does as tables.

        A state is what a text ends with: 0 a whole character, the others the bytes of one that is begun. For each state
        the term added to the scores of what follows (states, num_ids), and the state after each byte (states, 256); by
        how much room is left, the term added to those of controls and bytes.
        """
        assert self.spelled is not None
        begun = {text[:length] for text in self.spelled for length in range(1, len(text))}
        states = {text: number for number, text in enumerate([b"", *sorted(begun)])}
        biases = torch.full((len(states), num_ids), -math.inf)
        biases[0] = 0.0
        biases[0, : len(self.bias)] = self.bias
        for text, number in states.items():
            if text:
                biases[number, FIRST_BYTE_ID:NUM_FIXED_IDS] = self.bias_within(text)
        following = [[states.get(text + bytes([byte]), 0) for byte in range(256)] for text in states]
        by_room = torch.zeros(LONGEST_CHARACTER + 2, NUM_FIXED_IDS)
        for room, lead in _LEADS.items():
            by_room[room, FIRST_BYTE_ID + lead :] = -math.inf
        return biases, torch.tensor(following), by_room


def restrict(
    log_probs: Float[Tensor, "batch beam vocab"],
    alphabets: Sequence[Alphabet],
    history: Int[Tensor, "batch beam len"],
    rooms: Sequence[int],
) -> None:
    """Set to -inf, in place, what is no part of a whole character of the sentence's alphabet; see `enforce`."""
    distinct, begun = set(alphabets), dict[tuple[int, int], bytes]()
    if any(alphabet.longest_character > 1 for alphabet in distinct):
        begun = _begun_characters(history[..., -MOST_UNFINISHED:])
        for row, room in enumerate(rooms):
            if room in _LEADS:  # beside the end there is no room for all bytes of such a character
                log_probs[row, :, FIRST_BYTE_ID + _LEADS[room] : NUM_FIXED_IDS] = -math.inf
    places = tuple(zip(*begun, strict=True))  # rows, ranks
    byte_scores = log_probs[..., FIRST_BYTE_ID:NUM_FIXED_IDS][places].clone() if begun else None
    if len(distinct) == 1 and len(alphabets[0].spans) <= _MOST_SPANS:
        for span in alphabets[0].spans:
            log_probs[..., span] = -math.inf
    else:
        bias = torch.stack([alphabet.bias for alphabet in alphabets]).to(log_probs.device)
        log_probs[..., : bias.size(1)] += bias[:, None]
    if byte_scores is not None:
        biases = [alphabets[row].bias_within(text) for (row, _), text in begun.items()]
        log_probs[places] = -math.inf
        log_probs[..., FIRST_BYTE_ID:NUM_FIXED_IDS][places] = byte_scores + torch.stack(biases).to(log_probs.device)


@lru_cache(1 << 14)
def unfinished(*last: int) -> bytes:
    """The bytes of a character that a text ends within, given its last ids; none where it ends with a whole one."""
    decoder = getincrementaldecoder("utf-8")("ignore")
    decoder.decode(bytes(i - FIRST_BYTE_ID if FIRST_BYTE_ID <= i < NUM_FIXED_IDS else 0 for i in last))
    return decoder.getstate()[0]


def _begun_characters(tails: Int[Tensor, "batch beam last"]) -> dict[tuple[int, int], bytes]:
    """The bytes of a character that hypotheses end within, by row and rank."""
    is_byte = (tails[..., -1:] >= FIRST_BYTE_ID + 0x80) & (tails[..., -1:] < NUM_FIXED_IDS)
    if not is_byte.any():  # nearly always
        return {}
    rows, ranks, _ = is_byte.nonzero().T.tolist()
    ends = zip(rows, ranks, tails[rows, ranks].tolist(), strict=True)
    return {(row, rank): text for row, rank, ids in ends if (text := unfinished(*ids))}
