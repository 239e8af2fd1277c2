"""A fixed sample of the mutants that mutmut makes of the engine, and how many of them the unit tests kill.

`make mutation` runs it: all 5,900 would take hours. What only changes wording is left out: sentences, and functions
that do nothing but write them.
"""

import argparse
import ast
import json
import random
import re
import subprocess
import sys
from pathlib import Path

ENGINE = Path("src/promptrollout/engine")
MUTANTS = "mutants" / ENGINE
MODULES = (
    *("lifecycle.analysis", "lifecycle.conditions", "lifecycle.draft", "lifecycle.moves", "lifecycle.plan"),
    *(
        "lifecycle.progress",
        "lifecycle.verbs",
        "objectives.definitions",
        "objectives.mean",
        "objectives.mean_state",
        "objectives.rate",
    ),
    *("objectives.rate_state", "objectives.sample_ratio", "statistics.bernoulli", "statistics.common_cause"),
    *("statistics.contrast", "statistics.dispersion", "statistics.evidence", "statistics.incident"),
    "statistics.logspace",
)
WRITERS = re.compile(r"_text__mutmut_")
KILLED = (1, 3, 24, 36, 152, 255, -24)
"""Exit codes of mutmut's workers: a test failed, or the time was up."""


class _Nameless(ast.NodeTransformer):
    """What is compared of a mutant and its original: all but the function's name and its sentences."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.name, node.decorator_list = "", []
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) and " " in node.value else node


def below(directory: Path, module: str, suffix: str = ".py") -> Path:
    return directory.joinpath(*module.split(".")).with_suffix(suffix)


def mutants_of(module: str) -> list[str]:
    """Names of the module's mutants, as mutmut calls them."""
    tree = ast.parse(below(MUTANTS, module).read_text())
    bodies = {
        node.name: ast.dump(_Nameless().visit(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name
    }
    return [
        f"promptrollout.engine.{module}.{name}"
        for name, body in bodies.items()
        if not name.endswith("_orig")
        and not WRITERS.search(name)
        and body != bodies[re.sub(r"__mutmut_\d+$", "__mutmut_orig", name)]
    ]


def sample(size: int, seed: int) -> list[str]:
    """About `size` mutants, from each module as many as its share of the lines."""
    lines = {m: len(below(ENGINE, m).read_text().splitlines()) for m in MODULES}
    rng = random.Random(seed)
    chosen: list[str] = []
    for module in MODULES:
        found = mutants_of(module)
        if not found:
            raise SystemExit(
                f"mutmut made no mutants of {module}: does `only_mutate` in pyproject.toml match its path?"
            )
        chosen += rng.sample(found, min(len(found), round(size * lines[module] / sum(lines.values()))))
    return chosen


def report(names: list[str]) -> None:
    killed: dict[str, list[bool]] = {}
    for module in MODULES:
        codes = json.loads(below(MUTANTS, module, ".py.meta").read_text())["exit_code_by_key"]
        for name in names:
            if name.startswith(f"promptrollout.engine.{module}."):
                killed.setdefault(module, []).append(codes[name] in KILLED)
                if not killed[module][-1]:
                    print(f"survived: {name}")
    for module, results in killed.items():
        print(f"{module:24}{sum(results):5} of{len(results):4} killed")
    found = [result for results in killed.values() for result in results]
    print(f"{'all':24}{sum(found):5} of{len(found):4} killed: {100 * sum(found) / len(found):.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only report what was found before")
    arguments = parser.parse_args()
    run = [str(Path(sys.executable).with_name("mutmut")), "run", f"--max-children={arguments.jobs}"]
    if not arguments.report:  # mutmut writes all mutants before it runs the first
        subprocess.run([*run, "promptrollout.engine.statistics.bernoulli.x_log_bound__mutmut_1"], check=True)
    names = sample(arguments.size, arguments.seed)
    if not arguments.report:
        subprocess.run([*run, *names], check=True)
    report(names)


if __name__ == "__main__":
    main()
