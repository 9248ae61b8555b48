# SPDX-License-Identifier: Apache-2.0
"""Bad input, case by case: one clear message, exit code 2, and no weight touched."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hftune import cli

GOOD_ROWS = "text,label\n" + "".join(f"{w} {i},{w}\n" for i in range(12) for w in ("red", "blue"))
QUESTIONS = [f'{{"role": "user", "content": "a{i}"}}' for i in range(12)]
CHATS = "".join(
    f'{{"messages": [{question}, {{"role": "assistant", "content": "b"}}]}}\n'
    for question in QUESTIONS
)
SILENCE = "".join(f'{{"messages": [{question}]}}\n' for question in QUESTIONS)


@dataclass
class Case:
    """A recipe that differs from a good one.

    Attributes:
        name: What is wrong.
        says: A pattern of the message.
        recipe: The YAML, with {model}, {decoder}, {data} and {folder} to fill in.
        rows: Content of the data file.
        suffix: Its kind.
        prepare: Changes the folder before the run.
    """

    name: str
    says: str
    recipe: str = ""
    rows: str | bytes = GOOD_ROWS
    suffix: str = ".csv"
    prepare: Callable[[Path], None] = field(default=lambda folder: None)


def recipe(
    task: str = "text-classification",
    model: str = "{model}",
    data: str = "{data}",
    method: str = "full",
    rest: str = "training: {{output_dir: {folder}/run, use_cpu: true}}",
) -> str:
    return f"task: {task}\nmodel: {model}\ndata: {data}\nmethod: {method}\n{rest}\n"


def training(fields: str) -> str:
    return recipe(rest="training: {{output_dir: {folder}/run, use_cpu: true, " + fields + "}}")


def schedule(name: str, fields: str) -> str:
    return training(f"lr_scheduler_type: {name}, lr_scheduler_kwargs: {{{{{fields}}}}}")


def _pickle_only(folder: Path) -> None:
    model = folder / "pickled"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "pytorch_model.bin").write_bytes(b"")


def _not_empty(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "something").write_text("mine")


def _read_only(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)


def _no_template(folder: Path) -> None:
    import shutil

    shutil.copytree(folder / "decoder", folder / "silent")
    for name in ("chat_template.jinja",):
        (folder / "silent" / name).unlink()


CASES = [
    # The recipe as text.
    Case("unknown key", r"recipe\.yaml:5: trainin: unknown key; did you mean training\?",
         recipe(rest="trainin: {{}}")),
    Case("mistyped key below", r"training\.learning_rte: unknown key; did you mean learning_rate",
         training("learning_rte: 1")),
    Case("mistyped key at depth", r"method\.eva_config\.rhoo: unknown key; did you mean rho",
         recipe(method="{{name: lora, eva_config: {{rhoo: 1}}}}")),
    Case("key of another library", r"warmup_ratio: unknown key; did you mean warmup_steps",
         training("warmup_ratio: 0.1")),
    Case("wrong type", r"num_train_epochs: expected a number, got the text 'three'",
         training("num_train_epochs: three")),
    Case("a list for text", r"task: expected .*, got \['a'\]", recipe(task="[a]")),
    Case("rate of zero", r"learning_rate: must be above 0, got 0", training("learning_rate: 0")),
    Case("negative rate", r"learning_rate: must be above 0", training("learning_rate: -1e-4")),
    Case("rank of zero", r"method\.r: must be at least 1, got 0",
         recipe(method="{{name: lora, r: 0}}")),
    Case("batch size of zero", r"per_device_train_batch_size: must be at least 1",
         training("per_device_train_batch_size: 0")),
    Case("unknown task", r"task: 'text-clasification' is not allowed; did you mean",
         recipe(task="text-clasification")),
    Case("unknown method", r"method: unknown method 'lorra'; did you mean lora",
         recipe(method="lorra")),
    Case("unknown loss", r"loss: unknown loss 'focl'", recipe(rest="loss: focl")),
    Case("missing section", r"model: missing", "task: text-classification\ndata: x\n"),
    Case("missing data", r"data\.path: missing", "task: text-classification\nmodel: x\n"),
    Case("duplicate key", r"recipe\.yaml:2: found duplicate key", "task: a\ntask: b\n"),
    Case("broken YAML", r"recipe\.yaml:\d: broken YAML", "task: [a\nmodel: b\n"),
    Case("empty recipe", r"this file holds nothing", "\n"),
    Case("push", r"push_to_hub: say where to: hub_model_id", training("push_to_hub: true")),
    Case("hub_token", r"hub_token: not taken: no token in any file", training("hub_token: hf_a")),
    Case("hub_strategy", r"hub_strategy: not taken: the .* once", training("hub_strategy: end")),
    Case("hub_id", r"hub_revision: it has an effect only with", training("hub_revision: a")),
    Case("no effect", r"do_train: not taken", training("do_train: true")),
    # Fields that conflict.
    Case("best without evaluation", r"best model can only be known with evaluation",
         training("load_best_model_at_end: true, eval_strategy: 'no'")),
    Case("best not saved", r"the best model must have been saved",
         training("load_best_model_at_end: true, save_strategy: steps")),
    Case("fp16 with bf16", r"fp16 and bf16 exclude each other", training("fp16: true, bf16: true")),
    Case("fp16 on a CPU", r"fp16 does nothing on a CPU", training("fp16: true")),
    Case("evaluation of nothing", r"nothing to evaluate on",
         recipe(data="{{path: '{data}', validation_size: 0}}",
                rest="training: {{output_dir: {folder}/run, eval_strategy: epoch}}")),
    Case("4-bit without bitsandbytes", r"bitsandbytes is not installed: pip install",
         recipe(model="{{path: '{model}', quantization: {{load_in_4bit: true}}}}", method="lora")),
    Case("4-bit full fine-tuning", r"quantized weights are frozen",
         recipe(model="{{path: '{model}', quantization: {{load_in_4bit: true}}}}")),
    Case("pooling of a language model", r"only the head of text-classification pools",
         recipe(task="text-generation",
                model="{{path: '{decoder}', classifier_pooling: mean}}")),
    Case("head_only of a language model", r"head_only goes with text-classification, token-",
         recipe(task="text-generation", model="{decoder}", method="head_only")),
    # The data.
    Case("missing file", r"nowhere\.csv: no such file\nhint: files in .*: data\.csv",
         recipe(data="{folder}/nowhere.csv")),
    Case("glob without match", r"the glob matches no file", recipe(data="'{folder}/*.tsv'")),
    Case("empty file", r"data\.csv: the file is empty", recipe(), ""),
    Case("empty split", r"data\.csv: no rows", recipe(), "text,label\n"),
    Case("not UTF-8", r"data\.csv: not UTF-8 at byte 13", recipe(), b"text,label\nca\xfc,red\n"),
    Case("broken json line", r"data\.jsonl:2: broken json", recipe(), '{"a": 1}\n{"a": \n',
         ".jsonl"),
    Case("broken parquet", r"data\.parquet: broken parquet", recipe(), b"PAR1 no", ".parquet"),
    Case("duplicate columns", r"duplicate columns text among text, text, label", recipe(),
         "text,text,label\na,b,c\n"),
    Case("missing column", r"no column for label; columns: \['text', 'team'\]\nhint: .*columns",
         recipe(), "text,team\na,b\n"),
    Case("named column missing", r"no column 'team'; columns: \['text', 'label'\]",
         recipe(data="{{path: '{data}', columns: {{label: team}}}}")),
    Case("one class", r"one class only: every label is 'red'", recipe(),
         "text,label\n" + "".join(f"{i},red\n" for i in range(9))),
    Case("null labels", r"no label in row 2, 4", recipe(), "text,label\na,x\nb,\nc,y\nd,\n"),
    Case("NaN labels", r"no label in row 1", recipe(), '{"text": "a", "label": NaN}\n', ".jsonl"),
    Case("unknown labels in validation", r"labels that training does not know: green",
         recipe(data="{{path: '{data}', validation: '{folder}/other.csv'}}"),
         prepare=lambda folder: (folder / "other.csv").write_text("text,label\na,green\n")),
    Case("all texts empty", r"all 2 texts are empty", recipe(), "text,label\n,a\n,b\n"),
    Case("weights of unknown labels", r"class_weights: unknown labels green",
         recipe(rest="loss: {{name: cross_entropy, class_weights: {{green: 2}}}}")),
    Case("a weight short", r"class_weights: 1 weights for 2 labels\nhint: .*blue, red",
         recipe(rest="loss: {{name: cross_entropy, class_weights: [2]}}")),
    Case("negative weight", r"class_weights: weights must not be negative",
         recipe(rest="loss: {{name: cross_entropy, class_weights: {{red: -1}}}}")),
    Case("weight without a number", r"class_weights\.red: expected a number, got null",
         recipe(rest="loss: {{name: cross_entropy, class_weights: {{red: }}}}")),
    Case("weights and a sampler", r"class_weights: data\.sampling .*leave one of the two out",
         recipe(data="{{path: '{data}', sampling: balanced}}",
                rest="loss: {{name: cross_entropy, class_weights: balanced}}")),
    Case("weights of rows missing", r"sampling\.column: no column 'trust'\nhint: .*text, label",
         recipe(data="{{path: '{data}', sampling: {{name: weighted, column: trust}}}}")),
    Case("curriculum column missing", r"curriculum\.column: no column 'grade'\nhint: .*text, label",
         recipe(data="{{path: '{data}', curriculum: {{name: column, column: grade}}}}")),
    Case("curriculum without its column", r"data\.curriculum: column needs to be told which",
         recipe(data="{{path: '{data}', curriculum: column}}")),
    Case("curriculum of words", r"column 'text': row 1 is no finite number",
         recipe(data="{{path: '{data}', curriculum: {{name: column, column: text}}}}")),
    Case("nobody to judge the rows", r"curriculum\.model: .*none: no finished model in it",
         recipe(data="{{path: '{data}', curriculum: {{name: loss, model: '{folder}/none'}}}}")),
    # Optimizers and schedules.
    Case("a schedule beyond the run", r"the first fall would come after 60 .*, and the run has 6",
         schedule("step", "unit: epoch, step_size: 30")),
    Case("stages beyond the run", r"decay 90 are 91 optimizer steps, and the run has 6",
         schedule("warmup_stable_decay", "num_decay_steps: 90")),
    Case("stages short of the run", r"decay 1 are 3 optimizer steps, and the run has 6",
         schedule("warmup_stable_decay", "num_decay_steps: 1, num_stable_steps: 1")),
    Case("milestone out of range", r"milestones: 1\.5 would come after 9 .*, and the run has 6",
         schedule("multistep", "unit: run, milestones: [0.5, 1.5]")),
    Case("milestones that fall", r"milestones: \[0\.7, 0\.5\] must be rising",
         schedule("multistep", "unit: run, milestones: [0.7, 0.5]")),
    Case("milestone before the run", r"milestones: item 1: must be above 0, got -1",
         schedule("multistep", "unit: step, milestones: [-1, 3]")),
    Case("warmup beyond the run", r"warmup_steps: 500 optimizer steps are all of the 6",
         training("warmup_steps: 500")),
    Case("lbfgs with accumulation", r"lbfgs computes the loss of its batch several times a step",
         training("optim: lbfgs, gradient_accumulation_steps: 2")),
    Case("conversation without roles", r"row 1 is no list of messages",
         recipe(task="text-generation", model="{decoder}"), '{"messages": ["hi"]}\n', ".jsonl"),
    Case("no trained token", r"no conversation of the training rows has an assistant",
         recipe(task="text-generation", model="{decoder}"),
         SILENCE, ".jsonl"),
    Case("no trained token after the cut", r"none of the \d+ rows has a trained token",
         recipe(task="text-generation", model="{decoder}",
                data="{{path: '{data}', max_length: 2, validation_size: 0}}"),
         CHATS, ".jsonl"),
    Case("no chat template", r"the tokenizer has no chat template",
         recipe(task="text-generation", model="{folder}/silent"), CHATS, ".jsonl",
         _no_template),
    # The model.
    Case("missing model folder", r"model\.path: \./nowhere: no such folder",
         recipe(model="./nowhere")),
    Case("unknown Hub id", r"model\.path: nobody/nothing", recipe(model="nobody/nothing")),
    Case("unknown demo model", r"minilm", recipe(model="demo:nothing")),
    Case("pickle only", r"only pickled weights \(pytorch_model\.bin\)",
         recipe(model="{folder}/pickled"), prepare=_pickle_only),
    Case("unknown field of the config", r"model\.config: BertConfig has no hidden_dropout",
         recipe(model="{{path: '{model}', config: {{hidden_dropout: 0}}}}")),
    Case("too long for the model", r"data\.max_length: 65 is beyond the model's 64 positions",
         recipe(data="{{path: '{data}', max_length: 65}}")),
    Case("target modules match nothing", r"\['q_proj'\] is not in .*matches nothing\nhint: .*query",
         recipe(method="{{name: lora, target_modules: [q_proj]}}")),
    Case("target modules match partly", r"\['vlaue'\] is not in .*matches only \['query'\]",
         recipe(method="{{name: lora, target_modules: [query, vlaue]}}")),
    Case("a pattern that matches nothing", r"method lora does not fit",
         recipe(method="{{name: lora, target_modules: '.*nothing'}}")),
    Case("options that PEFT refuses", r"method adalora: .*DoRA",
         recipe(method="{{name: adalora, use_dora: true}}")),
    # The run folder.
    Case("folder not empty", r"run is not empty\nhint: .*--resume", recipe(), prepare=_not_empty),
    Case("folder is a file", r"run is a file", recipe(),
         prepare=lambda folder: (folder / "run").write_text("")),
    Case("folder not writable", r"cannot be written",
         recipe(rest="training: {{output_dir: {folder}/locked/run, use_cpu: true}}"),
         prepare=_read_only),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(
    case: Case,
    tmp_path: Path,
    tiny_encoder: Path,
    tiny_decoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if case.name == "folder not writable" and os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    (tmp_path / "decoder").symlink_to(tiny_decoder)
    data = tmp_path / f"data{case.suffix}"
    data.write_bytes(case.rows.encode() if isinstance(case.rows, str) else case.rows)
    case.prepare(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        case.recipe.format(model=tiny_encoder, decoder=tiny_decoder, data=data, folder=tmp_path)
        if "{" in case.recipe
        else case.recipe
    )
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(
        "hftune.training.load_model.load_weights",
        lambda *_, **__: pytest.fail("weights were loaded"),
    )
    monkeypatch.setattr("hftune.core.rules.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["hftune", "train", str(path)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    error = said[said.index("error:") :]

    assert re.search(case.says, error), error
    assert "Traceback" not in said
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written, nothing lost


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        ("rprop", "compares the signs of two gradients; between batches they differ by chance"),
        ("lbfgs", "from differences of gradients; between batches they differ by chance"),
    ],
)
def test_an_optimizer_of_full_batches_is_remarked_on(
    optimizer: str,
    why: str,
    tmp_path: Path,
    tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not an error: the warning says why, and none comes where all rows are one batch."""
    data, path = tmp_path / "data.csv", tmp_path / "recipe.yaml"
    data.write_text(GOOD_ROWS)
    for fields, warned in (("", True), (", per_device_train_batch_size: 24", False)):
        text = training(f"optim: {optimizer}{fields}")
        path.write_text(text.format(model=tiny_encoder, data=data, folder=tmp_path))
        monkeypatch.setattr(sys, "argv", ["hftune", "check", str(path)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert (why in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "nowhere.yaml"], r"nowhere\.yaml: no such recipe"),
        (["train", "."], r"a folder, not a recipe"),
        (["train", "rows.csv"], r"rows\.csv: rows, not a recipe\n.*hftune init rows\.csv"),
        (["evaluate", "nowhere", "x.csv"], r"nowhere: no finished model in it"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\n")
    monkeypatch.setattr(sys, "argv", ["hftune", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert re.search(says, capsys.readouterr().err)
