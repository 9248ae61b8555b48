# SPDX-License-Identifier: Apache-2.0
"""PEFT's tables with our tuners in them. They are no documented interface, so this holds them."""

import subprocess
import sys

import pytest
from peft import PeftType, get_peft_config
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import LoraConfig, LoraModel

from hftune.methods.bottleneck import BottleneckConfig, BottleneckModel
from hftune.methods.peft_tuners import OwnPeftType, register, register_tuners
from hftune.methods.tuners import TUNERS


def test_every_tuner_is_in_every_table_under_its_text() -> None:
    register_tuners()
    assert {kind.value.lower() for kind in OwnPeftType} == set(TUNERS)
    for kind in OwnPeftType:
        for table in (
            PEFT_TYPE_TO_CONFIG_MAPPING,
            PEFT_TYPE_TO_TUNER_MAPPING,
            PEFT_TYPE_TO_PREFIX_MAPPING,
        ):
            assert table[kind.value] == table[kind]
        config = get_peft_config({"peft_type": kind.value})
        assert isinstance(config, TUNERS[kind.lower()].resolve_options())


def test_no_type_of_peft_is_ours() -> None:
    assert not {kind.value for kind in PeftType} & {kind.value for kind in OwnPeftType}


def test_registering_again_changes_nothing() -> None:
    before = dict(PEFT_TYPE_TO_TUNER_MAPPING)
    register(OwnPeftType["BOTTLENECK"], BottleneckConfig, BottleneckModel)
    assert before == PEFT_TYPE_TO_TUNER_MAPPING


def test_a_type_that_is_taken_is_refused() -> None:
    with pytest.raises(RuntimeError, match="PEFT has another tuner of the type BOTTLENECK"):
        register(OwnPeftType["BOTTLENECK"], LoraConfig, LoraModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING["BOTTLENECK"] is BottleneckConfig


def test_a_prefix_that_is_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        monkeypatch.delitem(table, OwnPeftType["BOTTLENECK"])
    monkeypatch.setitem(PEFT_TYPE_TO_PREFIX_MAPPING, "OTHER", "bottleneck_")
    with pytest.raises(RuntimeError, match="parameters start with bottleneck_"):
        register(OwnPeftType["BOTTLENECK"], BottleneckConfig, BottleneckModel)
    assert "BOTTLENECK" not in PEFT_TYPE_TO_CONFIG_MAPPING


def test_the_table_of_tuners_imports_nothing_heavy() -> None:
    code = "import hftune.methods, sys; print('torch' in sys.modules or 'peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
