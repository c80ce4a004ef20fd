"""One test of a whole catalogue: looks of a moment each, so many that to start tests would take longer."""

import functools


def every(values, name=lambda value: value.name):
    """The test that `check` passes for every value; it names all those for which it does not."""
    def made(check):
        def test():
            wrong = {}
            for value in values:
                try:
                    check(value)
                except Exception as error:
                    wrong[name(value)] = error
            told = [f"{of}: {type(error).__name__}: {error}" for of, error in wrong.items()]
            if wrong:
                raise AssertionError("\n".join(told)) from next(iter(wrong.values()))

        functools.update_wrapper(test, check)
        del test.__wrapped__  # pytest would ask for its argument
        return test

    return made
