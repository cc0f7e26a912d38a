"""The disk lane under a seeded simulator: the real journal, lane, cursor and pump over faulty files and a fake clock.

Each seed is a few lives of one lane. A life is random actions (appends from several sources, syncs, reads, commits in
any order, rewinds, positions restored, time, broker answers) with weights that are random per seed, and ends by a stop,
a `kill -9`, a power cut (also in the middle of any file operation), a failed sync, or a byte that goes bad meanwhile.
What must hold is in `World`: nothing that was synced is lost; nothing comes back that the cursor knew as delivered;
order, also of live data and of the backlog beside it; a seq is given once; drops are counted, and in the ledger, to the
row, never out of a hand; no foreign position is believed; no more disk than it was given; the machine is never asked to
leave out what the lane lacks. To a sink that keeps the position, exactly once: nothing that it has is sent to it again,
nothing that it lacks is taken for delivered, and no power cut makes the machine send it again.

Planted mistakes (`mutants.MUTANTS`), each of which must be found: no_sync_before_rolling, torn_end_kept,
torn_end_not_cut, footer_before_the_sync, acknowledges_beyond_the_span, cursor_leads, cursor_in_place, no_folder_sync,
checksum_over_the_body_only, no_checksum, sync_does_nothing, sync_tried_again, seq_given_again, drops_out_of_a_hand,
drops_uncounted, drops_the_newest_for_the_oldest, believes_foreign_positions, forgets_origins, more_than_its_share,
damage_stops_it, gaps_untold, backlog_taken_for_live, goes_on_after_a_failed_sync, error_hides_the_cancellation,
delivers_what_is_not_synced, position_beyond_the_span, two_transactions_at_a_time.
"""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from random import Random

import pytest

from tests.sim.loop import SimLoop
from tests.sim.mutants import MUTANTS
from tests.sim.world import World

SEEDS_PER_STEP = 250
SEEDS_PER_MUTANT = 3000
"""A mistake must be found within as many."""


def run_seed(seed: int) -> None:
    """A failure says which seed, and what happened."""
    world = World(Random(seed))
    try:
        SimLoop().run(world.play(lives=3, actions=10))
    except BaseException as error:
        error.add_note(f"seed {seed}: " + "; ".join(world.log[-40:]))
        raise


def run_seeds(first: int, end: int) -> float:
    """All of them; CPU seconds."""
    began_s = time.process_time()
    for seed in range(first, end):
        run_seed(seed)
    return time.process_time() - began_s


def forget_imports() -> None:
    """Of garbage collection: what was imported is not looked at again and again."""
    gc.collect()
    gc.freeze()


def test_seeds() -> None:
    """GATEWAY_SIM_SEEDS (default 20,000) from GATEWAY_SIM_SEED (default 0) on, in as many processes as there are."""
    count, first = int(os.environ.get("GATEWAY_SIM_SEEDS", "20000")), int(os.environ.get("GATEWAY_SIM_SEED", "0"))
    firsts = range(first, first + count, SEEDS_PER_STEP)
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), forget_imports) as pool:
        spent_s = sum(pool.map(run_seeds, firsts, [min(at + SEEDS_PER_STEP, first + count) for at in firsts]))
    print(f"{count} seeds, {count / spent_s:.0f} a second and core")


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each planted mistake breaks what must hold, within `SEEDS_PER_MUTANT` seeds."""
    MUTANTS[name](monkeypatch)
    for seed in range(SEEDS_PER_MUTANT):
        try:
            run_seed(seed)
        except Exception as error:  # noqa: BLE001  # whatever goes wrong, it was seen
            print(f"{name}: seed {seed}: {type(error).__name__} {error}")
            return
    pytest.fail(f"{name} was not found in {SEEDS_PER_MUTANT} seeds")
