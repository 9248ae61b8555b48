# SPDX-License-Identifier: Apache-2.0
"""Bottleneck adapters, as a PEFT tuner: ``h + scaling * up(f(down(h)))`` at chosen places.

PEFT has no such type. Importing this package tells it of one, and its own functions then do the
rest::

    from peft import PeftModel, get_peft_model
    from hftune.methods.bottleneck import BottleneckConfig

    model = get_peft_model(base, BottleneckConfig(placement="pfeiffer", reduction_factor=16))
    model.save_pretrained("adapter")
    model = PeftModel.from_pretrained(base, "adapter")

References:
    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, arXiv:1902.00751.
    Pfeiffer et al., "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", 2021,
        arXiv:2005.00247.
    He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", 2022,
        arXiv:2110.04366.
"""

from hftune.methods.bottleneck.config import BottleneckConfig
from hftune.methods.bottleneck.layer import BottleneckLayer
from hftune.methods.bottleneck.model import BottleneckModel
from hftune.methods.peft_tuners import OwnPeftType, register

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

register(OwnPeftType["BOTTLENECK"], BottleneckConfig, BottleneckModel)
