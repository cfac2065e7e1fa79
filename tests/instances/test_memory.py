"""What an instance has in memory, as told and as our own books have it; what fits; and how long things take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.instances.memory import (
    MAX_TIMES,
    USUAL_FIRST_TOKEN,
    USUAL_LOAD,
    USUAL_SERVICE,
    Average,
    Contents,
    Memory,
)

CLOUD = "big:latest@cloud"


def a_memory(**loaded: int) -> Memory:
    """One that has told, at 0.0, what is loaded."""
    memory = Memory()
    tell(memory, 0.0, **loaded)
    return memory


def tell(memory: Memory, asked: float, *, late: float = 0.0, **loaded: int) -> None:
    """It is asked at `asked` and answers `late` seconds later. On disk every model is as large as in memory."""
    installed = {**SIZES, **loaded}
    memory.told(Contents(installed, loaded), asked=asked, now=asked + late)


SIZES = {"m": 40, "n": 30, "o": 50}


def load(memory: Memory, model: str, now: float) -> None:
    """A call has it loaded, is answered and over."""
    assert memory.begin(model, now)
    memory.answered(model)
    memory.end(model, now)


# what it holds


def test_until_it_has_told_it_holds_whatever_is_asked_for() -> None:
    memory = Memory()
    assert memory.holds("anything")
    assert not memory.begin("anything", 0.0)
    assert not memory.residents
    tell(memory, 1.0, m=40)
    assert memory.holds("m")
    assert not memory.holds("anything")


def test_one_that_never_tells_holds_everything_and_keeps_no_books() -> None:
    memory = Memory()
    for n in range(100):
        assert not memory.begin(f"m{n}", float(n))
        memory.end(f"m{n}", float(n))
        memory.told(Contents({"m": 40}, None), asked=float(n), now=float(n))
    assert memory.holds("anything")
    assert not memory.residents
    assert not memory.loading


def test_one_that_told_before_and_does_not_now_keeps_what_it_had() -> None:
    memory = a_memory(m=40)
    memory.told(Contents({}, None), asked=5.0, now=5.0)
    assert memory.holds("m")
    assert not memory.holds("n")


def test_a_model_of_the_cloud_is_held_everywhere_and_costs_nothing() -> None:
    memory = a_memory(m=40)
    assert memory.holds(CLOUD)
    assert not memory.begin(CLOUD, 1.0)
    memory.end(CLOUD, 2.0)
    assert list(memory.residents) == ["m"]
    assert (memory.running(CLOUD), memory.changed) == (0, 0.0)


def test_a_call_for_what_is_not_there_loads_it_and_so_does_every_call_until_it_is_there() -> None:
    memory = a_memory()
    assert memory.begin("m", 1.0)
    assert memory.begin("m", 2.0)
    assert memory.loading
    memory.answered("m")
    assert not memory.begin("m", 3.0)
    assert not memory.loading
    assert (memory.running("m"), memory.changed) == (3, 1.0)


def test_a_load_whose_calls_all_ended_without_a_word_is_forgotten() -> None:
    memory = a_memory()
    memory.begin("m", 1.0)
    memory.begin("m", 2.0)
    memory.end("m", 3.0)
    assert memory.loading
    memory.end("m", 4.0)
    assert not memory.loading
    assert not memory.holds("m")
    assert memory.begin("m", 5.0)


def test_the_models_that_can_go_are_those_without_calls() -> None:
    memory = a_memory(m=40, n=30)
    memory.begin("m", 1.0)
    assert list(memory.idle()) == ["n"]
    memory.end("m", 2.0)
    assert list(memory.idle()) == ["m", "n"]


def test_one_that_was_away_holds_nothing_but_what_our_calls_still_use() -> None:
    memory = a_memory(m=40, n=30)
    memory.begin("m", 1.0)
    memory.clear()
    assert list(memory.residents) == ["m"]
    assert memory.tells


# what a listing says, and what we know


def test_a_listing_brings_what_others_loaded_and_takes_what_has_expired() -> None:
    memory = a_memory(m=40)
    tell(memory, 5.0, n=30)
    assert list(memory.residents) == ["n"]


def test_a_listing_older_than_a_load_does_not_undo_it() -> None:
    memory = a_memory()
    load(memory, "m", 5.0)
    tell(memory, 4.9, late=0.2)
    assert memory.holds("m")
    tell(memory, 5.1)
    assert not memory.holds("m")


def test_a_listing_that_lacks_a_model_in_use_is_not_believed() -> None:
    memory = a_memory(m=40)
    memory.begin("m", 1.0)
    tell(memory, 5.0)
    assert memory.running("m") == 1
    memory.end("m", 6.0)
    tell(memory, 5.5, late=1.0)
    assert memory.holds("m")
    tell(memory, 7.0)
    assert not memory.holds("m")


@pytest.mark.parametrize("listed", [{}, {"m": 44}])  # some versions list it while it loads, others do not
def test_a_model_on_its_way_in_stays_on_its_way_in(listed: dict[str, int]) -> None:
    memory = a_memory()
    memory.begin("m", 1.0)
    tell(memory, 5.0, **listed)
    assert memory.loading
    assert (memory.running("m"), memory.size("m"), memory.most) == (1, 40, 0)


def test_a_model_takes_what_it_was_told_to_take_in_memory_else_on_disk_else_it_is_counted() -> None:
    memory = Memory()
    assert memory.size("m") == 1
    memory.told(Contents({"m": 40}, {}), asked=0.0, now=0.0)
    assert memory.size("m") == 40
    load(memory, "m", 1.0)
    memory.told(Contents({"m": 40}, {"m": 48}), asked=2.0, now=2.0)
    assert memory.size("m") == 48
    memory.told(Contents({"m": 40}, {"m": 0}), asked=3.0, now=3.0)
    assert memory.size("m") == 48


# what fits


def test_what_was_never_tried_is_taken_to_fit() -> None:
    assert a_memory(m=40).fits("o")


def test_what_pushed_another_out_does_not_fit_beside_it() -> None:
    memory = a_memory(m=40)
    load(memory, "n", 1.0)
    tell(memory, 2.0, n=30)
    assert memory.too_much == 70
    assert not memory.fits("m")
    assert memory.fits("m", without=frozenset({"n"}))


def test_what_was_pushed_out_while_a_load_lasts_is_learned_once_and_right() -> None:
    memory = a_memory(m=40, n=30)
    memory.begin("o", 1.0)
    tell(memory, 2.0, n=30)
    tell(memory, 3.0, n=30)
    memory.answered("o")
    tell(memory, 4.0, n=30, o=50)
    assert memory.too_much == 120
    assert memory.most == 80


def test_the_most_that_was_seen_together_fits_again() -> None:
    memory = a_memory(m=40, n=30)
    tell(memory, 1.0, m=40)
    load(memory, "o", 2.0)
    tell(memory, 3.0, o=50)
    assert memory.too_much == 90
    assert not memory.fits("m")
    assert memory.fits("n")
    tell(memory, 4.0, m=40)
    assert memory.fits("n")


def test_what_was_seen_together_is_believed_over_what_seemed_not_to_fit() -> None:
    memory = a_memory(m=40)
    load(memory, "n", 1.0)
    tell(memory, 2.0, n=30)  # m expired in that moment, or was pushed out
    assert not memory.fits("m")
    tell(memory, 3.0, m=40, n=30)
    assert memory.too_much == 71
    tell(memory, 4.0, n=30)
    assert memory.fits("m")
    load(memory, "m", 5.0)
    tell(memory, 6.0, m=40)  # and pushed out again
    assert (memory.most, memory.too_much) == (70, 71)


def test_what_goes_while_nothing_came_was_not_pushed_out() -> None:
    memory = a_memory(m=40, n=30)
    tell(memory, 5.0, m=40)
    assert memory.too_much is None
    assert memory.fits("n")


def test_what_goes_after_the_load_was_seen_beside_it_was_not_pushed_out_by_it() -> None:
    memory = a_memory(m=40)
    load(memory, "n", 1.0)
    tell(memory, 2.0, m=40, n=30)
    tell(memory, 3.0, n=30)
    assert memory.too_much is None


def test_what_was_there_unknown_to_us_had_its_part_in_what_did_not_fit() -> None:
    memory = a_memory(m=40)
    memory.begin("n", 1.0)
    memory.end("n", 1.5)  # given up, as far as we know
    load(memory, "o", 2.0)
    tell(memory, 3.0, n=30, o=50)
    assert memory.too_much == 120


def test_what_came_after_it_was_asked_had_no_part_in_it() -> None:
    memory = a_memory(m=40)
    load(memory, "n", 1.0)
    load(memory, "o", 5.0)
    tell(memory, 2.0, late=4.0, n=30)
    assert memory.too_much == 70


def test_a_model_that_came_and_went_by_itself_pushed_nothing_out() -> None:
    """As with keep_alive 0: neither its own going nor that of another at the same time says what fits."""
    memory = a_memory(n=30)
    load(memory, "m", 1.0)
    tell(memory, 2.0, n=30)
    assert memory.too_much is None
    load(memory, "m", 3.0)
    tell(memory, 4.0)
    assert memory.too_much is None


def test_what_had_gone_before_a_load_began_was_not_pushed_out_by_it() -> None:
    memory = a_memory(m=40)
    load(memory, "o", 5.0)
    tell(memory, 4.9, late=3.0)
    assert not memory.holds("m")
    assert memory.too_much is None
    tell(memory, 9.0, o=50)
    assert memory.too_much is None


def test_what_the_listing_does_not_name_was_not_seen_together_with_what_it_names() -> None:
    """A slow listing: it was asked before the load that pushed out what it still names."""
    memory = a_memory(m=40)
    load(memory, "o", 5.0)
    tell(memory, 4.9, late=3.0, m=40)
    assert memory.holds("o")
    assert memory.most == 40
    tell(memory, 9.0, o=50)
    assert not memory.fits("m")


def test_what_loads_alone_fits_whatever_was_learned() -> None:
    memory = a_memory(m=40)
    load(memory, "n", 1.0)
    tell(memory, 2.0, n=30)
    memory.told(Contents({"huge": 900}, {}), asked=3.0, now=3.0)
    assert memory.fits("huge")


# how long it takes


def test_an_average_begins_with_the_first_value_and_moves_by_a_fifth() -> None:
    average = Average()
    assert average.known(7.0) == 7.0
    average.see(10.0)
    assert average.known(7.0) == 10.0
    average.see(20.0)
    assert average.known(7.0) == 12.0


@given(st.lists(st.floats(0.0, 100.0), min_size=1))
def test_an_average_stays_within_what_was_seen(values: list[float]) -> None:
    average = Average()
    for value in values:
        average.see(value)
    assert min(values) - 1e-9 <= average.known(-1.0) <= max(values) + 1e-9


def test_until_something_was_seen_times_are_the_usual_ones() -> None:
    memory = a_memory()
    usual = (USUAL_SERVICE, USUAL_FIRST_TOKEN, USUAL_LOAD)
    assert (memory.service("m"), memory.first_token("m"), memory.load("m")) == usual
    assert not memory.knows("m")


def test_the_times_of_a_model_are_its_own_else_those_of_all_models_here() -> None:
    memory = a_memory()
    memory.spoke("m", 1.0, cold=False)
    memory.served("m", 9.0, cold=False)
    memory.spoke("n", 2.0, cold=False)
    memory.served("n", 4.0, cold=False)
    assert (memory.first_token("m"), memory.service("m")) == (1.0, 9.0)
    assert (memory.first_token("n"), memory.service("n")) == (2.0, 4.0)
    assert (memory.first_token("o"), memory.service("o")) == (1.2, 8.0)
    assert (memory.knows("m"), memory.knows("o")) == (True, False)
    memory.spoke("o", 1.0, cold=False)
    assert memory.service("o") == 8.0


def test_a_load_is_what_a_first_token_took_longer() -> None:
    memory = a_memory()
    memory.spoke("m", 1.5, cold=False)
    memory.spoke("m", 21.5, cold=True)
    assert memory.load("m") == 20.0
    assert memory.first_token("m") == 1.5
    assert memory.load("n") == 20.0


def test_a_load_is_never_less_than_nothing() -> None:
    memory = a_memory()
    memory.spoke("m", 2.0, cold=False)
    memory.spoke("m", 0.5, cold=True)
    assert memory.load("m") == 0.0


def test_all_of_the_first_load_counts_while_nothing_is_known_of_first_tokens() -> None:
    memory = a_memory()
    memory.spoke("m", 0.5, cold=True)
    assert memory.load("m") == 0.5


def test_the_service_of_a_call_that_had_to_load_says_nothing_of_others() -> None:
    memory = a_memory()
    memory.served("m", 90.0, cold=True)
    assert memory.service("m") == USUAL_SERVICE
    assert not memory.knows("m")


def test_where_no_first_token_was_heard_a_load_is_what_the_whole_answer_took_longer() -> None:
    memory = a_memory()
    memory.served("m", 4.0, cold=False)
    memory.served("m", 24.0, cold=True)
    assert (memory.load("m"), memory.service("m")) == (20.0, 4.0)
    memory.spoke("m", 20.0, cold=True)
    memory.served("m", 90.0, cold=True)
    assert memory.load("m") == 20.0


def test_the_times_of_the_models_last_seen_are_kept_and_no_more() -> None:
    memory = a_memory()
    for n in range(MAX_TIMES):
        memory.served(f"m{n}", 1.0, cold=False)
    memory.served("m0", 1.0, cold=False)
    for n in range(100):
        memory.served(f"n{n}", 9.0, cold=False)
        memory.service(f"asked only {n}")
    assert len(memory._times) == MAX_TIMES
    assert memory.knows("m0")
    assert not memory.knows("m1")
    assert memory.knows(f"m{MAX_TIMES - 1}")
