"""The path that an MQTT session takes (`network_paths`): watched, and given up.

An idle session is pinged every quarter of `suspect`, so that there is something that can stay without acknowledgement.
The paths not in use are probed with a TCP connection to their broker, one after the other (`mqtt_servers`).
"""

from __future__ import annotations

from collections.abc import Callable

from connectors.mqtt_errors import place
from connectors.mqtt_session import Session
from connectors.mqtt_settings import MqttTarget
from connectors.network_paths import SAMPLE_EVERY_S, PathState, PathSuspected, Patience
from connectors.tcp_path import Silence, tcp_info
from pipelines.clock import Clock


async def watch(
    session: Session,
    target: MqttTarget,
    state: PathState,
    patience: Patience,
    clock: Clock,
    another: Callable[[], bool],
) -> None:
    """Until the session ends, or is ended because its path is suspicious and `another` may work."""
    silence, began_ns = Silence(), clock.mono_ns()
    oldest, oldest_ns, pinged_ns = session.oldest, began_ns, began_ns
    while session.error is None:
        await clock.sleep(SAMPLE_EVERY_S)
        now_ns = clock.mono_ns()
        if (now_oldest := session.oldest) is None or now_oldest != oldest:
            oldest, oldest_ns = now_oldest, now_ns
        silent_ns = 0
        if info := tcp_info(session.socket):
            silent_ns = silence.age_ns(info, now_ns)
            state.look(info, silent_ns, now_ns - oldest_ns)
        if silent_ns >= patience.bound_ns and another():
            patience.given_up(now_ns - began_ns)
            state.note(False)
            text = f"nothing acknowledged for {silent_ns / 1e6:.0f} ms (suspect): the next path is tried"
            session.end(PathSuspected(f"{place(target)}: {text}"))
        elif oldest is None and now_ns - pinged_ns >= patience.bound_ns // 4:
            pinged_ns = now_ns
            session.ping()
