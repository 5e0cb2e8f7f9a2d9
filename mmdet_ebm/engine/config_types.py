"""What the parts of a config build."""

from mmengine.config import Config


def type_of(part: dict) -> str:
    """The name of a part's class, which may have a scope or be the class."""
    kind = part['type']
    if isinstance(kind, type):
        return kind.__name__
    return kind.rsplit('.', 1)[-1]


def custom_hooks(cfg: Config, name: str) -> list[dict]:
    """The custom hooks of a class."""
    hooks = cfg.get('custom_hooks') or ()
    return [hook for hook in hooks if type_of(hook) == name]
