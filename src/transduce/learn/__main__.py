"""Runs the experiments of claims alone: `python -m transduce.learn [CLAIM ...] [--fast]`; without a name, lists all."""

import argparse
import sys

import torch

from transduce.devices.cpu import speed_up_cpu
from transduce.devices.machine import usable_cores
from transduce.errors import TransduceError
from transduce.learn.ledger import ClaimFailed, Ledger


def main() -> int:
    """Settles the claims that are named; exit status 1 if one does not come out as expected."""
    parser = argparse.ArgumentParser(prog="python -m transduce.learn", description="Runs the experiments of claims.")
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="its name; without one, all are listed")
    parser.add_argument("--fast", action="store_true", help="at the smallest size that shows which way it goes")
    arguments = parser.parse_args()
    speed_up_cpu()
    status = 0
    try:
        ledger = Ledger.load()
        for claim in [ledger[name] for name in arguments.claims]:
            # One thread, as in `make notebooks`: small networks gain nothing by more. What measures time takes all.
            torch.set_num_threads(usable_cores() if claim.is_timing else 1)
            try:
                print(claim.run(fast=arguments.fast), flush=True)
            except ClaimFailed as failed:
                print(failed, flush=True)
                status = 1
    except TransduceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if not arguments.claims:
        for claim in ledger.claims.values():
            print(f"{claim.name:32} {claim.paper:8} {claim.experiment}")
    return status


if __name__ == "__main__":
    sys.exit(main())
