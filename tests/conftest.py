"""What holds for all tests."""

from hypothesis import settings

# a machine that is busy with something else is no reason to fail
settings.register_profile("promptrollout", deadline=None, print_blob=True)
settings.load_profile("promptrollout")
