"""For all tests: no example of a property has a limit of time. Machines that run tests are busy."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
