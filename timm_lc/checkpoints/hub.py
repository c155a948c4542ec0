"""Push networks to the Hugging Face Hub: one commit, from which `timm.create_model('hf-hub:...')` builds them again."""

import copy
import dataclasses
import re
import shutil
import tempfile
from http.client import responses
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from torch import nn

from timm_lc.arguments import check_module, unwrapped
from timm_lc.checkpoints.card import model_card
from timm_lc.checkpoints.checkpoint import (
    CARD,
    CONFIG,
    WEIGHTS,
    is_foreign_card,
    save_pretrained,
    stored_weights,
)
from timm_lc.checkpoints.exporting import ONNX, PROGRAM, export
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.usage import PlainForm
from timm_lc.transforms.fold import fold

__all__ = ['push_to_hub', 'read_card', 'write_repositories']

# What huggingface_hub raises: its own errors and those of the HTTP library below it, whose base is one of these
FAILURES: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, RuntimeError, ValueError)

ADVICE = {
    400: 'correct it and push again',
    401: 'log in with `hf auth login`, or give a token that may write',
    403: 'give a token that may write to this repository, or open a pull request with `create_pr`',
    404: 'check the name; a private repository needs a login: `hf auth login`',
    409: 'something else changed the repository at the same time: push again',
    412: 'something else changed the repository at the same time: push again',
}
PLAIN = 'plain'  # folder of the form that needs no timm_lc
AGAIN = 'push again later; what has arrived is not sent again'


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    plain: bool = False,
    plain_repo: str | None = None,
    facts: Facts | None = None,
    card: str | None = None,
    sparse: bool = False,
    dtype: torch.dtype | None = None,
    token: str | None = None,
    commit_message: str = 'Add model',
) -> list[str]:
    """Push what `save_pretrained` writes to the Hugging Face Hub; `timm.create_model('hf-hub:user/name')` reads it.

    Each repository changes in one commit or not at all, and in none if nothing differs. A README.md there that
    somebody else wrote stays. Nothing is written on this machine.

    Args:
        model: A network from `timm.create_model`.
        repo_id: `user/name`; made if need be.
        private: Whether a repository made by this is private; None is the owner's default. One that is there and
            public is then refused.
        revision: Branch to push to; made from the main branch if need be.
        create_pr: Whether to open a pull request against the main branch.
        plain: Whether to add the form that needs no `timm_lc`, `export(model, 'plain', ...)`, in the folder plain/.
        plain_repo: Repository for that form, in place of the folder.
        facts: What the model cards say of the training.
        card: Text of README.md in place of `model_card(...)`.
        sparse: As in `save_pretrained`; not for the plain form.
        dtype: As in `save_pretrained`; not for the plain form.
        token: Of the Hub; None is that of `hf auth login` or the environment.
        commit_message: First line of the commit, title of the pull request.

    Returns:
        For each repository the address of the commit or pull request.

    Raises:
        ValueError: If an argument is wrong, or the plain form does not give the logits of `model`.
        ConnectionError: If the Hub refuses or does not answer. What went wrong and what to do is one line.
    """
    check_module(model)
    if create_pr and revision not in (None, 'main'):
        raise ValueError(f'`create_pr` is for the main branch: it cannot go with `revision` {revision!r}')
    api = HfApi(token=token, library_name='timm_lc')
    with tempfile.TemporaryDirectory() as root:
        written = write_repositories(
            model, root, repo_id, plain=plain, plain_repo=plain_repo, facts=facts, card=card, sparse=sparse, dtype=dtype
        )
        return [
            _upload(
                api,
                repository,
                Path(root, repository),
                files,
                private=private,
                revision=revision,
                create_pr=create_pr,
                message=commit_message,
            )
            for repository, files in written.items()
        ]


def write_repositories(
    model: nn.Module,
    root: str | Path,
    repo_id: str,
    *,
    plain: bool = False,
    plain_repo: str | None = None,
    facts: Facts | None = None,
    card: str | None = None,
    sparse: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, list[Path]]:
    """Write the files that `push_to_hub` uploads, each repository's to the folder `root/user/name`.

    Returns:
        The files of each repository: of `repo_id`, and of `plain_repo` if it is given.

    Raises:
        ValueError: As in `push_to_hub`.
    """
    if plain and plain_repo:
        raise ValueError('give `plain` or `plain_repo`, not both')
    plain_repo = repo_id if plain else plain_repo
    for name in filter(None, (repo_id, plain_repo)):
        if not re.fullmatch(r'\b[\w.-]+\b/\b[\w.-]+\b', name):
            raise ValueError(f'a repository must be `user/name`, got {name!r}')
    model, root = unwrapped(model), Path(root)
    plain_folder = root / repo_id / PLAIN if plain_repo == repo_id else root / (plain_repo or '')
    plain_files = _write_plain(model, plain_folder) if plain_repo else []
    form = PlainForm(plain_repo, has_onnx=plain_folder / ONNX in plain_files)
    if card is None:
        stored = stored_weights(model, sparse=sparse, dtype=dtype)
        card = model_card(model, repo_id, plain=form, stored=stored, facts=facts)
    if plain_repo != repo_id:
        shutil.rmtree(root / repo_id / PLAIN, ignore_errors=True)  # of an earlier dry run
    folder = save_pretrained(model, root / repo_id, sparse=sparse, dtype=dtype, facts=facts, card=card)
    names = (CARD, CONFIG, WEIGHTS) if (folder / CARD).is_file() else (CONFIG, WEIGHTS)  # `card=''` writes none
    written = {repo_id: [folder / name for name in names]}
    if plain_repo == repo_id:
        written[repo_id] += plain_files
    elif plain_repo:
        own = dataclasses.replace(form, repo_id=None, of=repo_id, is_program=plain_folder / PROGRAM in plain_files)
        plain_card = model_card(fold(model), plain_repo, plain=own, facts=facts, trained=model)
        written[plain_repo] = [_write_card(plain_folder, plain_card), *plain_files]
    return written


def _write_plain(model: nn.Module, folder: Path) -> list[Path]:
    """Write the form that needs no `timm_lc`, without a model card."""
    done = export(copy.deepcopy(model).cpu().eval(), 'plain', folder)
    if not is_foreign_card(folder / CARD):
        (folder / CARD).unlink(missing_ok=True)
    return [folder / path.name for path in done.files if path.name != CARD]


def _write_card(folder: Path, text: str) -> Path:
    """Write README.md, unless there is one that somebody else wrote."""
    if not is_foreign_card(folder / CARD):
        (folder / CARD).write_text(text, encoding='utf-8')
    return folder / CARD


def read_card(path: str | Path) -> str | None:
    """Return the model card in a folder of `save_pretrained`, if somebody else wrote or changed it."""
    card = Path(path, CARD)
    if not Path(path, CONFIG).is_file() or not is_foreign_card(card):
        return None
    return card.read_text(encoding='utf-8')


def _upload(
    api: HfApi,
    repo_id: str,
    folder: Path,
    files: list[Path],
    *,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> str:
    """Commit files of a folder, and return the address of the commit or pull request."""
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise ValueError('it is there already and public: make it private first, or push without `private`')
        if revision is not None:
            _make_branch(api, repo_id, revision)
        # what is read below decides what is written: a change in between must be an error, not lost
        parent = api.repo_info(repo_id, revision=revision).sha
        commit = api.create_commit(
            repo_id,
            _operations(api, repo_id, folder, files, parent),
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
    except FAILURES as error:
        raise ConnectionError(f'cannot push to {repo_id}: {_explain(error)}') from error
    return commit.pr_url or commit.commit_url


def _make_branch(api: HfApi, repo_id: str, revision: str) -> None:
    try:
        api.repo_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _operations(
    api: HfApi, repo_id: str, folder: Path, files: list[Path], revision: str | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return what a commit adds, and deletes because another network or form left it in the folder plain/."""
    present = set(api.list_repo_files(repo_id, revision=revision))
    if CARD in present and not is_foreign_card(folder / CARD):
        with tempfile.TemporaryDirectory() as copies:
            card = api.hf_hub_download(repo_id, CARD, revision=revision, local_dir=copies)
            keeps_card = is_foreign_card(Path(card))
        files = [path for path in files if not (keeps_card and path == folder / CARD)]
    added = {path.relative_to(folder).as_posix(): path for path in files}
    stale = present & {f'{PLAIN}/{name}' for name in (CONFIG, WEIGHTS, PROGRAM, ONNX)} - added.keys()
    additions = [CommitOperationAdd(name, path) for name, path in added.items()]
    return [*additions, *(CommitOperationDelete(name) for name in sorted(stale))]


def _explain(error: BaseException) -> str:
    """Return what went wrong at the root and what to do, in one line."""
    while getattr(error, 'response', None) is None and error.__cause__ is not None:
        error = error.__cause__
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    said = ' '.join((getattr(error, 'server_message', None) or ('' if status else str(error))).split())
    if status:
        answer = ' '.join(filter(None, [str(status), responses.get(status), f'({said})' if said else '']))
        return f'the Hub answered {answer}: {ADVICE.get(status, AGAIN)}'
    return said if isinstance(error, ValueError) else f'{said}: check the connection and {AGAIN}'
