"""The scenario file: what to run, how hard, and what counts as failed.

These are its models. Refuses: unknown keys, wrong types, values that no key may have. A key that the file leaves out
takes the default that stands here and nowhere else: the compiled lab is told every value. `load_file` reads the file,
`phase_spec` writes the specification of one phase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from t2s.errors import ExpressionError, ScenarioError
from t2s.lab import columns as result_columns
from t2s.lab import expression
from t2s.lab.diagnostics import Diagnostic, problems_of
from t2s.suggest import suggest

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA: Literal[1] = 1
"""Version of the file's schema; raised when an old file would mean something else."""

PhaseName = Literal["load", "capacity", "generator_selftest"]
StepName = Literal["load", "capacity", "generator_selftest", "paired_baseline", "soak_probe"]
"""What is run for a scenario: its phases, the paired baseline before its load, and the probes of a soak."""
Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=0, le=1 << 40)]
Seconds = Annotated[float, Field(gt=0.0, le=604_800.0)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

FRAME_MAX = 65_535
"""Largest IP packet (RFC 791, section 3.1), bytes."""

PAYLOAD_MAX = 65_000
"""Largest payload of one packet, bytes: a frame less the longest headers."""


class _Strict(BaseModel):
    """Unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Upstream(_Strict):
    """The simulated other side of a component's flows."""

    mode: Literal["sink", "echo", "refuse", "unreachable", "timeout", "reset", "half_close"] = "sink"
    delay_us: int = Field(default=0, ge=0, le=60_000_000)
    """Time that it takes to react."""
    connect_delay_us: int = Field(default=0, ge=0, le=60_000_000)
    """Time that it takes to answer a connect."""
    bandwidth_mbit: float = Field(default=0.0, ge=0.0, le=1e6)
    """What one flow's upstream accepts, Mbit/s; 0 is no limit."""
    buffer_bytes: int = Field(default=65_536, ge=1, le=1 << 30)
    """Socket buffer of one flow's upstream."""
    reply_bytes: int = Field(default=0, ge=0, le=PAYLOAD_MAX)
    """Size of a reply to one request; 0 is none, or as long as the request for `echo`."""


class _Component(_Strict):
    weight: float = Field(default=1.0, gt=0.0, le=1e6)
    """Share of the scenario's rate, over the sum of all weights."""


class _Carrying(_Component):
    v6_ratio: Ratio = 0.0
    upstream: Upstream = Upstream()


class TcpStream(_Carrying):
    """Long-lived TCP flows that send segments."""

    kind: Literal["tcp_stream"]
    flows: Count = 1
    segment_bytes: int = Field(default=1_400, ge=1, le=PAYLOAD_MAX)
    reorder: Ratio = 0.0
    duplicate: Ratio = 0.0
    overlap: Ratio = 0.0
    ip_fragment: Ratio = 0.0


class TcpChurn(_Carrying):
    """TCP flows that open, send a few segments, and end."""

    kind: Literal["tcp_churn"]
    concurrent: Count = 64
    segments: int = Field(default=2, ge=0, le=10_000)
    segment_bytes: int = Field(default=64, ge=1, le=PAYLOAD_MAX)
    reset_ratio: Ratio = 0.0
    """Part of the flows that end with RST instead of FIN."""


class Udp(_Carrying):
    """UDP flows."""

    kind: Literal["udp"]
    flows: Count = 1
    payload_bytes: int = Field(default=18, ge=1, le=PAYLOAD_MAX)
    ip_fragment: Ratio = 0.0


class Dns(_Component):
    """DNS queries to port 53 from pseudorandom source ports (RFC 4814, section 4.5)."""

    kind: Literal["dns"]
    names: Count = 1_000
    malformed: Ratio = 0.0
    upstream: Upstream = Upstream(mode="echo")


class Malformed(_Component):
    """Packets that the core must refuse."""

    kind: Literal["malformed"]


class SynFlood(_Component):
    """SYNs that never become flows."""

    kind: Literal["syn_flood"]


Component = Annotated[TcpStream | TcpChurn | Udp | Dns | Malformed | SynFlood, Field(discriminator="kind")]
Components = Annotated[tuple[Component, ...], Field(strict=False)]


class Settings(_Strict):
    """Settings of the core; the first five are the switchable optimizations."""

    flow_shards: int = Field(default=0, ge=0, le=1_024)
    """Shards of the flow map; 0 is one a worker."""
    pool_cache: int = Field(default=64, ge=0, le=65_535)
    """Buffers in a thread's magazine; 0 takes the depot's lock for each."""
    checksum: Literal["auto", "scalar", "swar", "avx2", "avx512", "neon"] = "auto"
    reassembly: Literal["bounded", "unbounded"] = "bounded"
    watchdog: bool = True
    """Time each iteration of the event loop and count stalls."""
    loop_stall_ms: float = Field(default=10.0, gt=0.0, le=60_000.0)
    """An iteration longer than this is a stall; the reference's limit."""
    pool_ceiling_mib: int = Field(default=1_024, ge=1, le=1 << 20)
    max_tcp_flows: int = Field(default=65_536, ge=1, le=1 << 24)
    max_udp_sessions: int = Field(default=65_536, ge=1, le=1 << 24)
    mtu: int = Field(default=1_500, ge=1_280, le=FRAME_MAX)
    offload: bool = False
    """Whether the device verifies checksums and segments; off by default, so that the core does the work."""
    sample_every: int = Field(default=256, ge=0, le=1 << 20)
    """One packet in this many has its stages timed and is slowed by it: fewer than a 99th percentile has above."""
    buffer_budget_mib: int = Field(default=256, ge=1, le=1 << 20)
    syn_ack: Literal["after-connect", "immediate"] = "after-connect"
    congestion: Literal["cubic", "newreno"] = "cubic"

    def over(self, base: Settings) -> Settings:
        """Return these settings, with what they leave out taken from `base`."""
        return base.model_copy(update=self.model_dump(exclude_unset=True))


class Phase(_Strict):
    """What one phase of a scenario does otherwise than the scenario says."""

    seconds: Seconds | None = None
    warmup_seconds: float | None = Field(default=None, ge=0.0, le=3_600.0)
    settings: Settings = Settings()
    components: Components | None = Field(default=None, min_length=1, max_length=64)
    """Replace the scenario's components as a whole."""


class Reference(_Strict):
    """Figures of the reference report, printed beside ours; never judged."""

    pps: float | None = Field(default=None, gt=0.0)
    mbit_per_s: float | None = Field(default=None, gt=0.0)
    latency_p50_ns: float | None = Field(default=None, gt=0.0)
    latency_p95_ns: float | None = Field(default=None, gt=0.0)
    latency_p99_ns: float | None = Field(default=None, gt=0.0)
    latency_p999_ns: float | None = Field(default=None, gt=0.0)
    reassembly_bytes: float | None = Field(default=None, ge=0.0)
    pool_grow_stalls: float | None = Field(default=None, ge=0.0)
    loop_iteration_max_ns: float | None = Field(default=None, gt=0.0)
    lock_wait_ns: float | None = Field(default=None, ge=0.0)
    status: Literal["PASS", "FAIL"] | None = None


class Scenario(_Strict):
    """One row of the matrix."""

    name: Name
    meaning: str = Field(default="", max_length=400)
    driver: Literal["memory", "pcap"] | None = None
    rate_pps: float | None = Field(default=None, gt=0.0, le=1e8)
    """Packets a second of the load phase; a capture may leave it out and keep its recorded times."""
    soak: bool = False
    """One long load phase (`--soak-seconds`) instead of rounds."""
    components: Components = Field(default=(), max_length=64)
    capture: str | None = None
    """A pcap or pcapng file, relative to the scenario file; for the pcap driver."""
    speed: Literal["recorded", "max"] | Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Replay speed of the capture: as recorded, as fast as it goes, or a factor."""
    settings: Settings = Settings()
    load: Phase = Phase()
    capacity: Phase = Phase()
    generator_selftest: Phase = Phase()
    reference: Reference = Reference()

    def phase(self, name: PhaseName) -> Phase:
        """Return the overrides of a phase."""
        return {"load": self.load, "capacity": self.capacity, "generator_selftest": self.generator_selftest}[name]


class Run(_Strict):
    """How the matrix is run."""

    seed: int = Field(default=1, ge=0, le=(1 << 48) - 1)
    rounds: int = Field(default=10, ge=1, le=1_000)
    warmup_seconds: float = Field(default=0.25, ge=0.0, le=3_600.0)
    load_seconds: Seconds = 1.0
    capacity_seconds: Seconds = 0.3
    generator_selftest_seconds: Seconds = 0.3
    paired_baseline_seconds: float = Field(default=0.0, ge=0.0, le=3_600.0)
    """The baseline's load right before each load round of another scenario, to compare that round with; 0: each round
    is compared with the baseline's own of the same number."""
    soak_probe_seconds: float = Field(default=0.0, ge=0.0, le=3_600.0)
    """A short run of a soak's load in each round, whose percentiles are compared with the paired baseline's; 0: slices
    of the soak are compared with all probes of the baseline. Needs `paired_baseline_seconds`."""
    capacity_rounds: int | None = Field(default=None, ge=1, le=1_000)
    """Rounds that have a capacity phase, spread evenly; all when left out."""
    soak_seconds: Seconds = 120.0
    workers: int = Field(default=1, ge=1, le=64)
    pin: bool = True
    baseline: Name | None = None
    """The scenario that thresholds compare with; the first one when left out."""
    driver: Literal["memory", "pcap"] = "memory"


class Quick(_Strict):
    """What `--quick` changes in `[run]`; null keeps it."""

    rounds: int | None = Field(default=None, ge=1, le=1_000)
    warmup_seconds: float | None = Field(default=None, ge=0.0, le=3_600.0)
    load_seconds: Seconds | None = None
    capacity_seconds: Seconds | None = None
    generator_selftest_seconds: Seconds | None = None
    paired_baseline_seconds: float | None = Field(default=None, ge=0.0, le=3_600.0)
    soak_probe_seconds: float | None = Field(default=None, ge=0.0, le=3_600.0)
    capacity_rounds: int | None = Field(default=None, ge=1, le=1_000)
    soak_seconds: Seconds | None = None


class Threshold(_Strict):
    """A rule over the results table; see `t2s.lab.columns` for the names."""

    name: Name
    title: str = Field(min_length=1, max_length=60)
    fail_if: str
    pass_if: str | None = None
    """Settles the verdict when `fail_if` could not be decided."""
    pass_reason: str = Field(default="", max_length=200)
    """What `pass_if` proves, for the report."""
    scope: Annotated[tuple[Name, ...], Field(strict=False)] | None = None
    """Scenarios that it applies to; all when left out."""

    @field_validator("fail_if", "pass_if")
    @classmethod
    def _parses(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                expression.parse(text, result_columns.COLUMNS)
            except ExpressionError as error:
                raise ValueError(str(error)) from None
        return text

    def applies_to(self, scenario: str) -> bool:
        """Whether the scenario is in this threshold's scope."""
        return self.scope is None or scenario in self.scope


class ScenarioFile(_Strict):
    """A whole scenario file."""

    schema_version: Literal[1] = Field(alias="schema")
    run: Run = Run()
    quick: Quick = Quick()
    settings: Settings = Settings()
    scenario: Annotated[tuple[Scenario, ...], Field(strict=False, min_length=1, max_length=1_000)]
    threshold: Annotated[tuple[Threshold, ...], Field(strict=False, max_length=100)] = ()

    @classmethod
    def of(cls, *scenarios: Scenario, **run: Any) -> Self:
        """Build a file's content from scenarios made in Python, without thresholds."""
        return cls(schema=SCHEMA, scenario=scenarios, run=Run(**run))

    @property
    def baseline(self) -> str:
        """Name of the scenario that thresholds compare with."""
        return self.run.baseline or self.scenario[0].name

    def named(self, name: str) -> Scenario:
        """Return the scenario of this name."""
        return next(scenario for scenario in self.scenario if scenario.name == name)

    def quickened(self) -> ScenarioFile:
        """Return the file as `--quick` runs it."""
        changes = self.quick.model_dump(exclude_none=True)
        return self.model_copy(update={"run": self.run.model_copy(update=changes)})

    def with_run(self, **changes: Any) -> ScenarioFile:
        """Return the file with fields of `[run]` changed; None keeps a field.

        Raises:
            ScenarioError: a field that does not exist, or a value that cannot be.

        """
        wanted = {key: value for key, value in changes.items() if value is not None}
        try:
            run = Run(**(self.run.model_dump() | wanted))
        except ValidationError as error:
            raise ScenarioError(problems_of(Diagnostic.pydantic(error, wanted, Run), "run", {})) from None
        return self.model_copy(update={"run": run})

    def only(self, names: Iterable[str], *, keep_baseline: bool = True) -> ScenarioFile:
        """Keep the named scenarios, and the baseline that they are compared with.

        Raises:
            ScenarioError: a name that the file does not have.

        """
        wanted = list(dict.fromkeys(names))
        known = [scenario.name for scenario in self.scenario]
        unknown = [
            Diagnostic(("--only",), f'no scenario "{name}"{suggest(name, known)}')
            for name in wanted
            if name not in known
        ]
        if unknown:
            raise ScenarioError(problems_of(unknown, "command line", {}))
        kept = tuple(s for s in self.scenario if s.name in wanted or (keep_baseline and s.name == self.baseline))
        thresholds = tuple(
            threshold
            for threshold in self.threshold
            if threshold.scope is None or any(name in threshold.scope for name in wanted)
        )
        return self.model_copy(
            update={
                "scenario": kept,
                "threshold": thresholds,
                "run": self.run.model_copy(update={"baseline": self.baseline if keep_baseline else kept[0].name}),
            }
        )
