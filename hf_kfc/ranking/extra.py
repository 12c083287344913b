"""What ranking needs beyond hf_kfc is an extra; one sentence says so where it is missing."""

from importlib.util import find_spec

__all__: list[str] = []

if missing := [name for name in ("evaluate", "filelock", "sklearn") if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"hf_kfc.ranking needs {', '.join(missing)}; install them by pip install 'hf_kfc[ranking]'",
        name=missing[0],
    )
