"""Templates as the gateway renders them: the environment of `api.template`, plus a limit on size and time.

A template is written by people who may change prompts, its variables by any caller. Neither may hold the event loop
for long: loops, calls and repetitions ask a clock. Text from a request is only ever a value, never parsed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

from promptrollout.api.template import PromptEnvironment, compile_template

MAX_OUTPUT_CHARACTERS: Final = 1024 * 1024
MAX_RENDER_SECONDS: Final = 0.25


class MissingVariable(Exception):
    """The template names a variable that the request does not bring."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class RenderError(Exception):
    """The template cannot be filled with these values."""


class _NamedUndefined(StrictUndefined):
    """Fails like StrictUndefined, but says which name was missing."""

    __slots__ = ()

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        if self._undefined_exception is SecurityError:
            raise RenderError(f"not allowed in a prompt: {self._undefined_message}")
        raise MissingVariable(self._undefined_name or "?")

    _fail_with_undefined_error = _fail
    __iter__ = __str__ = __len__ = __eq__ = __ne__ = __bool__ = __hash__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _fail
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __pos__ = __neg__ = _fail
    __call__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _fail
    __int__ = __float__ = __complex__ = __pow__ = __rpow__ = _fail

    def __getattr__(self, name: str) -> Any:
        # the interpreter and Jinja look for optional double-underscore attributes on everything
        if name[:2] == "__":
            raise AttributeError(name)
        return self._fail()


class _GuardedEnvironment(PromptEnvironment):
    """Every turn of a loop and every call looks at the clock; a repetition looks at its size first."""

    intercepted_binops = frozenset(["*", "**", "%"])
    deadline: float = float("inf")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "__bounded", [], [], None, None, lineno=loop.lineno)
        return tree

    def check_clock(self) -> None:
        if time.perf_counter() > self.deadline:
            raise RenderError(f"rendering took longer than {MAX_RENDER_SECONDS} s")

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.check_clock()
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_widths((*args, *kwargs.values()))  # ljust, center, zfill, …
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                sized = isinstance(times, int) and hasattr(sequence, "__len__")
                if sized and len(sequence) * times > MAX_OUTPUT_CHARACTERS:
                    raise RenderError(f"a repetition makes more than {MAX_OUTPUT_CHARACTERS} characters")
        elif operator == "**" or isinstance(left, str):
            raise RenderError(f"the operator {operator} is not supported in prompts")
        return super().call_binop(context, operator, left, right)


def _environment() -> _GuardedEnvironment:
    environment = _GuardedEnvironment(undefined=_NamedUndefined)
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]

    def bounded(iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            environment.check_clock()
            yield item

    environment.filters["__bounded"] = bounded
    for name in ("center", "indent"):
        environment.filters[name] = _with_bounded_width(environment.filters[name])
    return environment


def _check_widths(arguments: Iterable[Any]) -> None:
    """A width may come from a caller; text of that size is made before anything could look at it."""
    if any(isinstance(width, int) and width > MAX_OUTPUT_CHARACTERS for width in arguments):
        raise RenderError(f"a width is larger than {MAX_OUTPUT_CHARACTERS}")


def _with_bounded_width(padding: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(padding)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_widths((*args, *kwargs.values()))
        return padding(*args, **kwargs)

    return bounded


# rendering happens in the event loop's thread only, so one deadline at a time suffices
_ENVIRONMENT: Final = _environment()

# what an expression raises on a value that it was not written for
_VALUE_ERRORS: Final = (
    TemplateError,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    AttributeError,
)

Renderer = Callable[[Mapping[str, Any]], str]


def compile_renderer(text: str) -> Renderer:
    """A function from variables to text; it raises MissingVariable or RenderError.

    Raises ValueError, with line and fix, for what is no template.
    """
    compile_template(text)
    if "{" not in text:
        return lambda variables: text
    template = _ENVIRONMENT.from_string(text)
    return lambda variables: _render(template, variables)


def _render(template: Template, variables: Mapping[str, Any]) -> str:
    environment = _ENVIRONMENT
    environment.deadline = time.perf_counter() + MAX_RENDER_SECONDS
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.root_render_func(template.new_context(dict(variables))):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT_CHARACTERS:
                raise RenderError(f"the rendered prompt is longer than {MAX_OUTPUT_CHARACTERS} characters")
            environment.check_clock()
    except (MissingVariable, RenderError):
        raise
    except SecurityError as error:
        raise RenderError(f"not allowed in a prompt: {error}") from error
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        # what an expression raises on a value that it was not written for
        raise RenderError(f"{type(error).__name__}: {error}") from error
    except MemoryError as error:
        raise RenderError("the values are too large") from error
    return "".join(pieces)
