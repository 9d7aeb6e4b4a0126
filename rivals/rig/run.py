"""One run: every measure on every engine, round after round, in another order each time.

Within a round the engines take turns measure by measure, so that what the machine does in between meets them alike. An
engine that fails a measure loses that sample, with the reason; the run goes on.
"""

from __future__ import annotations

import random
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rig import peer, process
from rig.engine import CEILING, PORT, PROXY, STARTED_S, Instance
from rig.measures import MTU, Context, Measure
from rig.network import SERVER_WIRE, Network, network
from rig.network import run as call
from rig.process import RigError
from rig.settle import Settling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rig.engine import Engine

KINDS = 3
"""Instances of an engine: MTU 8500, MTU 1500, and one that is started anew."""
DANTE = """logoutput: stderr
internal: {address} port = 1080
external: {address}
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: root
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 }}
"""
"""Lets everybody in, within the namespace."""


@dataclass(frozen=True)
class Sample:
    """One measure of one engine in one round."""

    round: int
    measure: str
    engine: str
    numbers: dict[str, float]
    error: str | None
    busy: float
    """Share of all CPUs that was in use."""
    stolen: float
    """Share that the hypervisor took."""
    settled: bool
    """Whether its streams were gone soon after it; if not, the engine was started anew."""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    engines: list[Engine]
    measures: list[Measure]
    rounds: int
    seconds: float
    warmup: float
    seed: int
    server: str
    congestion: str
    """TCP's congestion control in both namespaces."""
    t2s: Path
    folder: Path
    profile: bool = False
    rtt_ms: float = 0.0
    """Round trip time between client and server; 0: a virtual link."""


@dataclass
class Outcome:
    """What came of it."""

    samples: list[Sample] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)

    def column(self, measure: str, metric: str, engine: str) -> dict[int, float]:
        """Return a number by round."""
        return {
            sample.round: sample.numbers[metric]
            for sample in self.samples
            if (sample.measure, sample.engine) == (measure, engine) and metric in sample.numbers
        }

    def errors(self) -> dict[tuple[str, str], list[str]]:
        """Return what failed: reasons by engine and measure."""
        found: dict[tuple[str, str], list[str]] = {}
        for sample in self.samples:
            if sample.error is not None:
                found.setdefault((sample.engine, sample.measure), []).append(sample.error)
        return found

    def unsettled(self) -> dict[tuple[str, str], int]:
        """Return how often an engine still held streams that nobody wanted any more, by engine and measure."""
        found: dict[tuple[str, str], int] = {}
        for sample in self.samples:
            if not sample.settled:
                found[sample.engine, sample.measure] = found.get((sample.engine, sample.measure), 0) + 1
        return found

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON wants it."""
        return {"samples": [asdict(sample) for sample in self.samples], "deaths": self.deaths}


def server_command(plan: Plan) -> list[str]:
    """Return the command line of the SOCKS5 server."""
    if plan.server == "t2s":
        return [str(plan.t2s), "proxy", "--listen", PROXY, "--log-level", "error"]
    program = shutil.which("microsocks" if plan.server == "microsocks" else "danted")
    if program is None:
        raise RigError(f"the server {plan.server} is not installed (Debian: microsocks, dante-server)")
    if plan.server == "microsocks":
        return [program, "-i", SERVER_WIRE, "-p", "1080"]
    config = plan.folder / "danted.conf"
    config.write_text(DANTE.format(address=SERVER_WIRE), encoding="utf-8")
    return [program, "-f", str(config)]


@contextmanager
def world(plan: Plan, tool: Path, instances: list[Instance]) -> Iterator[Network]:
    """Make the network with server and services; instances that were started in it end with it."""
    with ExitStack() as stack:
        made = stack.enter_context(network(plan.rtt_ms, plan.congestion, plan.folder))
        command = server_command(plan)
        proxy_log, log = plan.folder / "proxy.log", plan.folder / "services.log"
        proxy = stack.enter_context(process.running(made.server, command, proxy_log))
        listens = lambda: f"{SERVER_WIRE}:1080" in _listeners(made)  # noqa: E731 - one line, used once
        process.until(listens, proxy, proxy_log, "the SOCKS5 server did not start", STARTED_S)
        targets = [made.target(number) for number in range(1, KINDS * len(plan.engines) + 1)]
        services = stack.enter_context(process.running(made.server, peer.serve(tool, targets, PORT), log))
        ready = lambda: "ready" in log.read_text(encoding="utf-8")  # noqa: E731 - one line, used once
        process.until(ready, services, log, "the services did not start", STARTED_S)
        try:
            yield made
        finally:
            for instance in instances:
                instance.stop()


def _listeners(made: Network) -> str:
    return call(["ip", "netns", "exec", made.server, "ss", "-Hltn"]).stdout


def run(plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Run it all."""
    tool = peer.build()
    outcome = Outcome()
    made: dict[tuple[str, int, bool], Instance] = {}
    live: list[Instance] = []
    draw = random.Random(plan.seed)
    with world(plan, tool, live) as net:
        let_go = partial(streams_gone, Settling.of(net), live)
        context = Context(net, tool, plan.seconds, plan.warmup, plan.folder, plan.profile)
        for at, engine in enumerate(plan.engines):
            for kind, key in enumerate(((MTU, False), (1500, False), (MTU, True)), start=1):
                made[engine.name, *key] = Instance(engine, net, KINDS * at + kind, key[0], plan.folder)
        live.extend(made.values())
        for round_ in range(1, plan.rounds + 1):
            for measure in plan.measures:
                if measure.rounds_max is not None and round_ > measure.rounds_max:
                    continue
                order = [engine for engine in plan.engines if not (measure.fresh and engine.name == CEILING)]
                draw.shuffle(order)
                for engine in order:
                    instance = made[engine.name, measure.mtu, measure.fresh]
                    sample = take(context, let_go, measure, instance, round_)
                    outcome.samples.append(sample)
                    outcome.deaths[engine.name] = sum(i.deaths for i in live if i.engine.name == engine.name)
                    say(line(sample, plan.rounds))
    return outcome


def streams_gone(settling: Settling, live: Sequence[Instance], instance: Instance) -> bool:
    """Wait until streams are gone, if need be by stopping who holds them; return whether that was not `instance`."""
    if settling.wait():
        return True
    instance.stop()
    if settling.wait():
        return False
    # Somebody else's, whose own measure had left too few to be seen.
    for other in live:
        other.stop()
    settling.wait()
    return True


def take(
    context: Context, let_go: Callable[[Instance], bool], measure: Measure, instance: Instance, round_: int
) -> Sample:
    """Measure once."""
    all_before, idle_before, stolen_before = process.machine_ticks()
    numbers: dict[str, float] = {}
    error = None
    try:
        if not measure.fresh:
            instance.ensure()
        numbers = measure.take(context, instance)
    except RigError as reason:
        error = str(reason)
    all_after, idle_after, stolen_after = process.machine_ticks()
    settled = let_go(instance)
    ticks = max(1, all_after - all_before)
    return Sample(
        round=round_,
        measure=measure.name,
        engine=instance.engine.name,
        numbers=numbers,
        error=error,
        busy=1 - (idle_after - idle_before) / ticks,
        stolen=(stolen_after - stolen_before) / ticks,
        settled=settled,
    )


def line(sample: Sample, rounds: int) -> str:
    """Say a sample in one line."""
    said = sample.error or " ".join(f"{name}={value:.4g}" for name, value in sample.numbers.items())
    return f"{sample.round}/{rounds} {sample.measure:<10} {sample.engine:<10} {said}"
