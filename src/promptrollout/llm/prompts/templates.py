"""Templates as the gateway renders them: the environment of `api.template`, with limits on everything that it can do.

A template is written by people who may change prompts, its variables by any caller. Neither may block the event loop
for long: every step checks a clock, and nothing is made before its size is known to be limited. The variables are
measured first. An expression can make a container only with a literal, `+`, or a filter: none of these makes more than
it was given, or the result is measured. Texts are measured wherever they can grow. Text from a request is always a
value, and never parsed.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

from jinja2 import StrictUndefined, Template, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.visitor import NodeTransformer

from promptrollout.api.template import LOOP_METHODS, METHODS, PromptEnvironment, compile_template
from promptrollout.llm.errors import PrepareError
from promptrollout.llm.prompts.bounds import (
    FILTER_CHECKS,
    MAX_CHARACTERS,
    MAX_VALUES,
    RenderError,
    bounded_text,
    check_bits,
    check_strip_set,
    measure,
    split,
    too_many,
)

logger = logging.getLogger(__name__)

MAX_RENDER_SECONDS: Final = 0.25
"""Of CPU time: a pod that waits for its share of a core must not refuse a harmless prompt."""

_LOOP_FIELDS: Final = LOOP_METHODS | frozenset(
    {"depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0"}
)
_ITERATING: Final = frozenset(
    {"dictsort", "items", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique"}
)

Test = Callable[..., bool]


class MissingVariable(PrepareError):
    """The template uses a variable that the request does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _NamedUndefined(StrictUndefined):
    """Fails like StrictUndefined, but names the missing variable."""

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


class _Guards(NodeTransformer):
    """Adds a guard, as a filter whose name no template can use, where Jinja does not call the environment."""

    def _guarded(self, node: nodes.Node, guard: str) -> nodes.Filter:
        return nodes.Filter(node, guard, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._guarded(node.iter, "__bounded")
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._guarded(node.expr, "__timed")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        # Jinja does not call the environment for a slice
        return self._guarded(node, "__timed") if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._guarded(nodes.List(node.nodes, lineno=node.lineno), "__concatenated")

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else self._guarded(node, "__measured")

    visit_Tuple = visit_Dict = visit_List


class _GuardedEnvironment(PromptEnvironment):
    """Every step checks the clock, and the size of what it is about to make."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    deadline: float = float("inf")
    """On the wall clock, which is quick to read. Only after it is the CPU time read, which decides."""
    cpu_deadline: float = float("inf")

    def __init__(self) -> None:
        super().__init__(undefined=_NamedUndefined)
        self.filters = {name: self._guarded_filter(name, function) for name, function in self.filters.items()}
        self.filters["safe"] = lambda value: value  # there is no autoescaping
        self.tests = {name: self._timed_test(cast(Test, function)) for name, function in self.tests.items()}
        self.filters |= {
            "__bounded": self._bounded,
            "__timed": self._timed,
            "__concatenated": self._concatenated,
            "__measured": self._measured,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Guards().visit(tree)
        return tree

    def check_clock(self) -> None:
        if time.perf_counter() > self.deadline and time.thread_time() > self.cpu_deadline:
            raise RenderError(f"rendering took longer than {MAX_RENDER_SECONDS} s")

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.check_clock()
        if isinstance(obj, dict):
            if attribute in obj and attribute not in METHODS[dict]:
                return obj[attribute]
            return getattr(obj, attribute) if attribute in METHODS[dict] else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, Undefined):
            return getattr(obj, attribute)
        if isinstance(obj, str):
            allowed = attribute in METHODS[str]
        else:
            allowed = isinstance(obj, LoopContext) and attribute in _LOOP_FIELDS
        if allowed:
            return getattr(obj, attribute)
        if hasattr(obj, attribute):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check_clock()
        if not isinstance(obj, LoopContext):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass  # it may be an attribute, as in all of Jinja
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.check_clock()
        owner = getattr(__obj, "__self__", None)
        if not isinstance(owner, str):
            return super().call(__context, __obj, *args, **kwargs)
        if __obj.__name__ == "split":
            return split(owner, *args, **kwargs)
        if __obj.__name__.endswith("strip"):
            check_strip_set(*args)
        return bounded_text(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.check_clock()
        for side in (left, right):
            if isinstance(side, int):
                check_bits(side)
            elif operator != "+" and not isinstance(side, float | Undefined):
                raise RenderError(
                    f"the operator {operator} works only on numbers in prompts, not on {type(side).__name__}"
                )
        if operator == "**":
            raise RenderError("the operator ** is not supported in prompts")
        if operator == "+" and not isinstance(left, int | float):
            measure((left, right))
        return super().call_binop(context, operator, left, right)

    # ------------------------------------------------------------------------------------------- guards

    def _timed(self, value: Any) -> Any:
        self.check_clock()
        return value

    def _bounded(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.check_clock()
            yield item

    def _measured(self, value: Any) -> Any:
        self.check_clock()
        measure(value)
        return value

    def _concatenated(self, values: list[Any]) -> str:
        self.check_clock()
        measure(values)
        text = "".join(map(str, values))
        bounded_text(text)
        return text

    def _guarded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        check = FILTER_CHECKS.get(name)
        # the first argument of some is Jinja's
        own = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.check_clock()
            if name in _ITERATING and hasattr(args[own], "__len__") and len(args[own]) > MAX_VALUES:
                raise too_many()
            if check is not None:
                check(*args[own:], **kwargs)
            result = function(*args, **kwargs)
            if isinstance(result, str):
                return bounded_text(result)
            if isinstance(result, int):
                check_bits(result)
            elif isinstance(result, Iterator):
                result = list(self._bounded(result))
            if isinstance(result, list) and len(result) > MAX_VALUES:
                raise too_many()
            return result

        return guarded

    def _timed_test(self, function: Test) -> Test:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> bool:
            self.check_clock()
            return function(*args, **kwargs)

        return timed


# rendering happens in the event loop's thread only, so one deadline at a time suffices
_ENVIRONMENT: Final = _GuardedEnvironment()

Renderer = Callable[[Mapping[str, Any]], str]


def compile_renderer(text: str) -> Renderer:
    """A function from variables to text, which raises only MissingVariable or RenderError.

    Raises ValueError, with line and fix, for an invalid template.
    """
    compile_template(text)
    if "{" not in text:
        return lambda variables: text
    try:
        return _SafeTemplate(_ENVIRONMENT.from_string(text), text)
    except (RecursionError, MemoryError, SyntaxError) as error:  # the guards nest a little deeper
        raise ValueError("nested too deeply: simplify the template") from error


class _SafeTemplate:
    """A template that turns every failure into MissingVariable or RenderError."""

    __slots__ = ("_reported", "_template", "_text")

    def __init__(self, template: Template, text: str) -> None:
        self._template = template
        # Jinja's chain of mappings would be copied name by name for each rendering
        template.globals = dict(template.globals)
        self._text = text
        self._reported = False

    def __call__(self, variables: Mapping[str, Any]) -> str:
        try:
            return _render(self._template, variables)
        except (MissingVariable, RenderError):
            raise
        except Exception as error:
            # an expression, or Jinja itself, failed on an unexpected value. Logged once, and without the message, which
            # may quote callers' values
            if not self._reported:
                self._reported = True
                logger.warning("the template %r failed with %s", self._text[:80], type(error).__name__)
            if isinstance(error, SecurityError):
                raise RenderError(f"not allowed in a prompt: {error}") from error
            if isinstance(error, MemoryError):
                raise RenderError("the values are too large") from error
            raise RenderError(f"{type(error).__name__}: {str(error)[:300]}") from error


def _render(template: Template, variables: Mapping[str, Any]) -> str:
    environment = _ENVIRONMENT
    environment.deadline = time.perf_counter() + MAX_RENDER_SECONDS
    environment.cpu_deadline = time.thread_time() + MAX_RENDER_SECONDS
    measure(variables)
    pieces: list[str] = []
    size = 0
    for piece in template.root_render_func(template.new_context(dict(variables))):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_CHARACTERS:
            raise RenderError(f"the rendered prompt is longer than {MAX_CHARACTERS} characters")
        environment.check_clock()
    text = "".join(pieces)
    # a template can contain half of a surrogate pair, which cannot be sent
    if not text.isascii():
        text.encode()
    return text
