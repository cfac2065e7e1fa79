"""What is to happen in one simulated hour, drawn from one number and nothing else: `draw(seed)`.

A schedule is data: who has which models, what the gateway is configured to, who asks for what and leaves when, what
befalls the instances, how each attempt of each call goes. So one seed is one schedule on any machine, and a schedule
can be made smaller by leaving things out. Half of them count time in quarters of a second, so that what is rare
elsewhere, two things in one moment, is usual there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from gateway.call import Priority

T = TypeVar("T")

NAMES = ("alpha", "beta", "gamma", "delta")
MODELS = ("m:latest", "n:latest", "o:latest")
CALLERS = ("amy", "bob", "cat")
MOMENTS = ("queued", "granted", "connecting", "sent", "spoke", "content", "last", "failing")


class Kind(StrEnum):
    """How an instance deals with one request."""

    FINE = "fine"
    CLOSES = "closes"  # the connection, after a sound answer
    BUSY = "busy"  # 503
    SLOW_DOWN = "slow_down"  # 429
    FAILS = "fails"  # 500
    NO_MEMORY = "no_memory"  # 500
    MISSING = "missing"  # 404, for the model
    NO_PATH = "no_path"  # 404, without a word
    REFUSES = "refuses"  # 400
    MOVED = "moved"  # 302
    HANGS = "hangs"  # before its head
    MUTE = "mute"  # after its head
    STALLS = "stalls"  # between two tokens
    LINGERS = "lingers"  # after its end marker, without ending the message
    CRAWLS = "crawls"  # each token comes, and none soon
    CUTS = "cuts"  # closes in mid-stream
    ENDS_SHORT = "ends_short"  # a complete message without the end marker
    RESETS = "resets"  # in mid-stream
    DROPS = "drops"  # the connection, without an answer
    SAYS_ERROR = "says_error"  # in-band
    DIES_QUIETLY = "dies_quietly"  # an end marker, and no reason to finish
    SURPLUS = "surplus"  # more after the end
    GARBAGE = "garbage"  # no HTTP
    NO_CHUNK = "no_chunk"  # a frame that is none


UNWELL: dict[str, dict[Kind, float]] = {
    "well": {Kind.FINE: 1},
    "shaky": {Kind.FINE: 12, **dict.fromkeys(Kind, 1)},
    "ill": {Kind.FINE: 3, **{kind: 1 for kind in Kind if kind is not Kind.FINE}},
    "failing": {Kind.FAILS: 8, Kind.NO_MEMORY: 4, Kind.FINE: 1},
    "busy": {Kind.BUSY: 8, Kind.SLOW_DOWN: 1, Kind.FINE: 2},
    "silent": {Kind.HANGS: 6, Kind.MUTE: 4, Kind.CRAWLS: 2, Kind.FINE: 1},
    "breaking": {Kind.CUTS: 3, Kind.RESETS: 3, Kind.STALLS: 2, Kind.ENDS_SHORT: 2, Kind.SAYS_ERROR: 3, Kind.FINE: 2},
    "dropping": {Kind.DROPS: 6, Kind.CLOSES: 3, Kind.FINE: 2},
}


class Behaviour(NamedTuple):
    """One answer as it will be. Times are seconds."""

    kind: Kind
    first: float  # to the first token, where the model is loaded
    gap: float  # between tokens
    tokens: int
    at: int  # tokens before the fault
    tail: float  # between the end marker and the end of the message


class Machine(NamedTuple):
    """One Ollama. It serves `parallel` calls at once and keeps `fit` models; `tells` what is loaded or does not."""

    models: tuple[str, ...]
    loaded: tuple[str, ...]
    parallel: int
    fit: int
    load: float
    tells: bool
    known: bool  # its models were read before the first call


class Place(NamedTuple):
    """An instance as it is configured; `host` is where it is."""

    name: str
    host: str
    limit: int
    per_model: int | None
    drain: bool


class Ask(NamedTuple):
    """One call of a client. It `leaves` so many seconds after it came, or `hops` turns of the loop after a `moment`."""

    number: int
    at: float
    caller: str
    model: str
    stream: bool
    size: int
    priority: Priority | None
    deadline: float | None
    leaves: float | None
    moment: str
    hops: int
    pause: float  # between two reads of its client
    repeats: bool  # the answer is the same each time, and may be kept

    def __str__(self) -> str:
        kind = "stream" if self.stream else "reply"
        return f"{self.at:9.3f} call {self.number} of {self.caller}: {kind} of {self.model}"


class Happening(NamedTuple):
    at: float
    kind: str
    host: str = ""
    value: Any = None

    def __str__(self) -> str:
        return f"{self.at:9.3f} {self.kind} {self.host} {'' if self.value is None else self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`ground` is added to a seed's own randomness where there is any at run time; it is the seed itself."""

    seed: int
    settings: dict[str, Any]
    machines: dict[str, Machine]  # by host
    places: tuple[Place, ...]
    asks: tuple[Ask, ...]
    happenings: tuple[Happening, ...]
    speed: tuple[float, float]  # seconds to a first token, and between tokens, as they usually are
    grid: bool

    def __str__(self) -> str:
        lines = [f"seed {self.seed}", *(f"  {key}: {value}" for key, value in self.settings.items())]
        lines += [f"  {host}: {machine}" for host, machine in self.machines.items()]
        lines += [f"  {place}" for place in self.places]
        return "\n".join([*lines, *(f"  {move}" for move in self.moves())])

    def moves(self) -> list[Ask | Happening]:
        """All that is to happen, in order."""
        moves: list[Ask | Happening] = [*self.happenings, *self.asks]
        return sorted(moves, key=lambda move: move.at)

    def behaviour(self, call: int, nth: int, mood: str) -> Behaviour:
        """How the `nth` request of a call goes where it meets an instance in this mood."""
        chance = random.Random(f"{self.seed} {call} {nth}")  # noqa: S311 - to be the same each time
        kinds = UNWELL[mood]
        first, gap = (_near(chance, usual, grid=self.grid) for usual in self.speed)
        kind, tokens = chance.choices(list(kinds), list(kinds.values()))[0], chance.choice((1, 2, 3, 5))
        return Behaviour(kind, first, gap, tokens, chance.randrange(tokens), chance.choice((0.0, 0.0, 0.05)))


def _near(chance: random.Random, usual: float, *, grid: bool) -> float:
    return usual if grid else usual * chance.uniform(0.5, 2.0)


class _Dice:
    """Short ways to ask chance for things."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"schedule {seed}")  # noqa: S311 - to be the same each time
        self.grid = self.random.random() < 0.5

    def one(self, *choices: T) -> T:
        return self.random.choice(choices)

    def often(self, likelihood: float) -> bool:
        return self.random.random() < likelihood

    def rarely(self, *choices: T) -> T | None:
        return self.one(*choices) if self.often(0.2) else None

    def some(self, things: Sequence[T], least: int = 1) -> tuple[T, ...]:
        count = self.random.randint(min(least, len(things)), len(things))
        chosen = set(self.random.sample(range(len(things)), count))
        return tuple(thing for at, thing in enumerate(things) if at in chosen)

    def time(self, longest: float) -> float:
        seconds = self.random.uniform(0, longest)
        return round(seconds * 4) / 4 if self.grid else seconds


def draw(seed: int) -> Schedule:
    """The schedule of `seed`."""
    dice = _Dice(seed)
    names = NAMES[: dice.one(1, 2, 2, 3, 3, 4)]
    models = MODELS[: dice.one(1, 1, 2, 3)]
    hosts = [host for name in names for host in (name, f"{name}-moved")]
    machines = {host: _machine(dice, models) for host in hosts}
    span = dice.one(4.0, 15.0, 40.0)
    places = tuple(Place(name, name, dice.one(1, 1, 2, 3), dice.one(None, None, 1), False) for name in names)
    return Schedule(
        seed=seed,
        settings=_settings(dice, names),
        machines=machines,
        places=places,
        asks=_asks(dice, models, span),
        happenings=tuple(sorted(_happenings(dice, places, span), key=lambda one: one.at)),
        speed=(dice.one(0.25, 0.5, 1.0), dice.one(0.0, 0.05, 0.25)),
        grid=dice.grid,
    )


def _machine(dice: _Dice, models: Sequence[str]) -> Machine:
    installed = dice.some(models, least=len(models) if dice.often(0.7) else 1)
    return Machine(
        models=installed,
        loaded=dice.some(installed, least=0),
        parallel=dice.one(1, 2, 4),
        fit=dice.one(1, 1, 2, 3),
        load=dice.one(0.5, 2.0, 6.0),
        tells=dice.often(0.85),
        known=dice.often(0.9),
    )


def _settings(dice: _Dice, names: Sequence[str]) -> dict[str, Any]:
    line: dict[str, Any] = {
        "drain_grace": dice.one(1.0, 4.0),
        "hold": dice.one(0.0, 3.0, 10.0),
        "ageing": dice.one(1.0, 5.0),
        "switch_after": dice.one(1.0, 4.0),
        "keep_loaded": dice.one(0.0, 4.0),
        "copy_at": dice.one(0.0, 2.0),
        "max_calls": dice.rarely(1, 4),
        "max_bytes": dice.rarely(900) or 2**20,
        "max_calls_per_caller": dice.rarely(2),
        "max_running_per_caller": dice.rarely(1, 2),
        "priority_header": dice.one("any", "lower", "never"),
    }
    settings: dict[str, Any] = {
        "timeouts": {
            "connect": dice.one(0.5, 2.0),
            "line": dice.one(2.0, 6.0, 30.0),
            "first_token": dice.one(2.0, 5.0),
            "loading": dice.one(3.0, 15.0),
            "idle": dice.one(1.0, 3.0),
            "total": dice.one(8.0, 30.0, 60.0),
        },
        "line": line,
        "retry": {
            "attempts": dice.one(1, 2, 3, 3, 5),
            "budget": dice.one(0.0, 0.2, 1.0),
            "reserve": dice.one(0, 1, 3, 10),
            "backoff": dice.one(0.0, 0.1),
        },
        "breaker": {
            "failures": dice.one(1, 2, 5),
            "connects": dice.one(1, 2, 3),
            "cooldown": dice.one(1.0, 4.0),
            "max_cooldown": 10.0,
        },
        "health": {"interval": dice.one(2.0, 5.0), "fall": dice.one(1, 2, 3), "rise": dice.one(1, 2), "catalog": 5.0},
        "cache": {"enabled": dice.often(0.5)},
    }
    if len(names) > 1 and dice.often(0.25):
        tiers: list[dict[str, str]] = [{"instance": name} for name in names]
        settings["routes"] = [{"name": "in-turn", "match": {"model": "*"}, "to": tiers}]
    elif dice.often(0.2):
        tiers = [{"model": MODELS[0]}, {"model": MODELS[1]}]
        settings["routes"] = [{"name": "else-another", "match": {"model": MODELS[0]}, "to": tiers}]
    return settings


def _asks(dice: _Dice, models: Sequence[str], span: float) -> tuple[Ask, ...]:
    count = dice.one(3, 8, 14, 20)
    leaving, hurry = dice.one(0.0, 0.2, 0.6), dice.one(0.0, 0.0, 0.3)
    streams, repeats = dice.one(0.9, 0.7, 0.2), dice.one(0.1, 0.5, 1.0)
    times = sorted(dice.time(span) for _ in range(count))
    if dice.often(0.3):  # all at once
        times = [times[0]] * count
    asks = []
    for number, at in enumerate(times):
        leaves = dice.often(leaving)
        moment = dice.one("", *MOMENTS) if leaves else ""
        asks.append(
            Ask(
                number=number,
                at=at,
                caller=dice.one(CALLERS[0], *CALLERS),
                model=dice.one(models[0], *models),
                stream=dice.often(streams),
                size=dice.one(10, 100, 300),
                priority=dice.one(None, None, *Priority),
                deadline=dice.time(8.0) if dice.often(hurry) else None,
                leaves=dice.time(8.0) if leaves and not moment else None,
                moment=moment,
                hops=dice.one(0, 1, 2, 3),
                pause=dice.one(0.0, 0.0, 0.0, 0.5),
                repeats=dice.often(repeats),
            )
        )
    return tuple(asks)


def _happenings(dice: _Dice, places: Sequence[Place], span: float) -> list[Happening]:
    hosts = [place.host for place in places]
    found = [Happening(0.0, "mood", host, dice.one("well", "well", "shaky", *UNWELL)) for host in hosts]
    for _ in range(dice.one(0, 1, 3, 6)):
        host = dice.one(*hosts)
        begins = dice.time(span)
        ends = begins + dice.time(10.0)
        kind = dice.one("death", "mood", "slow", "blind", "alarm", "unload", "stale")
        if kind == "death":
            found += [Happening(begins, "dies", host, dice.one("refuses", "swallows")), Happening(ends, "lives", host)]
        elif kind == "mood":
            found += [Happening(begins, "mood", host, dice.one(*UNWELL)), Happening(ends, "mood", host, "well")]
        elif kind == "slow":
            found += [
                Happening(begins, "connects", host, dice.one(0.3, 1.0, 5.0)),
                Happening(ends, "connects", host, 0.0),
            ]
        elif kind in ("blind", "alarm"):  # its probes say that it is well, or that it is not, whatever it is
            found += [Happening(begins, "probes", host, kind == "blind"), Happening(ends, "probes", host)]
        else:
            found.append(Happening(begins, kind, host))
    for _ in range(dice.one(0, 0, 1, 3)):
        found.append(Happening(dice.time(span + 5.0), "reload", "", _changed(dice, places)))
    return found


def _changed(dice: _Dice, places: Sequence[Place]) -> tuple[Place, ...]:
    """Another configuration of the same instances: some gone, moved, drained, with other limits."""
    changed = [
        place._replace(
            limit=dice.one(place.limit, 1, 2, 4),
            drain=dice.often(0.15),
            host=f"{place.name}-moved" if dice.often(0.15) else place.name,
        )
        for place in places
        if dice.often(0.8)
    ]
    return tuple(changed) or tuple(places)
