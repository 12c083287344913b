"""The convolutional candidate ranker: embeddings, one convolution, two linear layers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import MultipleChoiceModelOutput

from ..errors import HfKfcError
from .loss import ranking_loss

__all__ = ["CnnConfig", "CnnForMultipleChoice"]


@strict
class CnnConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of :class:`CnnForMultipleChoice`.

    Args:
        vocab_size: Number of word embeddings.
        hidden_size: Width d of the embeddings, of the convolution and of the first linear layer.
        kernel_size: Positions that the convolution sees at once; odd.
        dropout: Dropout before the last layer.
        initializer_range: Standard deviation of the initial embeddings.
        pad_token_id: The id whose embedding is zero and stays so.
    """

    model_type = "hf_kfc_cnn"

    vocab_size: int = 30522
    hidden_size: int = 768
    kernel_size: int = 3
    dropout: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0


class ReadTexts(NamedTuple):
    """What a convolution has of texts that are half of a pair, whatever the other half is.

    Args:
        pooled: The highest of the features that see nothing of the other half [texts, width].
        seam: What the text adds to those that see both [texts, 2 · (kernel size // 2), width];
            -inf where the pair has no position.
    """

    pooled: Tensor
    seam: Tensor

    def of(self, texts: Tensor) -> ReadTexts:
        """What it has of some of them, by their numbers."""
        return ReadTexts(self.pooled[texts], self.seam[texts])


class CnnForMultipleChoice(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Score candidates with one convolution over the pair (text with mention, candidate name).

    The layers of the CNN of McInerney et al. 2021: word embeddings, a convolution, linear d×d,
    linear d×1; the maximum over the whole pair follows the convolution. With BERT's vocabulary
    and d = 768 it has 26 million parameters, 23 of them embeddings.

    Args:
        config: The configuration.

    Raises:
        HfKfcError: The kernel size is even.
    """

    config_class = CnnConfig
    base_model_prefix = "cnn"
    _input_embed_layer = "embeddings"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        if config.kernel_size % 2 == 0:
            raise HfKfcError(
                f"The kernel_size of the CnnConfig is {config.kernel_size}; make it odd, so that "
                "the convolution keeps the number of positions."
            )
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.convolution = nn.Conv1d(
            width, width, config.kernel_size, padding=config.kernel_size // 2
        )
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module.

        Fan-in scaling keeps the features as large as the embeddings at every width; with BERT's
        fixed 0.02 each layer shrinks them, and learning starts slowly.
        """
        if isinstance(module, nn.Conv1d | nn.Linear):
            initialization.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                initialization.zeros_(module.bias)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MultipleChoiceModelOutput:
        """Score the candidates.

        Args:
            input_ids: Token ids ``[batch, candidates, positions]``.
            attention_mask: 1 at tokens, 0 at padding, of the same shape; none means no padding.
            token_type_ids: Not used; taken because BERT's tokenizers give them.
            labels: Indices of the gold candidates ``[batch]``.

        Returns:
            ``logits`` ``[batch, candidates]`` and, if labels are given, ``loss``, their mean cross
            entropy over all candidates (padded ones included: a trainer with uneven lists applies
            :func:`~hf_kfc.ranking.loss.ranking_loss` to the logits).
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        embedded = self.embeddings(input_ids.flatten(0, 1))
        attended = attention_mask.flatten(0, 1).unsqueeze(-1).to(embedded.dtype)
        # Zero at padding whatever its id, as the convolution's own padding past the end is.
        features = torch.relu(self.convolution((embedded * attended).transpose(1, 2)))
        # Not negative after the ReLU: the zero of a padded position never wins over a real one.
        pooled = (features * attended.transpose(1, 2)).amax(-1)  # [batch · candidates, width]
        hidden = torch.relu(self.dense(pooled))
        logits = self.classifier(self.dropout(hidden)).view(input_ids.shape[:2])
        loss = None if labels is None else ranking_loss(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits)

    def reads_halves(self) -> bool:
        """Whether :meth:`read` and :meth:`join` do what calling the model does.

        They do not where somebody has put something else in the place of a part, or watches.
        """
        plain = type(self) is CnnForMultipleChoice and type(self.convolution) is nn.Conv1d
        return plain and not is_watched(self)

    def read(self, input_ids: Tensor, lengths: Tensor, *, is_first: bool) -> ReadTexts:
        """Read halves of pairs, each once for all pairs that it is in.

        Args:
            input_ids: Token ids ``[texts, positions]``, padded on the right.
            lengths: How many of them are tokens ``[texts]``.
            is_first: Whether they are the first halves.
        """
        half, device = self.config.kernel_size // 2, input_ids.device
        ends = lengths[:, None]
        attended = torch.arange(input_ids.shape[1], device=device) < ends
        embedded = self.embeddings(input_ids)
        embedded = (embedded * attended[..., None].to(embedded.dtype)).transpose(1, 2)
        # Position p of the text is column p + half: half a kernel reaches past either end.
        sums = nn.functional.conv1d(embedded, self.convolution.weight, padding=2 * half)
        columns = torch.arange(sums.shape[2], device=device)
        seam = torch.arange(2 * half, device=device).expand(len(input_ids), -1)
        if is_first:
            seam = seam + ends
            own, outside = (columns >= half) & (columns < ends), seam < half
        else:
            own, outside = (columns >= 2 * half) & (columns < ends + half), seam >= ends + half
        shares = sums.transpose(1, 2).gather(1, seam[..., None].expand(-1, -1, sums.shape[1]))
        shares = shares.masked_fill(outside[..., None], -torch.inf)
        highest = sums.masked_fill(~own[:, None], -torch.inf).amax(-1)
        return ReadTexts(torch.relu(highest + self.convolution.bias), shares)  # type: ignore[operator]

    def join(self, first: ReadTexts, second: ReadTexts) -> Tensor:
        """Score pairs whose halves are read.

        Args:
            first: The first half of each pair.
            second: The second half of each pair.

        Returns:
            The scores ``[pairs]`` that :meth:`forward` gives, but for rounding.
        """
        pooled = torch.maximum(first.pooled, second.pooled)
        for one, other in zip(first.seam.unbind(1), second.seam.unbind(1), strict=True):
            pooled = torch.maximum(pooled, one + other + self.convolution.bias)  # type: ignore[operator]
        hidden = torch.relu(self.dense(pooled))
        logits: Tensor = self.classifier(self.dropout(hidden)).squeeze(-1)
        return logits


AutoConfig.register(CnnConfig.model_type, CnnConfig, exist_ok=True)
AutoModelForMultipleChoice.register(CnnConfig, CnnForMultipleChoice, exist_ok=True)


def is_watched(model: nn.Module) -> bool:
    """Say if somebody has hooks on a model's modules, who is to see all that they do."""
    return any(own._forward_hooks or own._forward_pre_hooks for own in model.modules())
