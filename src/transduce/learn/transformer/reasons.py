"""The three reasons of chapter 10, each as something to look at: chains of operations, distance, quality by steps."""

from dataclasses import dataclass
from pathlib import Path

import torch

from transduce.learn.build_it import pieces
from transduce.learn.ledger import FAST, LONGER
from transduce.learn.measuring import longest_chain
from transduce.learn.recurrent import RecurrentConfig, RecurrentSeq2Seq, as_large_as, num_parameters
from transduce.learn.retraining import BETTER, GIVEN, Results, Run
from transduce.learn.why_it_matters.experiments import GRU, LOOKING, TRANSFORMER
from transduce.model.config import VocabularySizes

_NUM_IDS = 20
_NETWORKS = (TRANSFORMER, GRU, LOOKING)


@dataclass(frozen=True)
class Chains:
    """How many operations wait for one another in one pass over source and target, both of the same length."""

    lengths: tuple[int, ...]
    operations: dict[str, tuple[int, ...]]  # by network
    parameters: dict[str, int]


def chains(*, fast: bool = FAST) -> Chains:
    """The reader's Transformer beside a GRU with as many parameters, counted in the graph that autograd keeps."""
    lengths = (4, 8, 16) if fast else (4, 8, 16, 32, 64, 128)
    torch.manual_seed(1)
    model = pieces.Transformer(_NUM_IDS, _NUM_IDS, 32, 4, 64, 2, 0.0)
    vocabulary = VocabularySizes.joint(_NUM_IDS)
    gru = as_large_as(num_parameters(model), lambda width: RecurrentSeq2Seq(RecurrentConfig(d_model=width), vocabulary))
    operations: dict[str, list[int]] = {TRANSFORMER: [], GRU: []}
    for length in lengths:
        ids = torch.randint(pieces.END + 1, _NUM_IDS, (1, length), generator=torch.Generator().manual_seed(1))
        operations[TRANSFORMER].append(longest_chain(model(ids, ids)))
        operations[GRU].append(longest_chain(gru(ids, ids)))
    sizes = {TRANSFORMER: num_parameters(model), GRU: num_parameters(gru)}
    return Chains(lengths, {name: tuple(counts) for name, counts in operations.items()}, sizes)


@dataclass(frozen=True)
class QualityBySteps:
    """English words pronounced by three networks of one size, as the ledger's rows have it."""

    losses: dict[str, dict[int, float]]  # nats per phoneme at the end of a training, by network and steps
    behind: dict[str, dict[int, float]]  # points of phoneme error more than the Transformer's, by network and steps


def quality_by_steps(ledger: Path) -> QualityBySteps:
    """Reads what was trained for the ledger at `ledger`; nothing is trained here."""
    results = Results(ledger.with_name("retrainings.jsonl"))
    losses: dict[str, dict[int, float]] = {name: {} for name in _NETWORKS}
    behind: dict[str, dict[int, float]] = {GRU: {}, LOOKING: {}}
    for run in (Run("why_it_matters.quality.quality", 1, GIVEN), Run("why_it_matters.quality.quality", LONGER, BETTER)):
        trainings = results.trainings.get(run, [])
        for number, row in enumerate(trainings):
            losses[_NETWORKS[number // 2]].setdefault(int(row["steps"]), row["loss"])
        if run in results.values:
            steps = int(trainings[-1]["steps"])
            behind[GRU][steps] = results.values[run]["gru_excess"]
            behind[LOOKING][steps] = results.values[run]["attention_excess"]
    return QualityBySteps(losses, behind)
