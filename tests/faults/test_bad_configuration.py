"""Row B17: a file that means harm, or is merely wrong, is refused with its place while the one in force stays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config import Loaded, load
from gateway.simulator import Behaviour
from tests.house import House, ask

_NINE = ", ".join(["*k{0}"] * 9)
_BOMB = "k0: &k0 [x]\n" + "".join(f"k{i}: &k{i} [{_NINE.format(i - 1)}]\n" for i in range(1, 12))
_CIRCLE = "routes:\n" + "".join(
    f"  - {{name: {one}, match: {{model: {one}}}, to: [{{instance: {other}}}]}}\n" for one, other in ("ab", "ba")
)

# What is written at the end of a sound file, and what is said of it.
ADDED: dict[str, tuple[str | bytes, str]] = {
    "an alias bomb": (_BOMB, "aliases unfold to more than 1,000"),
    "a merge bomb": (_BOMB.replace("[x]", "{a: 1}").replace("[", "{<<: [").replace("]\n", "]}\n"), "aliases unfold"),
    "a mapping that holds itself": ("x: &x {y: *x}", "contains itself"),
    "a list that holds itself": ("x: &x [[*x]]", "contains itself"),
    "a call of Python": ("x: !!python/object/apply:os.system ['exit 1']", "is not allowed"),
    "a module of Python": ("x: !!python/module:os", "is not allowed"),
    "a tag of one's own": ("x: !secret abc", "the tag !secret is not allowed"),
    "a key twice": ("log: {level: info}\nlog: {level: debug}", "appears twice"),
    "a key twice further down": ("line:\n  hold: 1s\n  hold: 2s", "appears twice"),
    "a megabyte and more": ("#" * 2**20, "larger than 1 MiB"),
    "ten megabytes": ("x: [" + "a, " * 3_300_000 + "]", "larger than 1 MiB"),
    "nesting": ("x: " + "[" * 1000 + "]" * 1000, "nest"),
    "an unknown key": ("line: {max_cals: 1}", 'unknown key. Did you mean "max_calls"?'),
    "an unknown part": ("lines: {}", 'unknown key. Did you mean "line"?'),
    "a list for a mapping": ("line: []", "must be a mapping"),
    "a mapping for a list": ("routes: {}", "must be a list"),
    "a text for a number": ("line: {max_calls: many}", "must be a whole number"),
    "a number for a text": ("log: {level: 3}", "must be debug, info, warning or error"),
    "less than nothing": ("timeouts: {idle: -1}", "must be 0 or more"),
    "no number": ("timeouts: {idle: .nan}", "must be a time"),
    "an endless number": ("timeouts: {idle: 1e999}", "must be a finite number"),
    "an endless size": ("server: {max_body: " + "9" * 400 + "GiB}", "must be a finite number"),
    "a fallback that is itself": (
        _CIRCLE,
        'no instance is called "b"',
    ),  # a route names no route: nothing can be cyclic
    "a task that nobody serves": ("tasks: {x: [nothing]}", "no instance has the capability"),
    "zero bytes": (b"x: \x00", "is not YAML"),
    "no text": (b"x: \xff", "is not UTF-8 text"),
    "a variable that is not set": ("log: {level: '${NOWHERE}'}", "the variable NOWHERE is not set"),
    "two documents": ("---\nlog: {}", "must hold one document"),
}
URLS = {
    "http://me:hunter2@gpu1": "must not carry a user name or password",
    "http://me:hunter2@ex\u2100mple": "must look like http://host:11434",
    "file:///etc/passwd": "must look like http://host:11434",
    "http://gpu1/../admin": "no path but /v1",
    "http://gpu1:0": "must have a port",
    "http://[::1": "must look like http://host:11434",
    "gopher://gpu1": "must look like http://host:11434",
}


@dataclass
class File:
    """A file on disk as the source of the configuration, as the command line has it."""

    path: Path
    sound: str

    def load(self) -> Loaded:
        return load(file=self.path, env={})

    def fingerprint(self) -> str:
        return ""

    def write(self, more: str | bytes) -> None:
        self.path.write_bytes(self.sound.encode() + (more if isinstance(more, bytes) else more.encode()))


def filed(house: House, path: Path) -> File:
    """A configuration that says of the house what it is."""
    file = File(path, f"instances:\n  - name: alpha\n    url: {house.simulator('alpha').url}\n    max_concurrent: 4\n")
    file.write("")
    house.engine._source = file
    return file


async def refused(house: House, message: str, *, placed: bool = True) -> None:
    """The next reload is refused for this reason and changes nothing."""
    house.lines.clear()
    before = house.engine.config, house.engine.loaded.digest
    assert not await house.engine.reload()
    assert (house.engine.config, house.engine.loaded.digest) == before
    (said,) = (line for line in house.lines if line["event"] == "config.refused")
    told = [line for line in house.lines if line["event"] == "config.problem"]
    assert said["problems"] >= len(told) >= 1
    assert len(told) <= 20
    assert [line for line in told if message in line["problem"]], told
    assert not placed or all(line["line"] > 0 for line in told)
    assert "hunter2" not in str(house.lines)


async def test_a_file_that_is_wrong_is_refused_and_the_old_one_serves_on(tmp_path: Path) -> None:
    async with House({"alpha": Behaviour()}) as house:
        file = filed(house, tmp_path / "routes.yaml")
        assert await house.engine.reload()
        for name, (more, message) in ADDED.items():
            file.write(more)
            await refused(house, message, placed="megabyte" not in name)
        assert (await house.chat()).status == 200
        assert "gateway_config_last_reload_successful 0.0" in (await house.get("/metrics")).body.decode()
        file.write("log: {level: warning}\n")
        assert await house.engine.reload()
        assert house.engine.config.log.level == "warning"


@pytest.mark.parametrize("url", URLS)
async def test_an_address_that_is_none_of_an_ollama_is_refused_and_shows_no_password(tmp_path: Path, url: str) -> None:
    async with House({"alpha": Behaviour()}) as house:
        file = filed(house, tmp_path / "routes.yaml")
        file.write(f'  - {{name: beta, url: "{url}"}}\n')
        await refused(house, URLS[url])
        assert list(house.engine.pool.instances) == ["alpha"]


async def test_a_file_that_is_gone_or_a_folder_is_refused(tmp_path: Path) -> None:
    async with House({"alpha": Behaviour()}) as house:
        file = filed(house, tmp_path / "routes.yaml")
        file.path.unlink()
        await refused(house, "cannot be read", placed=False)
        file.path.mkdir()
        await refused(house, "cannot be read", placed=False)


async def test_calls_under_way_are_not_touched_by_any_of_it(tmp_path: Path) -> None:
    async with House({"alpha": Behaviour(parallel=4, per_second=200)}, warm=True) as house:
        file = filed(house, tmp_path / "routes.yaml")
        assert await house.engine.reload()
        calls = [asyncio.create_task(house.post("/v1/chat/completions", ask("x", stream=True))) for _ in range(4)]
        await house.simulator("alpha").until(lambda: house.simulator("alpha").busy == 4)
        for more, _ in ADDED.values():
            file.write(more)
            assert not await house.engine.reload()
        replies = await asyncio.gather(*calls)
        assert all(reply.status == 200 and reply.events[-1] == "[DONE]" for reply in replies)
