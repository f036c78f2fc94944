"""Fetching and reading weights, with a cache made by hand and no network."""

import errno
import pickle
from pathlib import Path
from socket import gaierror
from unittest.mock import Mock

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from safetensors.torch import save_file

from nablaflow import hub
from nablaflow.errors import UserError
from nablaflow.hub import check_keys, fetch, fetch_file, fetch_folder, load_weights, read_weights

REPO = "owner/name"
SHA = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache in place of the user's; the network is off in all tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def snapshot(cache):
    """A cached snapshot of two files."""
    root = cache / "models--owner--name"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(SHA)
    folder = root / "snapshots" / SHA
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    return folder


def line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_cached_file_and_folder_are_found_without_a_network(snapshot, capsys):
    assert fetch_file(REPO, "config.json") == snapshot / "config.json"
    assert fetch_folder(REPO, ["*.json", "model.safetensors"]) == snapshot
    assert capsys.readouterr().err == ""


def test_a_file_that_is_not_cached_says_what_to_fetch_and_where_to_put_it(cache, capsys):
    with pytest.raises(UserError) as error:
        fetch_file(REPO, "model.pt", revision="v1")
    assert line(error) == (
        "owner/name (model.pt) is not in the cache, and the hub cannot be reached: run `hf "
        "download owner/name model.pt --revision v1 --local-dir FOLDER` where it can, and give "
        "weights=FOLDER"
    )
    assert capsys.readouterr().err == "downloading model.pt of owner/name\n"


def test_a_folder_that_misses_a_file_is_not_taken_for_cached(snapshot):
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\* .*--include 'model\*'.*backbone="):
        fetch_folder(REPO, ["config.json", "model*"], field="backbone")


def test_what_is_downloaded_is_announced_with_its_size(cache, monkeypatch, capsys):
    class File:
        def __init__(self, rfilename, size):
            self.rfilename, self.size = rfilename, size

    class Info:
        siblings = (File("model.safetensors", 3_400_000), File("other.bin", 10**9))

    def not_there(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(HfApi, "model_info", lambda self, repo, **_: Info())
    monkeypatch.setattr(fetch, "snapshot_download", not_there)
    with pytest.raises(UserError):
        fetch_folder(REPO, ["model*"])
    assert capsys.readouterr().err == "downloading model* of owner/name, 3 MB\n"


@pytest.mark.parametrize(
    "cause",
    [gaierror(-2, "Name or service not known"), ConnectionRefusedError(errno.ECONNREFUSED, "no")],
)
def test_a_hub_out_of_reach_is_told_by_the_first_request(cache, monkeypatch, capsys, cause):
    def unreachable(self, repo, **_):
        try:
            raise cause
        except OSError as error:
            raise fetch.CLIENT_ERROR("no connection") from error

    def tries_again(*args, local_files_only=False, **_):
        assert local_files_only, "a download was begun, whose client tries many times"
        raise LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(fetch, "snapshot_download", tries_again)
    with pytest.raises(UserError, match="not in the cache, and the hub cannot be reached"):
        fetch_folder(REPO, ["model*"])
    assert capsys.readouterr().err == ""


def test_a_slow_hub_is_tried_by_the_download(cache, monkeypatch, capsys):
    def slow(self, repo, **_):
        raise fetch.CLIENT_ERROR("timed out") from TimeoutError("timed out")

    monkeypatch.setattr(HfApi, "model_info", slow)
    monkeypatch.setattr(fetch, "snapshot_download", lambda *_, **__: str(cache))
    with pytest.raises(UserError):
        fetch_folder(REPO, ["model*"])
    assert capsys.readouterr().err == "downloading model* of owner/name\n"


def test_other_processes_of_a_machine_say_nothing(cache, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError):
        fetch_file(REPO, "model.pt")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, "weights: owner/name is not on the hub, or needs a login"),
        (RevisionNotFoundError, "revision: owner/name has no v9"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(cache, monkeypatch, kind, said):
    response = Mock(headers={})

    def refuse(*args, local_files_only=False, **kwargs):
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        raise kind("refused", response=response)

    monkeypatch.setattr(fetch, "hf_hub_download", refuse)
    with pytest.raises(UserError) as error:
        fetch_file(REPO, "model.pt", revision="v9")
    assert line(error).startswith(said)


def from_cause(cause: Exception) -> LocalEntryNotFoundError:
    """What the hub's client makes of a failed request when the file is not cached either."""
    error = LocalEntryNotFoundError("please check your connection")
    error.__cause__ = cause
    return error


HTTP_500 = HfHubHTTPError("oops", response=Mock(headers={}, status_code=500))
FULL = (
    "cannot write the cache (No space left on device); free space, or set HF_HOME to a folder that "
    "can be written"
)
CLOSED = "cannot write the cache (Permission denied); free space, or set HF_HOME to a folder that"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), CLOSED),
        (HTTP_500, "the hub answers status 500; try again later"),
        (from_cause(HTTP_500), "the hub answers status 500; try again later"),
        (RuntimeError("Data processing\nerror"), "download failed (Data processing error); try"),
        (from_cause(OfflineModeIsEnabled("off")), "is not in the cache, and the hub cannot be"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "is not in the cache, and the hub"),
        (fetch.CLIENT_ERROR("broke off"), "is not in the cache, and the hub cannot be reached"),
    ],
)
def test_why_a_download_failed_is_told(cache, monkeypatch, error, said):
    def fail(*args, local_files_only=False, **kwargs):
        raise LocalEntryNotFoundError("not cached") if local_files_only else error

    monkeypatch.setattr(fetch, "hf_hub_download", fail)
    monkeypatch.setattr(fetch, "snapshot_download", fail)
    for ask in (lambda: fetch_file(REPO, "a.pt"), lambda: fetch_folder(REPO, ["a.pt"])):
        with pytest.raises(UserError) as caught:
            ask()
        assert line(caught).replace("):", ")").startswith(f"{REPO} (a.pt) {said}")


def test_a_fault_of_ours_is_not_taken_for_a_missing_connection(cache, monkeypatch):
    def faulty(*args, local_files_only=False, **kwargs):
        raise LocalEntryNotFoundError("not cached") if local_files_only else TypeError("ours")

    monkeypatch.setattr(fetch, "hf_hub_download", faulty)
    with pytest.raises(TypeError, match="ours"):
        fetch_file(REPO, "a.pt")


def test_where_no_setting_takes_a_folder_the_cache_is_to_be_copied(cache):
    with pytest.raises(UserError) as error:
        fetch_folder(REPO, ["config.json", "model.safetensors"], field=None)
    assert line(error) == (
        "owner/name (config.json, model.safetensors) is not in the cache, and the hub cannot be "
        "reached: run `hf download owner/name config.json model.safetensors` where it can, and "
        "copy its cache (HF_HOME) here"
    )


def test_what_is_no_id_is_refused(cache):
    for ask in (lambda: fetch_file("a/b/c", "x"), lambda: fetch_folder("a/b/c", ["x"])):
        with pytest.raises(UserError, match="weights: 'a/b/c' is neither a path nor a hub id"):
            ask()


def test_local_files_and_folders(tmp_path):
    file = tmp_path / "model.pt"
    file.write_text("")
    assert fetch_file(REPO, "model.pt", local=file) == file
    assert fetch_file(REPO, "model.pt", local=tmp_path) == file
    assert fetch_folder(REPO, ["model.*"], local=tmp_path) == tmp_path
    with pytest.raises(UserError, match=r"weights: there is no file .*other\.pt; check the path"):
        fetch_file(REPO, "other.pt", local=tmp_path)
    with pytest.raises(UserError, match="backbone: there is no folder"):
        fetch_folder(REPO, ["*"], local=tmp_path / "no", field="backbone")
    with pytest.raises(UserError, match=r"weights: .* has no config\.json; copy it there"):
        fetch_folder(REPO, ["config.json"], local=tmp_path)


def test_a_path_is_told_from_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not hub.is_local("openai/clip-vit-large-patch14")
    assert not hub.is_local("owner/name@refs/pr/3")
    assert not hub.is_local("owner/name-v1.5")
    assert all(map(hub.is_local, ("./clip", "~/clip", "/clip", "clip", "a/b/c")))
    assert all(map(hub.is_local, ("weights/head.pth", "a/b.pt", "a/b.safetensors", "a/b.bin")))
    (Path("a") / "b").mkdir(parents=True)
    assert hub.is_local("a/b")


def test_both_kinds_of_file_are_read(tmp_path):
    state = {"w": torch.arange(3.0)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pt")
    found = [
        read_weights(tmp_path / "a.safetensors"),
        read_weights(tmp_path / "b.pt"),
        read_weights(tmp_path / "c.pt", inside="state_dict"),
    ]
    for each in found:
        assert torch.equal(each["w"], state["w"])
        assert list(each) == ["w"]


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_cannot_be_read_is_one_line_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(1000)}, "whole.pt")
    contents = {
        "page.pt": b"<html>404</html>",
        "empty.pt": b"",
        "cut.pt": Path("whole.pt").read_bytes()[:2000],
        "cut.safetensors": b"\x10\x00",
        "harm.pt": pickle.dumps({"w": Harm()}),
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
        with pytest.raises(UserError) as error:
            read_weights(Path(name))
        assert line(error).startswith(f"{name} cannot be read as weights (")
    torch.save(Harm(), "harm.pt")
    with pytest.raises(UserError, match=r"harm.pt cannot be read"):
        read_weights(Path("harm.pt"))
    assert not Path("harm").exists()


def test_files_of_something_else_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt holds no named tensors"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt has no 'state_dict'"):
        read_weights(tmp_path / "a.pt", inside="state_dict")


def test_keys_that_differ_are_named_and_counted():
    check_keys("ab", "ba", "x.pt")
    with pytest.raises(UserError) as error:
        check_keys("abcdef", "fgh", "x.pt")
    assert line(error) == (
        "x.pt does not fit, keys are 5 missing (a, b, c, …) and 2 unknown (g, h); "
        "give the checkpoint of this network, as it was published"
    )
    with pytest.raises(UserError, match=r"keys are 1 missing \(b\); give"):
        check_keys("ab", "a", "x.pt")


def test_weights_go_into_a_network_whole_or_not_at_all():
    network = torch.nn.Linear(2, 3)
    state = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    load_weights(network, state, "x.pt")
    assert torch.equal(network.weight, state["weight"])
    with pytest.raises(UserError, match=r"bias: \(4,\), not \(3,\)"):
        load_weights(network, {**state, "bias": torch.zeros(4)}, "x.pt")
