# SPDX-License-Identifier: Apache-2.0
"""Rules of where new weights begin."""

from collections.abc import Callable
from functools import partial

from hftune.core.rules import RecipeView, Rule
from hftune.initialization import SCHEMES
from hftune.initialization.section import OPTIONS, Drawing, InitializationSection
from hftune.methods import ROWS

#: Methods that train pretrained layers whole, so that one without its weights can learn.
TRAINS_LAYERS = ", ".join(name for name, row in ROWS.items() if row.trains == "weights")


def _any(test: Callable[[Drawing], bool], view: RecipeView) -> bool:
    return any(test(drawing) for drawing in view[InitializationSection].drawings())


def _schemes(option: str) -> list[str]:
    return [name for name, row in SCHEMES.items() if option in row.options]


def _misplaced(option: str, drawing: Drawing) -> bool:
    return option in drawing.options and drawing.name not in _schemes(option)


def _bounds_are_wrong(drawing: Drawing) -> bool:
    if drawing.name not in ("uniform", "trunc_normal"):
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
    Rule(
        "initialization",
        "constant needs its value, val",
        partial(_any, lambda drawing: drawing.name == "constant" and drawing.val is None),
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
                str(drawing.name).startswith("kaiming")
                and drawing.a is not None
                and drawing.nonlinearity not in (None, "leaky_relu")
            ),
        ),
    ),
    Rule(
        "initialization.name",
        "prior is for one bias: name it in initialization.rules",
        lambda s: s[InitializationSection].name == "prior",
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
        lambda s: s.method_row.fitted and s[InitializationSection].is_said,
    ),
)
