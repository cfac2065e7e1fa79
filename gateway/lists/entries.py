"""What lists and `/api/show` say of a model: as its instance says it, made complete where clients insist. Pure.

Clients parse these with strict schemas: a missing digest, a null where text belongs, and the whole list is refused
(clients.md §9 D 30, 34). What an instance told stands; only what is absent or null is filled in, from what is known.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from gateway.upstream import InstalledModel

USUAL_CONTEXT = 4096  # tokens; what Ollama allocates where nobody asks for more, so the safe guess (ollama.md §6)
UNKNOWN_TIME = "1970-01-01T00:00:00Z"
CAPABILITIES = ("completion", "tools", "insert", "vision", "embedding", "thinking", "image", "audio")  # Ollama's order

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_NULL = Raw(b"null")


def installed(model: InstalledModel) -> dict[str, Any]:
    """One entry of `/api/tags`: the instance's own, completed."""
    raw = model.raw
    what = {"modified_at": _modified(raw), "details": details(raw.get("details"), model.family)}
    return {**raw, **_identity(model.name, model.digest, model.size), **what}


def loaded(raw: dict[str, Any], name: str, model: InstalledModel | None, expires_at: str) -> dict[str, Any]:
    """One entry of `/api/ps`: the instance's own, completed from its entry of `/api/tags`; `expires_at` RFC 3339."""
    known = model or InstalledModel(name)
    size, vram = raw.get("size"), raw.get("size_vram")
    return {
        **raw,
        **_identity(name, str(raw.get("digest") or known.digest), size if type(size) is int else known.size),
        "details": details(raw.get("details") or known.raw.get("details"), known.family),
        "expires_at": expires_at,
        "size_vram": vram if type(vram) is int else 0,
    }


def virtual(name: str, capabilities: Iterable[str], context_length: int) -> dict[str, Any]:
    """The entry of a model that is none, `auto` or `auto:<task>`; like every entry it shows its tag (ollama.md §2)."""
    return {
        **_identity(name if ":" in name else f"{name}:latest", "", 0),
        "modified_at": UNKNOWN_TIME,
        "details": {**details({"format": "gguf"}, "auto"), "context_length": context_length},
        "capabilities": ordered(capabilities),
    }


def show_virtual(name: str, capabilities: Iterable[str], context_length: int) -> bytes:
    """`/api/show` for the same; its `general.basename` is its name, so that no two are one (clients.md §9 D 31)."""
    entry = virtual(name, capabilities, context_length)
    return msgspec.json.encode(_shown(entry, "auto", name, context_length, f"# {name}: a model is chosen per call\n"))


def show_listed(model: InstalledModel) -> dict[str, Any]:
    """`/api/show` as far as the lists tell, for a model that nobody can be asked about."""
    entry = {**installed(model), "capabilities": ordered(model.capabilities or {"completion"})}
    length = model.context_length or USUAL_CONTEXT
    return _shown(entry, model.family or "unknown", model.name.rpartition("/")[2].partition(":")[0], length, "")


def show_complete(body: bytes, model: InstalledModel) -> bytes:
    """What an instance answered to `/api/show`, byte for byte where it has all that clients need (§9 D 34)."""
    told = {name: value for name, value in _FIELDS.decode(body).items() if value != _NULL}
    known = show_listed(model)
    needed = ("details", "capabilities", "model_info", "template", "parameters")
    if all(name in told for name in needed):
        return body
    return msgspec.json.encode({**{name: known[name] for name in needed}, **told})


def show_named(body: bytes, name: str) -> bytes:
    """`/api/show` with `general.basename` replaced by `name`, as Ollama does for one client (ollama.md §2.6)."""
    fields = _FIELDS.decode(body)
    info = _FIELDS.decode(fields["model_info"])
    return msgspec.json.encode({**fields, "model_info": {**info, "general.basename": name}})


def details(told: Any, family: str) -> dict[str, Any]:
    """A model's `details`, no text of it null; what an instance tells beyond the usual is kept."""
    given = {key: value for key, value in told.items() if value is not None} if isinstance(told, dict) else {}
    texts = {"parent_model": "", "format": "", "family": family, "parameter_size": "", "quantization_level": ""}
    whole = {name: given[name] if isinstance(given.get(name), str) else usual for name, usual in texts.items()}
    families = given.get("families")
    if not (isinstance(families, list) and all(isinstance(one, str) for one in families)):
        families = [whole["family"]] if whole["family"] else []
    return {**given, **whole, "families": families}


def ordered(capabilities: Iterable[str]) -> list[str]:
    """In Ollama's own order, unknown words last."""
    usual = {word: index for index, word in enumerate(CAPABILITIES)}
    return sorted(capabilities, key=lambda word: (usual.get(word, len(usual)), word))


def moment(told: Any) -> datetime | None:
    """A time as Go writes it, RFC 3339 with up to nine decimals; None for anything else."""
    if not isinstance(told, str) or not _RFC_3339.fullmatch(told):
        return None
    try:
        return datetime.fromisoformat(told.upper())
    except ValueError:
        return None


def _identity(name: str, digest: str, size: int) -> dict[str, Any]:
    """A model without a digest gets one of its own: clients tell models apart by it."""
    bare = digest.removeprefix("sha256:")
    own = bare if _DIGEST.fullmatch(bare) else hashlib.sha256(name.encode()).hexdigest()
    return {"name": name, "model": name, "size": size, "digest": own}


def _modified(raw: dict[str, Any]) -> str:
    """When it was made, whichever of the two APIs told it."""
    told, created = raw.get("modified_at"), raw.get("created")
    if moment(told) is not None:
        return str(told)
    if isinstance(created, int) and 0 < created < 2**32:
        return datetime.fromtimestamp(created, UTC).isoformat()
    return UNKNOWN_TIME


def _shown(entry: dict[str, Any], family: str, basename: str, context_length: int, modelfile: str) -> dict[str, Any]:
    return {
        "modelfile": modelfile,
        "parameters": "",
        "template": "",
        "details": entry["details"],
        "model_info": {
            "general.architecture": family,
            "general.basename": basename,
            f"{family}.context_length": context_length,
        },
        "capabilities": entry["capabilities"],
        "modified_at": entry["modified_at"],
    }
