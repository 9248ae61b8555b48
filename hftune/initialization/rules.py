# SPDX-License-Identifier: Apache-2.0
"""Rules of the schemes that draw new weights."""

from collections.abc import Callable
from functools import partial

from hftune.core.rules import RecipeView, Rule
from hftune.initialization import SCHEMES
from hftune.initialization.section import OPTIONS, Drawing, InitializationSection
from hftune.methods import ROWS

FOR_ONE_BIAS = ", ".join(name for name, row in SCHEMES.items() if row.draws == "vectors")
#: Methods that train pretrained layers whole, so that one without its weights can learn.
TRAINS_LAYERS = ", ".join(name for name, row in ROWS.items() if row.trains == "weights")


def _any(test: Callable[[Drawing], bool], view: RecipeView) -> bool:
    return any(test(drawing) for drawing in view[InitializationSection].drawings())


def _schemes(option: str) -> list[str]:
    return [name for name, row in SCHEMES.items() if option in row.options]


def _misplaced(option: str, drawing: Drawing) -> bool:
    return option in drawing.options and drawing.name not in _schemes(option)


def _lacks(scheme: str, option: str, drawing: Drawing) -> bool:
    return drawing.name == scheme and option not in drawing.options


def _bounds_are_wrong(drawing: Drawing) -> bool:
    if drawing.name is None or not SCHEMES[drawing.name].bounds:
        return False
    row, given = SCHEMES[drawing.name], drawing.options
    std, mean = given.get("std", row.settings.get("std", 0)), given.get("mean", 0)
    usual = {"a": mean - 2 * std, "b": mean + 2 * std, **row.settings}
    return bool({**usual, **given}["a"] >= {**usual, **given}["b"])


INITIALIZATION_RULES = (
    *(
        Rule(
            "initialization",
            f"{option} is an option of {', '.join(_schemes(option))}",
            partial(_any, partial(_misplaced, option)),
        )
        for option in OPTIONS
    ),
    *(
        Rule(
            "initialization",
            f"{name} needs its value, {option}",
            partial(_any, partial(_lacks, name, option)),
        )
        for name, row in SCHEMES.items()
        for option in row.required
    ),
    Rule(
        "initialization",
        "a, the lower bound, must be below b, the upper one",
        partial(_any, _bounds_are_wrong),
    ),
    Rule(
        "initialization",
        "a is the slope of leaky_relu; with another nonlinearity it has no effect",
        partial(
            _any,
            lambda drawing: (
                not _misplaced("nonlinearity", drawing)
                and drawing.a is not None
                and drawing.nonlinearity not in (None, "leaky_relu")
            ),
        ),
    ),
    Rule(
        "initialization.name",
        f"{FOR_ONE_BIAS} is for one bias: name it in initialization.rules",
        lambda s: (
            (name := s[InitializationSection].name) is not None and SCHEMES[name].draws == "vectors"
        ),
    ),
    *(
        Rule(
            f"initialization.{key}",
            f"only {TRAINS_LAYERS} train whole layers; with other methods a layer that is drawn "
            "anew would stay random",
            partial(
                lambda key, s: (
                    getattr(s[InitializationSection], key) is not None
                    and s.method_row.trains not in ("weights", "features")
                ),
                key,
            ),
        )
        for key in ("reinit_top_layers", "reinit_modules")
    ),
    Rule(
        "initialization",
        "a probe has no new weights in the model",
        lambda s: s.method_row.fitted and s[InitializationSection].is_set,
    ),
)
