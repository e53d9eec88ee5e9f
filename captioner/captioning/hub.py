"""Share models: folders and the Hugging Face hub, by ``huggingface_hub``'s ``ModelHubMixin``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download

from captioner.captioning.copy import copy_model
from captioner.errors import CaptionerError
from captioner.model_io import CONFIG, ENCODER, WEIGHTS

if TYPE_CHECKING:
    from captioner.captioning.captioner import Captioner
    from captioner.model_io import Model

_CARD = """---
{{ card_data }}
---

# {{ title }}

Captions images: an encoder ({{ encoder }}, frozen{{ license }}) and a {{ decoder }} decoder with {{ attention }}
attention, trained on {{ dataset }}. The program is `captioner`.

```python
from captioner import Captioner

print(Captioner.from_pretrained("USER/NAME").caption("photo.jpg")[0].text)
```
"""


class HubMixin(
    ModelHubMixin,
    model_card_template=_CARD,
    library_name="captioner",
    pipeline_tag="image-to-text",
    tags=["image-captioning"],
):
    """``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` of a ``Captioner``.

    Only three files of a repository are ever fetched: weights as safetensors and JSON. There is nothing to unpickle.
    """

    model: Model
    folder: Path
    # the mixin would build a config from the arguments of __init__; config.json is ``model_io``'s
    _hub_mixin_config: Any = {}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin returns its own type
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, device: str = "auto", **options: Any
    ) -> Captioner:
        """A model from a folder or from the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a repository, USER/NAME.
            device: as in ``Captioner.load``.
            options: of ``ModelHubMixin.from_pretrained``: revision, token, cache_dir, force_download,
                local_files_only.

        Raises:
            CaptionerError: as ``Captioner.load``; or the repository cannot be had, or is no model of this program.
        """
        name = os.fspath(pretrained_model_name_or_path)
        if os.path.isdir(name):
            return cls.load(name, device)  # type: ignore[attr-defined]
        try:
            return super().from_pretrained(name, device=device, **options)  # type: ignore[return-value]
        except CaptionerError:
            raise
        except Exception as error:  # of the network, the name, the hub's client or a torn config.json
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise CaptionerError(
                f"{name}: neither a folder nor a model that could be fetched from the Hugging Face hub ({reason}); "
                "check the name and the network, or fetch its files by hand and give their folder"
            ) from error

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # the mixin returns its own type
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str = "auto",
        **_: Any,  # keys of config.json that are called as arguments of __init__
    ) -> Captioner:
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[CONFIG, WEIGHTS, ENCODER],
        )
        if not (Path(folder) / CONFIG).is_file():
            raise CaptionerError(
                f"{model_id}: this repository has no {CONFIG}, so it is no model of this program; name another one"
            )
        return cls.load(folder, device)  # type: ignore[attr-defined]

    def _save_pretrained(self, save_directory: Path) -> None:
        copy_model(self.folder, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """README.md of a saved model: what it is made of, and how to load it."""
        config, decoder = self.model.config, self.model.decoder.config
        license = config.get("weights_license")
        facts = {
            "title": f"Image captions: {config['encoder']} + {decoder.decoder}",
            "encoder": config["encoder"],
            "license": f", weights under {license}" if license else "",
            "decoder": decoder.decoder,
            "attention": decoder.attention,
            "dataset": config["dataset"],
        }
        return super().generate_model_card(*args, **{**facts, **kwargs})
