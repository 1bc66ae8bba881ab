"""Which optional packages come with which extra of this one, and the line that says so."""

# By the name that is imported. A package of several extras names the command's own, or the first;
# one of no extra comes with torchmpo itself.
EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": (),
    "filelock": (),
    "safetensors": (),
    "jinja2": (),
    "jsonargparse": (),
    "markupsafe": (),
    "numpy": (),
    "pydantic": (),
    "typing_extensions": (),
    "yaml": (),
    "gymnasium": ("diagnose", "evolve"),
    "matplotlib": ("diagnose", "evolve"),
    "mujoco": ("diagnose", "evolve"),
    "PIL": ("diagnose", "evolve"),
    "scipy": ("diagnose", "evolve"),
    "tensordict": ("diagnose", "evolve"),
    "torchrl": ("diagnose", "evolve"),
    "tqdm": ("diagnose", "evolve", "llm"),
    "evotorch": ("evolve",),
    "ray": ("cluster",),
    "datasets": ("llm",),
    "huggingface_hub": ("llm",),
    "lightning": ("llm", "logging"),
    "peft": ("llm",),
    "pyarrow": ("llm",),
    "transformers": ("llm",),
    "sklearn": ("winrate",),
    "tensorboard": ("logging",),
    "wandb": ("logging",),
    "imageio": ("video",),
    "imageio_ffmpeg": ("video",),
    "mujoco_warp": ("warp",),
    "warp": ("warp",),
    "shtab": ("completion",),
    "h5py": ("minari",),
    "minari": ("minari",),
}
# Where the package index has another name than the import statement.
INDEX_NAMES = {
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "mujoco_warp": "mujoco-warp",
    "sklearn": "scikit-learn",
    "typing_extensions": "typing-extensions",
    "warp": "warp-lang",
    "yaml": "pyyaml",
}
OURS = {"torchmpo", "torchmpo_envs"}


def how_to_install(package: str, extra: str = "") -> str:
    """The line about a package that is missing.

    Args:
        package: a key of `EXTRAS`.
        extra: the one to name if several have the package.

    >>> how_to_install("ray")
    "ray is not installed: pip install 'torchmpo[cluster]'"
    >>> how_to_install("scipy", "evolve")
    "scipy is not installed: pip install 'torchmpo[evolve]'"
    >>> how_to_install("yaml")
    'pyyaml is not installed: pip install torchmpo'
    """
    extras = EXTRAS[package]
    name = extra if extra in extras else next(iter(extras), "")
    what = f"'torchmpo[{name}]'" if name else "torchmpo"
    return f"{INDEX_NAMES.get(package, package)} is not installed: pip install {what}"


def missing(error: ModuleNotFoundError, extra: str = "") -> str | None:
    """The line about a failed import, if it is of an optional package that is not there.

    Args:
        error: as it was raised.
        extra: the one to name if several have the package.

    Returns:
        None for a module that no extra has, and where a module of the user's own asked for it.
    """
    package = (error.name or "").partition(".")[0]
    asking = _who_imports(error).partition(".")[0]
    if package not in EXTRAS or asking not in (*OURS, *EXTRAS):
        return None
    return how_to_install(package, extra)


def _who_imports(error: ModuleNotFoundError) -> str:
    """The name of the module whose import statement failed."""
    trace = error.__traceback__
    name = ""
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return name
