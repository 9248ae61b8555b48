# SPDX-License-Identifier: Apache-2.0
"""What goes with what: rules by subject, checked before anything heavy is imported."""

from hftune.recipe.rules.batches import BATCH_RULES
from hftune.recipe.rules.data import DATA_RULES
from hftune.recipe.rules.distillation import DISTILLATION_RULES
from hftune.recipe.rules.evaluation import EVALUATION_RULES
from hftune.recipe.rules.initialization import INITIALIZATION_RULES
from hftune.recipe.rules.loss import LOSS_RULES
from hftune.recipe.rules.method import METHOD_RULES
from hftune.recipe.rules.model import MODEL_RULES
from hftune.recipe.rules.optimization import OPTIMIZATION_RULES
from hftune.recipe.rules.probe import PROBE_RULES
from hftune.recipe.rules.regularization import REGULARIZATION_RULES
from hftune.recipe.rules.sampling import SAMPLING_RULES
from hftune.recipe.rules.training import TRAINING_RULES

RULES = (
    *DATA_RULES,
    *SAMPLING_RULES,
    *BATCH_RULES,
    *MODEL_RULES,
    *METHOD_RULES,
    *PROBE_RULES,
    *LOSS_RULES,
    *DISTILLATION_RULES,
    *INITIALIZATION_RULES,
    *OPTIMIZATION_RULES,
    *REGULARIZATION_RULES,
    *EVALUATION_RULES,
    *TRAINING_RULES,
)
