"""The disk lane under a seeded simulator: the real journal, lane, cursor and pump over faulty files and a fake clock.

Each seed is a few lives of one lane. A life is random actions (appends from several sources, syncs, reads, commits in
any order, rewinds, positions restored, time, broker answers) with weights that are random per seed, and ends by a stop,
a `kill -9`, a power cut (also in the middle of any file operation), a failed sync, or a byte that goes bad meanwhile.
What must hold is in `World`: nothing that was synced is lost; nothing comes back that the cursor knew as delivered;
order, also of live data and of the backlog beside it; a seq is given once; drops are counted, and in the ledger, to the
row, never out of a hand; no foreign position is believed; no more
disk than it was given; the machine is never asked to leave out what the lane lacks.

Planted mistakes (`mutants.MUTANTS`), each of which must be found: no_sync_before_rolling, torn_end_kept,
torn_end_not_cut, footer_before_the_sync, acknowledges_beyond_the_span, cursor_leads, cursor_in_place, no_folder_sync,
checksum_over_the_body_only, no_checksum, sync_does_nothing, sync_tried_again, seq_given_again, drops_out_of_a_hand,
drops_uncounted, drops_the_newest_for_the_oldest, believes_foreign_positions, forgets_origins, more_than_its_share,
damage_stops_it, gaps_untold, backlog_taken_for_live.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from tests.sim.mutants import MUTANTS
from tests.sim.world import World

SEEDS = 1500
SEEDS_PER_MUTANT = 1500
"""A mistake must be found within as many."""


def run_seed(seed: int) -> None:
    """A failure says which seed, and what happened."""
    world = World(Random(seed))
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # tasks of a process that is gone
    try:
        loop.run_until_complete(_in_time(world.play(lives=4, actions=25)))
    except BaseException as error:
        error.add_note(f"seed {seed}: " + "; ".join(world.log[-40:]))
        raise
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def _in_time(play: Coroutine[Any, Any, None]) -> None:
    """What waits for ever is a failure with its seed, not a run without end."""
    async with asyncio.timeout(60):
        await play


def test_seeds() -> None:
    """The first SEEDS, the same on every machine; with GATEWAY_SIM_SECONDS as many as fit, from GATEWAY_SIM_SEED on."""
    seconds, first = float(os.environ.get("GATEWAY_SIM_SECONDS", "0")), int(os.environ.get("GATEWAY_SIM_SEED", "0"))
    begun, seed = time.monotonic(), first
    while seed < first + SEEDS if not seconds else time.monotonic() < begun + seconds:
        run_seed(seed)
        seed += 1
    print(f"{seed - first} seeds, {(seed - first) / (time.monotonic() - begun):.0f} a second")


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
