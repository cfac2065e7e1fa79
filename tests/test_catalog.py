"""What is known of every instance's models: what a probe told, what a call taught, and what routing then sees."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.call import model_key
from gateway.catalog import Catalog
from gateway.config import Config
from gateway.instances import Instance
from gateway.routing import InstanceView, PoolView
from gateway.upstream import Health, InstalledModel, Listing, LoadedModel

NOW = 100.0
LLAMA, QWEN = "llama3.1:8b", "qwen3-coder:30b"


def config(**instances: dict[str, Any]) -> Config:
    """A configuration with instances of these names; each is given what it needs and does not name itself."""
    return Config.model_validate(
        {"instances": [{"name": name, "url": f"http://{name}:11434"} | keys for name, keys in instances.items()]}
    )


def installed(*names: str, **facts: Any) -> tuple[InstalledModel, ...]:
    return tuple(InstalledModel(name=name, digest=f"digest of {name}", **facts) for name in names)


def loaded(*names: str) -> tuple[LoadedModel, ...]:
    return tuple(LoadedModel(name=name, size_vram=5) for name in names)


def seen(catalog: Catalog, drawn_from: Config) -> PoolView:
    instances = {one.name: Instance(one, drawn_from, lambda: 0.5) for one in drawn_from.instances}
    return catalog.view(instances, NOW)


def alpha(catalog: Catalog, drawn_from: Config) -> InstanceView:
    found = seen(catalog, drawn_from).named("alpha")
    assert found is not None
    return found


def told(*names: str, in_memory: tuple[str, ...] = (), **keys: Any) -> tuple[Catalog, Config]:
    """A catalogue whose one instance, alpha, told that it has these models."""
    given = config(alpha=keys)
    catalog = Catalog(given)
    catalog.learned("alpha", Listing(installed(*names), loaded(*in_memory)))
    return catalog, given


# The view


def test_routing_sees_what_the_instance_told_and_what_its_configuration_says() -> None:
    given = config(alpha={"model": LLAMA, "capabilities": ["coding", "reasoning"]})
    catalog = Catalog(given)
    catalog.saw("alpha", Health(ok=True, version="0.12.0", seconds=0.01))
    catalog.learned("alpha", Listing(installed(LLAMA, QWEN, capabilities=frozenset({"tools"})), loaded(QWEN)))
    view = alpha(catalog, given)
    assert (view.capabilities, view.default_model) == (("coding", "reasoning"), LLAMA)
    assert (view.known, view.healthy, view.native, view.why_not) == (True, True, True, "")
    assert {key: (one.name, one.loaded) for key, one in view.models.items()} == {
        model_key(LLAMA): (LLAMA, False),
        model_key(QWEN): (QWEN, True),
    }
    assert view.models[model_key(LLAMA)].capabilities == frozenset({"tools"})


def test_instances_come_in_the_order_of_the_configuration() -> None:
    given = config(gamma={}, alpha={}, beta={})
    instances = {one.name: Instance(one, given, lambda: 0.5) for one in reversed(given.instances)}
    assert [one.name for one in Catalog(given).view(instances, NOW).instances] == ["gamma", "alpha", "beta"]


def test_an_instance_that_is_not_in_the_pool_is_not_seen() -> None:
    given = config(alpha={}, beta={})
    instances = {"alpha": Instance(given.instances[0], given, lambda: 0.5)}
    assert [one.name for one in Catalog(given).view(instances, NOW).instances] == ["alpha"]


def test_an_instance_that_takes_no_calls_is_seen_with_the_reason() -> None:
    given = config(alpha={"drain": True})
    view = alpha(Catalog(given), given)
    assert (view.healthy, view.why_not) == (False, "alpha is drained")


def test_a_model_is_loaded_however_the_two_lists_spell_it() -> None:
    catalog, given = told("Mistral", in_memory=("mistral:latest",))
    assert catalog.has("alpha", "library/mistral")
    assert catalog.is_loaded("alpha", "MISTRAL:latest")
    assert [one.loaded for one in alpha(catalog, given).models.values()] == [True]


def test_asking_for_the_view_changes_nothing() -> None:
    catalog, given = told(LLAMA)
    assert seen(catalog, given) == seen(catalog, given)


def test_a_view_is_not_changed_by_what_is_learned_later() -> None:
    catalog, given = told(LLAMA)
    before = alpha(catalog, given)
    catalog.learned("alpha", Listing(installed(QWEN), ()))
    catalog.answered("alpha", QWEN)
    catalog.missing("alpha", QWEN)
    assert list(before.models) == [model_key(LLAMA)]


# What is believed, and until when


@pytest.mark.parametrize(
    ("keys", "believed"),
    [({}, []), ({"model": LLAMA}, [LLAMA]), ({"models": [QWEN]}, [QWEN]), ({"models": [LLAMA, QWEN]}, [LLAMA, QWEN])],
)
def test_the_configuration_is_believed_while_the_instance_has_not_told(keys: Any, believed: list[str]) -> None:
    given = config(alpha=keys)
    view = alpha(Catalog(given), given)
    assert sorted(one.name for one in view.models.values()) == sorted(believed)
    assert not view.known


def test_what_the_instance_tells_stands_above_what_the_configuration_says() -> None:
    catalog, given = told(QWEN, model=LLAMA)
    assert list(alpha(catalog, given).models) == [model_key(QWEN)]


def test_an_instance_that_told_it_has_nothing_has_nothing() -> None:
    catalog, given = told(model=LLAMA)
    view = alpha(catalog, given)
    assert (view.known, view.models) == (True, {})


def test_what_is_loaded_is_kept_where_a_listing_does_not_tell() -> None:
    catalog, _ = told(LLAMA, in_memory=(LLAMA,))
    catalog.learned("alpha", Listing(installed(LLAMA), None))
    assert catalog.is_loaded("alpha", LLAMA)
    catalog.learned("alpha", Listing(installed(LLAMA), ()))
    assert not catalog.is_loaded("alpha", LLAMA)


def test_models_restricts_what_is_offered_and_adds_nothing() -> None:
    catalog, given = told(LLAMA, QWEN, models=["LLAMA3.1:8B", "not-there"])
    view = alpha(catalog, given)
    assert [one.name for one in view.models.values()] == [LLAMA]


def test_a_list_of_no_models_offers_none() -> None:
    catalog, given = told(LLAMA, models=[])
    assert alpha(catalog, given).models == {}


# What calls teach


def test_a_call_that_was_told_the_model_is_missing_is_believed() -> None:
    catalog, given = told(LLAMA, QWEN, in_memory=(LLAMA,))
    assert model_key(LLAMA) in alpha(catalog, given).models
    catalog.missing("alpha", "Llama3.1:8B")
    assert list(alpha(catalog, given).models) == [model_key(QWEN)]
    assert not catalog.has("alpha", LLAMA)
    assert not catalog.is_loaded("alpha", LLAMA)


def test_a_missing_model_makes_the_list_be_asked_for_anew() -> None:
    catalog, _ = told(LLAMA)
    assert not catalog.known("alpha").refresh.is_set()
    catalog.missing("alpha", LLAMA)
    assert catalog.known("alpha").refresh.is_set()


def test_a_model_that_is_missing_on_one_instance_is_not_missing_on_another() -> None:
    given = config(alpha={}, beta={})
    catalog = Catalog(given)
    for name in ("alpha", "beta"):
        catalog.learned(name, Listing(installed(LLAMA), ()))
    catalog.missing("alpha", LLAMA)
    assert [one.name for one in seen(catalog, given).having(LLAMA)] == ["beta"]


def test_a_model_that_answered_is_loaded() -> None:
    catalog, given = told(LLAMA)
    assert not alpha(catalog, given).models[model_key(LLAMA)].loaded
    catalog.answered("alpha", "LLAMA3.1:8b")
    assert alpha(catalog, given).models[model_key(LLAMA)].loaded


def test_a_model_that_answered_keeps_what_the_listing_told_of_it() -> None:
    catalog, _ = told(LLAMA, in_memory=(LLAMA,))
    catalog.answered("alpha", LLAMA)
    assert [one.size_vram for one in catalog.known("alpha").loaded.values()] == [5]


def test_an_instance_that_is_not_there_is_no_trouble() -> None:
    catalog, given = told(LLAMA)
    catalog.saw("gone", Health(ok=True))
    catalog.learned("gone", Listing(installed(QWEN), ()))
    catalog.missing("gone", QWEN)
    catalog.answered("gone", QWEN)
    assert catalog.known("gone").installed == {}
    assert not catalog.has("gone", QWEN)
    assert seen(catalog, given).having(QWEN) == []


def test_a_model_that_was_unloaded_is_not_loaded() -> None:
    catalog, given = told(LLAMA, in_memory=(LLAMA,))
    assert alpha(catalog, given).models[model_key(LLAMA)].loaded
    catalog.unloaded("alpha", "LLAMA3.1:8b")
    catalog.unloaded("gone", LLAMA)
    assert not alpha(catalog, given).models[model_key(LLAMA)].loaded
    assert catalog.has("alpha", LLAMA)


# What probes teach


def test_a_probe_that_failed_takes_nothing_away() -> None:
    catalog, given = told(LLAMA)
    catalog.saw("alpha", Health(ok=True, version="0.12.0"))
    catalog.saw("alpha", Health(ok=False, problem="connection refused"))
    assert catalog.known("alpha").version == "0.12.0"
    assert catalog.has("alpha", LLAMA)
    assert alpha(catalog, given).native


@pytest.mark.parametrize(
    ("version", "after"),
    [("0.12.0", Health(ok=True, version="0.13.0")), ("", Health(ok=True, version="", native=False))],
)
def test_an_instance_that_came_back_as_another_is_asked_for_its_models_at_once(version: str, after: Health) -> None:
    catalog, _ = told(LLAMA)
    catalog.saw("alpha", Health(ok=True, version=version))
    catalog.known("alpha").refresh.clear()
    catalog.saw("alpha", Health(ok=True, version=version, seconds=0.5))
    assert not catalog.known("alpha").refresh.is_set()
    catalog.saw("alpha", after)
    assert catalog.known("alpha").refresh.is_set()


def test_routing_sees_at_once_that_an_instance_has_no_native_api() -> None:
    catalog, given = told(LLAMA)
    assert alpha(catalog, given).native
    catalog.saw("alpha", Health(ok=True, native=False))
    assert not alpha(catalog, given).native


# The whole pool


def pooled(config: Config, **digests: dict[str, str]) -> Catalog:
    """A catalogue of these instances, each with the digests of its models."""
    catalog = Catalog(config)
    for name, models in digests.items():
        listing = tuple(InstalledModel(name=model, digest=digest) for model, digest in models.items())
        catalog.learned(name, Listing(listing, None))
    return catalog


def test_38_the_first_configured_instance_speaks_for_a_model_that_several_have() -> None:
    catalog = pooled(config(z={}, a={}), a={"x": "1", "only-a": "3"}, z={"X:latest": "2"})
    assert list(catalog.merged()) == ["only-a:latest", "x:latest"]
    assert catalog.merged()["x:latest"].model.digest == "2"
    assert [one.instance for one in catalog.offers("library/x")] == ["z", "a"]


def test_an_instance_with_ollamas_own_api_speaks_before_one_without() -> None:
    catalog = pooled(config(bare={}, full={}), bare={"x": ""}, full={"x": "1"})
    catalog.saw("bare", Health(ok=True, native=False))
    assert catalog.merged()["x:latest"].instance == "full"
    assert [one.instance for one in catalog.offers("x")] == ["full", "bare"]


def test_what_may_not_be_offered_is_in_no_list_and_in_no_conflict() -> None:
    catalog = pooled(config(a={"models": ["y"]}, b={}), a={"x": "1", "y": "1"}, b={"x": "2"})
    assert {key: one.instance for key, one in catalog.merged().items()} == {"x:latest": "b", "y:latest": "a"}
    assert [one.instance for one in catalog.offers("x")] == ["b"]
    assert catalog.conflicts() == {}


def test_38_a_name_is_in_conflict_where_two_instances_tell_different_digests() -> None:
    given = config(a={}, b={}, c={})
    catalog = pooled(given, a={"x": "1", "same": "5"}, b={"X": "2", "same": "5"}, c={"x": "", "same": "5"})
    assert catalog.conflicts() == {"x:latest": {"a": "1", "b": "2"}}


def test_a_conflict_is_seen_as_soon_as_it_is_told_or_mended() -> None:
    catalog = pooled(config(a={}, b={}), a={"x": "1"}, b={"x": "1"})
    assert catalog.conflicts() == {}
    catalog.learned("b", Listing((InstalledModel(name="x", digest="2"),), None))
    assert catalog.conflicts() == {"x:latest": {"a": "1", "b": "2"}}
    catalog.missing("b", "x")
    assert catalog.conflicts() == {}
    catalog.learned("b", Listing((InstalledModel(name="x", digest="3"),), None))
    assert catalog.conflicts() == {"x:latest": {"a": "1", "b": "3"}}
    catalog.apply(config(a={}))
    assert catalog.conflicts() == {}


# The same again


def test_a_listing_that_is_the_very_one_of_before_changes_nothing() -> None:
    catalog, given = told(LLAMA)
    listing = Listing(installed(LLAMA), loaded(LLAMA))
    catalog.learned("alpha", listing)
    before, view = catalog.changes, alpha(catalog, given).models
    catalog.learned("alpha", listing)
    catalog.learned("alpha", Listing(listing.installed, None))
    assert catalog.changes == before
    assert alpha(catalog, given).models is view
    assert catalog.in_memory("alpha") == ((LLAMA, 5),)


@pytest.mark.parametrize("taught", ["missing", "unloaded"])
def test_the_very_listing_of_before_is_news_where_a_call_taught_otherwise_since(taught: str) -> None:
    catalog, given = told()
    listing = Listing(installed(LLAMA), loaded(LLAMA))
    catalog.learned("alpha", listing)
    getattr(catalog, taught)("alpha", LLAMA)
    assert not catalog.is_loaded("alpha", LLAMA)
    assert catalog.in_memory("alpha") == ()
    catalog.learned("alpha", listing)
    assert catalog.is_loaded("alpha", LLAMA)
    assert alpha(catalog, given).models[model_key(LLAMA)].loaded


def test_a_new_configuration_of_others_leaves_what_routing_sees_of_an_instance() -> None:
    catalog, given = told(LLAMA)
    view = alpha(catalog, given).models
    catalog.apply(config(alpha={"max_concurrent": 9}, beta={}))
    assert alpha(catalog, config(alpha={})).models is view


# A new configuration


def test_a_new_configuration_keeps_what_those_told_that_stay() -> None:
    catalog, _ = told(LLAMA, in_memory=(LLAMA,))
    given = config(beta={}, alpha={"max_concurrent": 9, "capabilities": ["coding"]})
    catalog.apply(given)
    assert catalog.is_loaded("alpha", LLAMA)
    assert alpha(catalog, given).capabilities == ("coding",)
    assert not catalog.known("beta").listed


def test_a_new_configuration_forgets_those_that_left_for_good() -> None:
    catalog, first = told(LLAMA)
    catalog.apply(config(beta={}))
    assert not catalog.has("alpha", LLAMA)
    catalog.apply(first)
    assert not catalog.has("alpha", LLAMA)
    assert not catalog.known("alpha").listed


def test_an_instance_that_moved_to_another_address_is_another() -> None:
    catalog, _ = told(LLAMA)
    catalog.apply(config(alpha={"url": "http://elsewhere:11434"}))
    assert not catalog.has("alpha", LLAMA)


def test_another_spelling_of_the_same_address_is_the_same_instance() -> None:
    catalog, _ = told(LLAMA)
    catalog.apply(config(alpha={"url": "http://alpha:11434/v1/"}))
    assert catalog.has("alpha", LLAMA)


def test_new_restrictions_hold_at_once() -> None:
    catalog, given = told(LLAMA, QWEN)
    assert len(alpha(catalog, given).models) == 2
    restricted = config(alpha={"models": [QWEN]})
    catalog.apply(restricted)
    assert list(alpha(catalog, restricted).models) == [model_key(QWEN)]
    catalog.apply(given)
    assert len(alpha(catalog, given).models) == 2


# Weights


def listed(**digests: tuple[tuple[str, str], ...]) -> Catalog:
    """A catalogue of instances with these (model, digest)."""
    catalog = Catalog(config(**{name: {} for name in digests}))
    for name, models in digests.items():
        catalog.learned(name, Listing(tuple(InstalledModel(name=model, digest=d) for model, d in models), None))
    return catalog


def test_weights_are_the_same_however_the_model_is_spelt_and_whoever_has_it() -> None:
    here, there = listed(alpha=(("mistral", "1"),)), listed(beta=((("Mistral:latest"), "1"),), gamma=(("x", "9"),))
    assert here.weights("mistral") == here.weights("library/MISTRAL:latest") == there.weights("mistral")


def test_weights_are_one_short_word() -> None:
    catalog = listed(alpha=tuple((f"model-{n}", f"{n}" * 64) for n in range(500)))
    assert [len(word) for word in catalog.weights("")] == [64]


@pytest.mark.parametrize("asked", ["mistral", ""])
def test_a_model_pulled_anew_has_other_weights(asked: str) -> None:
    before, after = listed(alpha=(("mistral", "1"),)), listed(alpha=(("mistral", "2"),))
    assert before.weights(asked) != after.weights(asked)


def test_two_instances_with_different_weights_are_not_one_with_either() -> None:
    both = listed(alpha=(("mistral", "1"),), beta=(("mistral", "2"),))
    turned = listed(alpha=(("mistral", "2"),), beta=(("mistral", "1"),))
    assert both.weights("mistral") == turned.weights("mistral")
    assert both.weights("mistral") != listed(alpha=(("mistral", "1"),)).weights("mistral")


def test_the_weights_of_another_model_matter_only_where_any_may_answer() -> None:
    one, two = listed(alpha=(("mistral", "1"),)), listed(alpha=(("mistral", "1"), ("x", "2")))
    assert one.weights("mistral") == two.weights("mistral")
    assert one.weights("") != two.weights("")


def test_a_model_nobody_has_has_no_weights() -> None:
    assert listed(alpha=(("mistral", "1"),)).weights("x") == []
    assert Catalog(config(alpha={"model": LLAMA})).weights(LLAMA) == []
